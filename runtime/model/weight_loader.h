// Cuts a rank's slice out of a checkpoint and packs it.
#ifndef PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_
#define PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kernels.h"
#include "parallel/leaves.h"
#include "runtime/checkpoint/checkpoint.h"

namespace phalanx::model {

// How the summed dimension of a weight is cut: columns of the checkpoint's tensor, and the parts
// that a rank's leaves are added up to.
struct KSlice {
  std::vector<kernels::KLeaf> leaves;
  std::vector<std::vector<int>> parts;
};

// A dimension that no layout shards: one leaf.
KSlice WholeK(int64_t columns);
// The run `leaves` of a sharded dimension. `cut`: in units of `scale` columns (heads of head_dim
// columns: scale = head_dim). `num_leaves`: L of the profile.
KSlice ShardedK(const parallel::LeafPartition& cut, parallel::Range leaves, int64_t scale,
                int num_leaves);

// Rows of one tensor.
struct RowSlice {
  checkpoint::Role role;
  int64_t layer = 0;
  std::optional<parallel::Range> rows = std::nullopt;  // absent: all
};

// Collects the first error, after which every call does nothing.
class WeightLoader {
 public:
  // References must outlive the loader. `progress` (may be empty) hears of elements packed.
  WeightLoader(const checkpoint::Checkpoint& checkpoint, kernels::Kernels& kernels,
               const std::function<void(int64_t, int64_t)>& progress)
      : checkpoint_(checkpoint), kernels_(kernels), progress_(progress) {}

  // Elements that Matrix calls will pack in all.
  void Expect(int64_t elements) { total_ = elements; }
  // Stacks the slices' rows and packs them.
  void Matrix(const std::vector<RowSlice>& slices, const KSlice& k,
              std::unique_ptr<kernels::PackedWeight>& out);
  // Concatenates vectors, widened to F32.
  void Vector(const std::vector<RowSlice>& slices, kernels::Buffer& out);
  // Rows of a tensor where they are in the mapping.
  void Table(checkpoint::Role role, parallel::Range rows, kernels::TensorView& out);

  const absl::Status& status() const { return status_; }
  int64_t bytes() const { return bytes_; }

 private:
  const checkpoint::Checkpoint& checkpoint_;
  kernels::Kernels& kernels_;
  const std::function<void(int64_t, int64_t)>& progress_;
  absl::Status status_;
  int64_t bytes_ = 0;
  int64_t done_ = 0;
  int64_t total_ = 0;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_WEIGHT_LOADER_H_
