#include "kernels/cuda/program.h"

#include <algorithm>
#include <cstddef>

#include "kernels/check.h"

namespace phalanx::kernels::cuda {

int ProgramDepth(absl::Span<const int> program, int num_in) {
  int depth = 0;
  int most = 0;
  for (const int code : program) {
    PHALANX_CHECK(code < num_in) << "a program names operand " << code << " of " << num_in;
    depth += code >= 0 ? 1 : -1;
    PHALANX_CHECK(depth >= 1) << "a program that isn't postfix";
    most = std::max(most, depth);
  }
  PHALANX_CHECK(depth == 1) << "a program leaves " << depth << " operands";
  return most;
}

bool IsTree(absl::Span<const int> program, int num_in) {
  if (num_in < 1) return false;
  size_t at = 0;
  int sums = 0;
  const auto next_is = [&](int code) {
    sums += code >= 0 ? 1 : -1;
    return at < program.size() && program[at++] == code;
  };
  for (int operand = 0; operand < num_in; ++operand) {
    if (!next_is(operand)) return false;
    // After the j-th as many are joined as 2 divides j: then the sums are over the powers of two of
    // which j is made.
    for (int j = operand + 1; j % 2 == 0; j /= 2) {
      if (!next_is(-1)) return false;
    }
  }
  while (sums > 1) {
    if (!next_is(-1)) return false;
  }
  return at == program.size();
}

}  // namespace phalanx::kernels::cuda
