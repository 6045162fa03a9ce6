// A Hugging Face model directory: its configuration and its tensors, memory-mapped.
#ifndef PHALANX_RUNTIME_CHECKPOINT_CHECKPOINT_H_
#define PHALANX_RUNTIME_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"
#include "runtime/checkpoint/families.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/safetensors.h"

namespace phalanx::checkpoint {

// The scales of a matrix of FP8 codes: element [i, j] is its code times the scale at [i /
// block.block_rows, j / block.block_columns] of [rows, columns].
struct ScaleRef {
  std::string name;
  kernels::DType dtype = kernels::DType::kF32;
  const void* data = nullptr;
  Fp8Scheme block;
  int64_t rows = 0;
  int64_t columns = 0;
};

// A tensor in a mapped file; valid as long as its Checkpoint.
struct TensorRef {
  std::string name;  // of a part of a tensor with where it is: "experts.down_proj[3]"
  kernels::DType dtype = kernels::DType::kF32;
  Shape shape;
  const void* data = nullptr;  // row-major, as in the file; aligned to the element
  ScaleRef scales;             // of F8_E4M3 found by role

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  // Elements of one row: 1 for a vector.
  int64_t cols() const { return shape.size() < 2 ? 1 : shape[1]; }
  int64_t elements() const;
  int64_t bytes() const { return elements() * kernels::SizeOf(dtype); }
};

// Immutable once opened; any thread may read. Opening reads the JSON files and the headers only, so
// that a rank touches no weights but its own.
class Checkpoint {
 public:
  // Reads config.json, generation_config.json, then model.safetensors or
  // model.safetensors.index.json with its shards, and validates. NOT_FOUND: directory or file
  // missing. INVALID_ARGUMENT: a file that contradicts itself, its format or another one.
  // UNIMPLEMENTED: an architecture, key, dtype or format that is not supported, named.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  const ModelConfig& config() const { return config_; }
  const std::string& directory() const { return directory_; }

  // Every tensor that the configuration asks for is there with the shape it asks for, nothing else
  // is that would change the arithmetic, and linear weights and embedding have one dtype (F32, BF16
  // or F16). Norm weights and biases have that dtype or F32; an F32 vector beside BF16 or F16
  // weights is used as stored, not rounded. With config().fp8, matrices of layers (IsProduct) may
  // be F8_E4M3 with scales, beside BF16. Open has done this; it stays true.
  absl::Status Validate() const;

  // By name in the files, or by role. NOT_FOUND names the tensor and the directory.
  // `layer`: ignored by roles that are not per layer. The head of a tied model is its embedding,
  // under whichever of the two names the files hold it. `expert`: ignored by roles that are not per
  // expert; where the files hold all experts of a layer in one tensor, what is found by role is the
  // expert's part of it, a matrix.
  absl::StatusOr<TensorRef> Find(absl::string_view name) const;
  absl::StatusOr<TensorRef> Find(Role role, int64_t layer = 0, int64_t expert = 0) const;
  // Whether the model has the role (a bias, q/k norms, experts ...) in that layer.
  bool Has(Role role, int64_t layer = 0) const { return HasRole(config_, role, layer); }

  // A norm weight or bias widened to F32, exactly. INVALID_ARGUMENT names the first element that is
  // NaN or infinite.
  absl::StatusOr<std::vector<float>> ReadVector(Role role, int64_t layer = 0) const;

  // The scales of a matrix of F8_E4M3 that was found by role, [rows, columns] of its ScaleRef.
  // INVALID_ARGUMENT names one that weights can't have (kernels/fp8_weights.h).
  absl::StatusOr<std::vector<float>> ReadScales(const TensorRef& tensor) const;

  // All tensors' names, sorted.
  std::vector<std::string> TensorNames() const;
  // Lets go of all pages of the files: a rank that has packed its slice holds nothing else. (The
  // kernel maps a page's neighbours with it, so letting go of what was read is not enough.)
  void ReleasePages() const;
  // SafetensorsFile::identity of every file, in their order.
  std::vector<int64_t> FileIdentities() const;
  // Elements of all tensors in the files, scales left out.
  int64_t NumParameters() const;
  // Bytes of all tensors in the files.
  int64_t TotalBytes() const;

  // Identity for the handshake between ranks, 32 hexadecimal digits: FNV-1a (128 bit) over
  // config.json, generation_config.json, every header, and the final norm's values, which tell
  // apart two models of one shape. Equal for copies of one directory. Not a defence against
  // forgery.
  std::string CheckpointDigest() const;
  // INVALID_ARGUMENT names the first NaN or infinity in rows [row_begin, row_end) of `tensor`, one
  // of Find's, by row and column. Reads those rows.
  absl::Status CheckFinite(const TensorRef& tensor, int64_t row_begin, int64_t row_end) const;

 private:
  struct Location {
    int file = 0;
    const TensorInfo* info = nullptr;
  };

  Checkpoint() = default;
  absl::Status OpenFiles();
  absl::Status OpenIndexed(const std::string& index_path);
  absl::Status DetermineWeightDtype();
  // The name under which the files hold a role's tensor, if they do. `other`: the entry of the
  // table that gave it, null for the usual name.
  std::string StoredName(Role role, int64_t layer, int64_t expert,
                         const OtherName** other = nullptr) const;
  absl::Status CheckTensor(Role role, int64_t layer, int64_t expert) const;
  // Of a matrix of F8_E4M3: the name of its scales, and they; "" and INVALID_ARGUMENT where there
  // are none.
  std::string ScaleName(const std::string& weight) const;
  absl::StatusOr<ScaleRef> FindScales(const std::string& weight, const Shape& shape) const;
  absl::Status MissingTensor(Role role, const std::string& name) const;
  // A tied model's files may hold the head too; it must then be the embedding.
  absl::Status CheckTiedHead() const;

  std::string directory_;
  ModelConfig config_;
  ConfigTexts texts_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  absl::flat_hash_map<std::string, Location> tensors_;
};

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_CHECKPOINT_H_
