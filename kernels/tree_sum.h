// What joins ranks' parts, over host arrays: a postfix program of additions (rule R2 of the
// design), and the bitwise or.
#ifndef PHALANX_KERNELS_TREE_SUM_H_
#define PHALANX_KERNELS_TREE_SUM_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace phalanx::kernels {

// Keeps its scratch memory from call to call. For one thread.
class TreeSum {
 public:
  // out[i] = the program's sum over operands[.][i], i < count, in F32 with denormals flushed to
  // zero, as in the sums that a matmul finishes by itself. `program`: i >= 0 pushes operand i, -1
  // pops right, pops left and pushes left + right; it leaves one value. `out` may be one of the
  // operands.
  void Run(absl::Span<const int> program, absl::Span<const float* const> operands, float* out,
           int64_t count);

 private:
  std::vector<float> scratch_;
  std::vector<const float*> stack_;
};

// data[i] |= other[i], i < count.
void OrInto(uint32_t* data, const uint32_t* other, int64_t count);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_TREE_SUM_H_
