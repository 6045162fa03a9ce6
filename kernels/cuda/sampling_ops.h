// Log-sum-exp leaves and the Gumbel argmax (kernels/kernels.h says what each computes).
#ifndef PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_
#define PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// leaves: [num_leaves][2] columns begin, end; out: [rows * num_leaves]. All on the device.
cudaError_t LogSumExpLeaves(TensorView logits, const int64_t* leaves, int64_t num_leaves,
                            MaxSum* out, cudaStream_t stream);

// Choices that a row of GumbelArgmaxRows needs room for.
int64_t GumbelScratch(int64_t cols);
// out[i]: the choice that rows[i] asks for. `scratch`: num_rows * GumbelScratch(logits.cols)
// choices. All on the device.
cudaError_t GumbelArgmaxRows(TensorView logits, int32_t first_id, const GumbelRow* rows,
                             int64_t num_rows, Choice* scratch, Choice* out, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_
