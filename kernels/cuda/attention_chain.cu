// Attention over F32 and F16 caches, and of FP8 that is read as F32, in the CPU's order and with
// its bits: a score is one FMA chain over rising columns, a value one FMA chain over the block's 32
// tokens. One warp takes a row, a head and a stripe; a lane is a token of a block, then a column of
// the values.
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/prefetch.cuh"
#include "kernels/cuda/qkv.h"
#include "kernels/fp8.h"

namespace phalanx::kernels::cuda {
namespace {

// Element `index` of keys or values. scale: FP8's.
template <DType kType, bool kFp8>
__device__ __forceinline__ float LoadElement(const uint8_t* data, int64_t index, float scale) {
  if constexpr (kFp8) return Mul(E4m3ToF32(data[index]), scale);
  return Load(data, kType, index);
}

// Elements that a lane asks for before it uses the first.
constexpr int kAhead = 16;

// grid: tokens, query heads of all groups, stripes; one warp.
template <DType kType, bool kFp8>
__global__ void __launch_bounds__(kWarp)
    AttendChainKernel(const AttentionParams p, const RowTile* tiles) {
  BeginInTurn();
  __shared__ float q[kMaxHeadDim];
  __shared__ float values[kMaxHeadDim];
  __shared__ float probability[kKvTokens];
  __shared__ float value_scale[kKvTokens];
  const int lane = threadIdx.x;
  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  int g = 0;
  while (static_cast<int>(blockIdx.y) >= p.groups[g].end) ++g;
  const HeadGroup group = p.groups[g];
  const int64_t row = sequence.row_begin + tile.first;
  const int64_t position = sequence.start + tile.first;
  const int64_t head = p.heads[blockIdx.y];
  const int64_t d = p.head_dim;
  const int stripe = p.stripe_begin + static_cast<int>(blockIdx.z);

  const auto* from =
      static_cast<const float*>(p.q.data) + row * p.q.stride + head * ((d + 31) / 32 * 32);
  for (int64_t i = lane; i < d; i += kWarp) {
    q[i] = from[i];
    values[i] = 0.0f;
  }
  __syncwarp();
  float running_max = kNegativeInfinity;
  float running_sum = 0.0f;
  const BlockWalk walk = BlocksOf(p, stripe, position, position);
  for (int64_t block = walk.first; block <= walk.last; block += p.num_stripes) {
    const Visible visible = VisibleTokens(position, block, p.window);
    if (visible.empty()) continue;
    const auto* data = static_cast<const uint8_t*>(p.cache) +
                       p.layout.Keys(p.tables[sequence.table_begin + block], group.kv_head);
    float key_scale = 1.0f;
    if constexpr (kFp8) {
      key_scale = E8m0ToF32(data[p.layout.KeyScale(lane)]);
      value_scale[lane] = E8m0ToF32(data[p.layout.ValueScale(lane)]);
    }
    // Values come while scores are computed, and the next block's keys and values behind them.
    PrefetchRun(data + p.layout.key_bytes, p.layout.scales - p.layout.key_bytes, lane);
    if (block + p.num_stripes <= walk.last) {
      const int32_t next = p.tables[sequence.table_begin + block + p.num_stripes];
      PrefetchRun(static_cast<const uint8_t*>(p.cache) + p.layout.Keys(next, group.kv_head),
                  p.layout.head_bytes, lane);
    }
    float score = 0.0f;
    int64_t column = 0;
    for (; column + kAhead <= d; column += kAhead) {
      float keys[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        keys[i] = LoadElement<kType, kFp8>(data, (column + i) * kKvTokens + lane, key_scale);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) score = Fma(q[column + i], keys[i], score);
    }
    for (; column < d; ++column) {
      const float key = LoadElement<kType, kFp8>(data, column * kKvTokens + lane, key_scale);
      score = Fma(q[column], key, score);
    }
    const bool seen = visible.sees(lane);
    score = seen ? Mul(score, p.scale) : kNegativeInfinity;
    float max = score;
    for (int step = kWarp / 2; step > 0; step /= 2) {
      max = Max(__shfl_xor_sync(0xffffffffu, max, step), max);
    }
    const float after = Max(running_max, max);
    const float alpha = Alpha(running_max, after);
    const float p_of_token = seen ? Exp(Sub(score, after)) : 0.0f;
    float sum = p_of_token;
    for (int step = kWarp / 2; step > 0; step /= 2) {
      sum = Add(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    }
    running_max = after;
    running_sum = Fma(running_sum, alpha, sum);
    probability[lane] = p_of_token;
    __syncwarp();
    const auto* v = data + p.layout.key_bytes;
    for (int64_t i = lane; i < d; i += kWarp) {
      float weighted = 0.0f;
#pragma unroll
      for (int first = 0; first < kKvTokens; first += kAhead) {
        float of_token[kAhead];
#pragma unroll
        for (int t = 0; t < kAhead; ++t) {
          const float scale = kFp8 ? value_scale[first + t] : 1.0f;
          of_token[t] = visible.sees(first + t)
                            ? LoadElement<kType, kFp8>(v, (first + t) * p.layout.dv + i, scale)
                            : 0.0f;
        }
#pragma unroll
        for (int t = 0; t < kAhead; ++t) {
          weighted = Fma(probability[first + t], of_token[t], weighted);
        }
      }
      values[i] = Fma(values[i], alpha, weighted);
    }
    __syncwarp();
  }
  const int64_t stripes = p.stripe_end - p.stripe_begin;
  float* state = p.partials + ((row * p.num_heads + head) * stripes + blockIdx.z) * (2 + d);
  if (lane == 0) {
    state[0] = running_max;
    state[1] = running_sum;
  }
  for (int64_t i = lane; i < d; i += kWarp) state[2 + i] = values[i];
}

}  // namespace

cudaError_t AttendChain(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                        cudaStream_t stream) {
  if (num_tiles == 0 || params.num_heads == 0 || params.stripe_end <= params.stripe_begin) {
    return cudaSuccess;
  }
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(params.num_heads),
                  static_cast<unsigned>(params.stripe_end - params.stripe_begin));
  const auto kernel = params.layout.fp8                    ? AttendChainKernel<DType::kF32, true>
                      : params.layout.dtype == DType::kF32 ? AttendChainKernel<DType::kF32, false>
                                                           : AttendChainKernel<DType::kF16, false>;
  return Launch(kernel, grid, kWarp, 0, stream, params, tiles);
}

}  // namespace phalanx::kernels::cuda
