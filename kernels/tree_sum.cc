#include "kernels/tree_sum.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/fp_environment.h"

namespace phalanx::kernels {
namespace {

// Floats of one block: a few blocks of temporaries stay in the first-level cache.
constexpr int64_t kBlock = 1024;

// `out` may be `left` or `right`, so no __restrict; GCC checks for overlap once and vectorises.
void Add(const float* left, const float* right, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

}  // namespace

void TreeSum::Run(absl::Span<const int> program, absl::Span<const float* const> operands,
                  float* out, int64_t count) {
  const ScopedFpEnvironment environment;
  if (program.size() == 1) {
    if (count > 0) std::memmove(out, operands[program[0]], count * sizeof(float));
    return;
  }
  // A value on the stack at depth d is an operand's block, read where it lies, or lies in block d
  // of the scratch memory. At most one push more than adds is pending, so depth <= program size.
  const size_t needed = (program.size() / 2 + 1) * kBlock;
  if (scratch_.size() < needed) scratch_.resize(needed);
  stack_.resize(program.size());
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    size_t depth = 0;
    for (size_t i = 0; i < program.size(); ++i) {
      if (program[i] >= 0) {
        stack_[depth++] = operands[program[i]] + begin;
        continue;
      }
      const float* right = stack_[--depth];
      const float* left = stack_[depth - 1];
      // The root goes straight to `out`: an operand that is `out` is not needed any more for this
      // block.
      float* sum = i + 1 == program.size() ? out + begin : &scratch_[(depth - 1) * kBlock];
      Add(left, right, sum, n);
      stack_[depth - 1] = sum;
    }
  }
}

void OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) data[i] |= other[i];
}

}  // namespace phalanx::kernels
