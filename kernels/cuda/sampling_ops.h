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

// Choices that GumbelArgmax needs room for.
int64_t GumbelScratch(int64_t n);
// out[0]: the choice among n logits. `scratch`: GumbelScratch(n) choices.
cudaError_t GumbelArgmax(const float* logits, int64_t n, int32_t first_id, float temperature,
                         float threshold, const GumbelKey& key, Choice* scratch, Choice* out,
                         cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_
