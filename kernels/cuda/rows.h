// Row-wise ops of the op set (kernels/kernels.h says what each computes). Pointers are the
// device's; a function enqueues on `stream` and returns the launch's error.
#ifndef PHALANX_KERNELS_CUDA_ROWS_H_
#define PHALANX_KERNELS_CUDA_ROWS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// out.rows ids; `chosen` as in Kernels::GatherRows.
cudaError_t GatherRows(TensorView table, const int32_t* ids, int64_t first_id, const Choice* chosen,
                       TensorView out, cudaStream_t stream);
cudaError_t AddResidual(TensorView x, TensorView delta, const float* bias, cudaStream_t stream);
// RmsNorm; with delta.data set AddResidual comes first, in the same pass.
cudaError_t RmsNorm(TensorView x, TensorView delta, const float* bias, const float* weight,
                    float eps, TensorView out, cudaStream_t stream);
cudaError_t SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out,
                    cudaStream_t stream);
// out.rows row numbers, -1: a row of zeros.
cudaError_t GatherTokens(TensorView in, const int32_t* rows, TensorView out, cudaStream_t stream);
// Operands and program of AddParts, by value in the launch: at most kMaxKernelAddends operands.
inline constexpr int kMaxKernelAddends = 64;
struct SumProgram {
  const float* operands[kMaxKernelAddends];
  int8_t codes[2 * kMaxKernelAddends];  // postfix: i >= 0 pushes operand i, -1 adds
  int steps;
};
// `depth`: operands alive at once, at most kMaxKernelAddends.
cudaError_t AddParts(const SumProgram& program, int depth, float* out, int64_t count,
                     cudaStream_t stream);
cudaError_t OrInto(uint32_t* data, const uint32_t* other, int64_t count, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ROWS_H_
