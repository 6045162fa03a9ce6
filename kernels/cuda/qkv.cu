#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/largest.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/qkv.h"
#include "kernels/fp8.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// The scale of x[0 .. d) in shared memory, for every thread of the block.
__device__ uint8_t ScaleOf(const float* x, int64_t d) {
  __shared__ uint32_t largest[kThreads / kWarp];
  return E4m3Scale(LargestMagnitude(x, d, largest));
}

// One head of one row: blockIdx.x is the row, blockIdx.y the head (queries, keys, values).
__global__ void __launch_bounds__(kThreads) QkvToCacheKernel(const QkvParams p) {
  BeginInTurn();
  __shared__ float x[kMaxHeadDim];
  __shared__ float sum;
  const int64_t row = blockIdx.x;
  const int64_t head = blockIdx.y;
  const int64_t d = p.head_dim;
  const bool is_query = head < p.num_heads;
  const bool is_value = head >= p.num_heads + p.layout.num_heads;
  const int64_t slot = p.slots[row];
  if (!is_query && slot < 0) return;

  const float* from = static_cast<const float*>(p.qkv.data) + row * p.qkv.stride + head * d;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    x[i] = p.bias != nullptr ? Add(from[i], p.bias[head * d + i]) : from[i];
  }
  __syncthreads();
  const float* norm = is_value ? nullptr : is_query ? p.q_norm : p.k_norm;
  if (norm != nullptr) {
    if (threadIdx.x < kWarp) {
      float lane_sum = 0.0f;
      if (threadIdx.x < kSumLanes) {
        for (int64_t i = threadIdx.x; i < d; i += kSumLanes) lane_sum = Fma(x[i], x[i], lane_sum);
      }
      lane_sum = HalveSum(lane_sum);
      if (threadIdx.x == 0) sum = lane_sum;
    }
    __syncthreads();
    const float scale = RmsScale(sum, d, p.norm_eps);
    for (int64_t i = threadIdx.x; i < d; i += kThreads) x[i] = Normed(x[i], scale, norm[i]);
    __syncthreads();
  }
  if (!is_value) {
    const int64_t half = p.rotary_dim / 2;
    const int64_t table = p.positions[row] * half;
    for (int64_t i = threadIdx.x; i < half; i += kThreads) {
      Rotate(&x[i], &x[i + half], p.cos[table + i], p.sin[table + i]);
    }
    __syncthreads();
  }
  if (is_query) {
    const int64_t width = (d + 31) / 32 * 32;
    const int64_t to = row * p.q.stride + head * width;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      Store(p.q.data, p.q.dtype, to + i, i < d ? x[i] : 0.0f);
    }
    return;
  }
  const int64_t block = slot / kKvTokens;
  const int64_t token = slot % kKvTokens;
  const int64_t kv_head = head - p.num_heads - (is_value ? p.layout.num_heads : 0);
  uint8_t* cache = static_cast<uint8_t*>(p.cache);
  const int64_t width = is_value ? p.layout.dv : p.layout.dk;
  uint8_t* to =
      cache + (is_value ? p.layout.Values(block, kv_head) : p.layout.Keys(block, kv_head));
  uint8_t scale = 0;
  if (p.layout.fp8) {
    scale = ScaleOf(x, d);
    const int64_t at = is_value ? p.layout.ValueScale(token) : p.layout.KeyScale(token);
    if (threadIdx.x == 0) cache[p.layout.Keys(block, kv_head) + at] = scale;
  }
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    const int64_t index = is_value ? p.layout.ValueIndex(i, token) : p.layout.KeyIndex(i, token);
    if (p.layout.fp8) {
      to[index] = i < d ? F32ToE4m3(x[i], scale) : 0;
    } else {
      Store(to, p.layout.dtype, index, i < d ? x[i] : 0.0f);
    }
  }
}

}  // namespace

cudaError_t QkvToCache(const QkvParams& params, cudaStream_t stream) {
  if (params.qkv.rows == 0) return cudaSuccess;
  const int64_t heads = params.num_heads + 2 * params.layout.num_heads;
  const dim3 grid(static_cast<unsigned>(params.qkv.rows), static_cast<unsigned>(heads));
  return Launch(QkvToCacheKernel, grid, kThreads, 0, stream, params);
}

}  // namespace phalanx::kernels::cuda
