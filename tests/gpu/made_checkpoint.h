// Checkpoints of a given shape, made where they are measured: a config.json, and weights of random
// bits. What a step of such a model must read and compute.
#ifndef PHALANX_TESTS_GPU_MADE_CHECKPOINT_H_
#define PHALANX_TESTS_GPU_MADE_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::timing {

struct NamedShape {
  absl::string_view name;
  absl::string_view config;  // the text of a config.json
};
// The models of RESULTS.md, in BF16.
absl::Span<const NamedShape> TimedShapes();

// A model directory that goes away with the object. Linear weights and biases lie between 2^-8 and
// 2^-7 with random signs and mantissas, so that sums of thousands of products stay small; norm
// weights are 1. They come from one pattern of 4 million values, over and over, a prime number of
// them, so that neighbouring rows of a tensor differ. They are no zeros, which take less power to
// move and to multiply.
class MadeCheckpoint {
 public:
  // In a new folder in `parent`. INVALID_ARGUMENT: not a config.json that can be read, or of
  // another dtype than float32 and bfloat16. RESOURCE_EXHAUSTED names the bytes that `parent`
  // lacks.
  static absl::StatusOr<std::unique_ptr<MadeCheckpoint>> Make(absl::string_view config,
                                                              const std::string& parent);
  ~MadeCheckpoint();
  MadeCheckpoint(const MadeCheckpoint&) = delete;
  MadeCheckpoint& operator=(const MadeCheckpoint&) = delete;

  const std::string& directory() const { return directory_; }

 private:
  explicit MadeCheckpoint(std::string directory) : directory_(std::move(directory)) {}
  const std::string directory_;
};

// Values of all tensors.
int64_t NumParameters(const checkpoint::ModelConfig& config);
// Values of the linear weights that a step of `rows` rows with one row of logits each must read,
// each once. Absent where that depends on where the rows' experts are.
std::optional<int64_t> WeightsRead(const checkpoint::ModelConfig& config, int64_t rows);
// 2 m n k of every product, attention's included, in a step that feeds one sequence's `rows` tokens
// after `past` and wants the last row's logits.
int64_t StepFlops(const checkpoint::ModelConfig& config, int64_t rows, int64_t past);

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_MADE_CHECKPOINT_H_
