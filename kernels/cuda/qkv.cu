#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/largest.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/qkv.h"
#include "kernels/fp8.h"

namespace phalanx::kernels::cuda {
namespace {

// One head of one row: blockIdx.x is the row, blockIdx.y the head (queries, keys, values); thread i
// has its column i, and heads have at most kThreads. All that it reads is asked for at once.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) QkvToCacheKernel(const QkvParams p) {
  LetNextStart();
  __shared__ float x[kThreads];
  __shared__ float sum;
  const int64_t row = blockIdx.x;
  const int64_t head = blockIdx.y;
  const auto i = static_cast<int>(threadIdx.x);
  const auto d = static_cast<int>(p.head_dim);
  const bool is_query = head < p.num_heads;
  const bool is_value = head >= p.num_heads + p.layout.num_heads;
  const float* norm = is_value ? nullptr : is_query ? p.q_norm : p.k_norm;
  const float* bias = p.bias != nullptr ? p.bias + head * d : nullptr;
  const int half = is_value ? 0 : static_cast<int>(p.rotary_dim / 2);
  // A layer's weights have passed through the L2 cache since these were read last.
  if (i % kLineFloats == 0 && i < d) {
    if (norm != nullptr) PrefetchLine(norm + i);
    if (bias != nullptr) PrefetchLine(bias + i);
  }
  if (i == 0) PrefetchLine(p.slots + row);
  if (i % kLineFloats == 0 && i < half && p.positions == nullptr) {
    PrefetchLine(p.cos + row * half + i);
    PrefetchLine(p.sin + row * half + i);
  }
  WaitForEarlier();

  const int64_t slot = p.slots[row];
  float value = 0.0f;
  float weight = 0.0f;
  if (i < d) {
    value = static_cast<const float*>(p.qkv.data)[row * p.qkv.stride + head * d + i];
    if (norm != nullptr) weight = norm[i];
  }
  // Column i turns with column `other`.
  const bool turns = i < 2 * half;
  const bool is_first = i < half;
  const int other = is_first ? i + half : i - half;
  float cos = 0.0f;
  float sin = 0.0f;
  if (turns) {
    const int64_t at =
        (p.positions != nullptr ? p.positions[row] : row) * half + (is_first ? i : other);
    cos = p.cos[at];
    sin = p.sin[at];
  }
  if (bias != nullptr && i < d) value = Add(value, bias[i]);
  x[i] = value;
  __syncthreads();
  if (norm != nullptr) {
    if (i < kWarp) {
      const float lane_sum = HalveSum(i < kSumLanes ? AddToLane<true>(0.0f, x, d) : 0.0f);
      if (i == 0) sum = lane_sum;
    }
    __syncthreads();
    value = Normed(value, RmsScale(sum, d, p.norm_eps), weight);
    x[i] = value;
    __syncthreads();
  }
  if (turns) {
    float first = is_first ? value : x[other];
    float second = is_first ? x[other] : value;
    Rotate(&first, &second, cos, sin);
    value = is_first ? first : second;
  }
  if (i >= d) value = 0.0f;
  if (is_query) {
    const int width = (d + 31) / 32 * 32;
    if (i < width) {
      Store(p.q.data, p.q.dtype, row * p.q.stride + head * width + i, value);
    }
    return;
  }
  if (slot < 0) return;
  const int64_t block = slot / kKvTokens;
  const int64_t token = slot % kKvTokens;
  const int64_t kv_head = head - p.num_heads - (is_value ? p.layout.num_heads : 0);
  const int64_t width = is_value ? p.layout.dv : p.layout.dk;
  const int64_t index = is_value ? p.layout.ValueIndex(i, token) : p.layout.KeyIndex(i, token);
  uint8_t* keys = static_cast<uint8_t*>(p.cache) + p.layout.Keys(block, kv_head);
  uint8_t* to = is_value ? keys + p.layout.key_bytes : keys;
  if (!p.layout.fp8) {
    if (i < width) Store(to, p.layout.dtype, index, value);
    return;
  }
  __shared__ uint32_t largest[kThreads / kWarp];
  const uint8_t scale = E4m3Scale(LargestOfBlock(MagnitudeOf(value), largest));
  if (i == 0) {
    keys[is_value ? p.layout.ValueScale(token) : p.layout.KeyScale(token)] = scale;
  }
  if (i < width) to[index] = i < d ? F32ToE4m3(value, scale) : 0;
}

}  // namespace

cudaError_t QkvToCache(const QkvParams& params, cudaStream_t stream) {
  if (params.qkv.rows == 0) return cudaSuccess;
  const int64_t heads = params.num_heads + 2 * params.layout.num_heads;
  const dim3 grid(static_cast<unsigned>(params.qkv.rows), static_cast<unsigned>(heads));
  if (params.head_dim <= 64) return Launch(QkvToCacheKernel<64>, grid, 64, 0, stream, params);
  if (params.head_dim <= 128) return Launch(QkvToCacheKernel<128>, grid, 128, 0, stream, params);
  if (params.head_dim <= 256) return Launch(QkvToCacheKernel<256>, grid, 256, 0, stream, params);
  static_assert(kMaxHeadDim == 1024);
  return Launch(QkvToCacheKernel<1024>, grid, 1024, 0, stream, params);
}

}  // namespace phalanx::kernels::cuda
