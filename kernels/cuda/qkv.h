// Bias, q/k norm, rotary embedding and the cache write (QkvArgs of kernels/kernels.h).
#ifndef PHALANX_KERNELS_CUDA_QKV_H_
#define PHALANX_KERNELS_CUDA_QKV_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/kv_layout.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// Heads of up to this many columns fit the kernels' shared memory.
inline constexpr int64_t kMaxHeadDim = 1024;

struct QkvParams {
  TensorView qkv;  // [m, (num_heads + 2 num_kv_heads) * head_dim] F32
  const float* bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float norm_eps = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  const int32_t* positions = nullptr;  // [m]; null: row r's is r
  const int32_t* slots = nullptr;      // [m]
  KvLayout layout = KvLayout(DType::kF32, 0, 1);
  void* cache = nullptr;
  TensorView q;
};

cudaError_t QkvToCache(const QkvParams& params, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_QKV_H_
