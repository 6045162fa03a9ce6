// Routing of tokens to experts and the sum over a token's experts (RouterArgs, CombineExpertsArgs
// of kernels/kernels.h).
#ifndef PHALANX_KERNELS_CUDA_EXPERTS_H_
#define PHALANX_KERNELS_CUDA_EXPERTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

inline constexpr int64_t kMaxRouterWidth = 4096;

// experts, weights: [m * top_k] on the device.
cudaError_t RouteTopK(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                      float* weights, cudaStream_t stream);

struct CombineParams {
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t top_k = 0;
  const float* weights = nullptr;       // [rows * top_k]
  const float* const* parts = nullptr;  // [rows * top_k * num_parts]
  int num_parts = 1;
  const int* program = nullptr;
  int steps = 0;
  int depth = 1;  // sums alive at once
  TensorView shared;
  const float* shared_gate_logit = nullptr;
  TensorView out;
};

cudaError_t CombineExperts(const CombineParams& params, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_EXPERTS_H_
