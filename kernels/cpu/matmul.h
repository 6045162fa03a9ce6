// MatMul on packed weights (their layout: matmul_job.h).
#ifndef PHALANX_KERNELS_CPU_MATMUL_H_
#define PHALANX_KERNELS_CPU_MATMUL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/matmul_job.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

class ThreadPool;

namespace cpu {

class CpuPackedWeight : public PackedWeight {
 public:
  int64_t bytes() const override { return static_cast<int64_t>(data.bytes()); }
  void SetShape(DType dtype, int64_t n, int64_t k, int num_parts) {
    dtype_ = dtype;
    n_ = n;
    k_ = k;
    num_parts_ = num_parts;
  }
  int64_t panels() const { return (n_ + kPanelColumns - 1) / kPanelColumns; }

  Buffer data;
  int64_t panel_bytes = 0;
  std::vector<LeafRange> leaves;
  // Part p's postfix program is programs[program_begin[p] .. program_begin[p + 1]).
  std::vector<int> programs;
  std::vector<int> program_begin;
  int stack_depth = 1;  // leaf sums alive at once, at most, over all programs
};

// Precondition: the machine has the path.
const MatMulTable& MatMulFor(CpuPath path);

// See Kernels::Pack.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(ThreadPool& pool, const WeightSpec& spec);
// See Kernels::PackedBytes, PackInto and WrapPacked.
int64_t PackedBytes(const WeightSpec& spec);
absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeightInto(ThreadPool& pool,
                                                             const WeightSpec& spec, Buffer memory);
std::unique_ptr<PackedWeight> WrapPacked(const WeightSpec& spec, Buffer memory);

// See Kernels::MatMul. `packed_x` grows as needed and is reused from call to call.
void MatMul(ThreadPool& pool, const MatMulTable& table, Buffer& packed_x, TensorView x,
            const CpuPackedWeight& w, absl::Span<const TensorView> outs);

// See Kernels::GroupedMatMul. The groups share the pool's loops, so that eight experts of one token
// cost two, not sixteen.
void GroupedMatMul(ThreadPool& pool, const MatMulTable& table, Buffer& packed_x, TensorView x,
                   absl::Span<const ExpertRows> groups, absl::Span<const TensorView> outs);

}  // namespace cpu
}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_MATMUL_H_
