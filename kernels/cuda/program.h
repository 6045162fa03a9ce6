// Postfix programs, by which partial sums and partial softmaxes are joined: an operand's index, or
// -1 for the two on top.
#ifndef PHALANX_KERNELS_CUDA_PROGRAM_H_
#define PHALANX_KERNELS_CUDA_PROGRAM_H_

#include "absl/types/span.h"

namespace phalanx::kernels::cuda {

// Operands alive at once while a postfix program runs. A program that isn't postfix, or that names
// an operand outside [0, num_in), is a programmer's error.
int ProgramDepth(absl::Span<const int> program, int num_in);

// Whether `program` is R2's tree over operands 0 .. num_in - 1: each run of them is cut at the
// largest power of two below its length.
bool IsTree(absl::Span<const int> program, int num_in);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_PROGRAM_H_
