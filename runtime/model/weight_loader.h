// Cuts a rank's slice out of a checkpoint and packs it.
#ifndef PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_
#define PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kernels.h"
#include "parallel/leaves.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/slice_digest.h"
#include "runtime/model/weight_arena.h"

namespace phalanx::model {

// How the summed dimension of a weight is cut: columns of the checkpoint's tensor, and the parts
// that a rank's leaves are added up to.
struct KSlice {
  std::vector<kernels::KLeaf> leaves;
  std::vector<std::vector<int>> parts;
};

// A dimension that no layout shards: one leaf.
KSlice WholeK(int64_t columns);
// What member `m` of `cut` owns of a sharded dimension. `leaves`: in units of `scale` columns
// (heads of head_dim columns: scale = head_dim).
KSlice ShardedK(const parallel::LeafPartition& leaves, const parallel::TreeCut& cut, int m,
                int64_t scale);

// Rows of one tensor.
struct RowSlice {
  checkpoint::Role role;
  int64_t layer = 0;
  std::optional<parallel::Range> rows = std::nullopt;  // absent: all
  const parallel::LeafPartition* cut = nullptr;        // where digests are cut; null: nowhere
  int64_t expert = 0;                                  // of roles that each expert has
};

// Reads a rank's slices: digests each, packs or copies it, and lets go of the file's pages.
// Collects the first error, after which every call does nothing.
class WeightLoader {
 public:
  // References must outlive the loader. `kernels` null: only digests are made and outputs stay
  // empty. `progress` (may be empty) hears of elements packed. `arena`: where the outputs are to
  // be; null: in memory of their own. With a mapped arena nothing is read, digested or packed: the
  // outputs are what an equal loader has left there, and a piece that isn't is INVALID_ARGUMENT.
  WeightLoader(const checkpoint::Checkpoint& checkpoint, kernels::Kernels* kernels,
               std::function<void(int64_t, int64_t)> progress, WeightArena* arena = nullptr)
      : checkpoint_(checkpoint), kernels_(kernels), progress_(std::move(progress)), arena_(arena) {}

  // Elements that Matrix calls will pack in all.
  void Expect(int64_t elements) { total_ = elements; }
  // Stacks the slices' rows and packs them.
  void Matrix(const std::vector<RowSlice>& slices, const KSlice& k,
              std::unique_ptr<kernels::PackedWeight>& out);
  // Likewise a layer's product, kept in `format`; FP8 codes are kept as they are, and what a
  // checkpoint of such leaves in BF16 stays BF16.
  void Product(const std::vector<RowSlice>& slices, const KSlice& k, kernels::WeightFormat format,
               std::unique_ptr<kernels::PackedWeight>& out);
  // Concatenates vectors, widened to F32.
  void Vector(const std::vector<RowSlice>& slices, kernels::Buffer& out);
  // Copies rows of a matrix, as stored.
  void Table(const RowSlice& slice, kernels::Buffer& out);

  const absl::Status& status() const { return status_; }
  // Held by the outputs so far.
  int64_t bytes() const { return bytes_; }
  std::vector<SliceDigest> TakeDigests() { return std::move(digests_); }

 private:
  bool mapped() const { return arena_ != nullptr && arena_->mapped(); }
  // Finds the slice's tensor and, where it is to be read, digests what `columns` say of its rows.
  absl::StatusOr<checkpoint::TensorRef> Read(const RowSlice& slice,
                                             const std::vector<kernels::KLeaf>& columns);
  // `name`: of the piece of the arena.
  bool Allocate(const std::string& name, int64_t bytes, kernels::Buffer& out);

  const checkpoint::Checkpoint& checkpoint_;
  kernels::Kernels* const kernels_;
  const std::function<void(int64_t, int64_t)> progress_;
  WeightArena* const arena_;
  std::vector<SliceDigest> digests_;
  absl::Status status_;
  int64_t bytes_ = 0;
  int64_t done_ = 0;
  int64_t total_ = 0;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_
