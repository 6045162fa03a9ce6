// The plain reference of MatMul: the definition that every path is compared with, bit by bit.
#ifndef PHALANX_KERNELS_CPU_REFERENCE_MATMUL_H_
#define PHALANX_KERNELS_CPU_REFERENCE_MATMUL_H_

#include "absl/types/span.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::kernels {

// Kernels::MatMul of x with the weight that `spec` describes, read where it lies. x:
// [m, sum of the padded leaves] in ActivationType(spec.dtype); outs: one [m, n] F32 per part.
void ReferenceMatMul(TensorView x, const WeightSpec& spec, absl::Span<const TensorView> outs);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_REFERENCE_MATMUL_H_
