// Attention of up to sixteen query rows over a cache that is read as BF16: decode, and short
// chunks.
//
// A stripe's running softmax goes block by block, but only its maxima, factors and sums are in a
// chain. So eight warps take eight blocks of the stripe at once: scores and block maxima; then each
// knows the running maximum before and after its block; then p . V of each block from +0; then
// every thread adds its own elements of the eight products in the blocks' order.
#include <cstddef>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// In place of alpha: the row doesn't see the block.
constexpr float kNotSeen = -1.0f;

// grid: tiles, groups, stripes. Dynamic shared memory: [kWarps][most_rows][dv] products.
template <int kD, bool kFp8>
__global__ void __launch_bounds__(kThreads, kD <= 128 ? 2 : 1)
    AttendFewKernel(const AttentionParams p, const RowTile* tiles, int most_rows) {
  constexpr int kElements = kFewRows * kD / kThreads;
  PHALANX_DYNAMIC_SHARED(float, products);
  __shared__ float block_max[kWarps][kFewRows];
  __shared__ float new_max[kWarps][kFewRows];
  __shared__ float alpha[kWarps][kFewRows];
  __shared__ float block_sum[kWarps][kFewRows];
  __shared__ float running_max[kFewRows];

  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  const HeadGroup group = p.groups[blockIdx.y];
  const int64_t heads = group.end - group.begin;
  const int64_t left = sequence.row_count * heads - tile.first;
  if (left <= 0) return;
  const int num_rows = static_cast<int>(left < kFewRows ? left : kFewRows);
  const int stripe = p.stripe_begin + static_cast<int>(blockIdx.z);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int row_of_lane = lane / 4;

  QueryRow rows[2];
  for (int i = 0; i < 2; ++i) {
    const int r = row_of_lane + 8 * i;
    rows[i] =
        r < num_rows ? RowOfTile(p, sequence, group, tile.first + r) : QueryRow{false, 0, 0, -1};
  }
  QueryFragments<kD / kGroupK> q;
  q.Load(p, rows, lane);

  const int64_t first_position = sequence.start + tile.first / heads;
  const int64_t last_position = sequence.start + (tile.first + num_rows - 1) / heads;
  const BlockWalk walk = BlocksOf(p, stripe, first_position, last_position);
  const auto* cache = static_cast<const uint8_t*>(p.cache);
  const int value_tiles = static_cast<int>(p.layout.dv / kTileColumns);
  const int dv = static_cast<int>(p.layout.dv);

  if (threadIdx.x < kFewRows) running_max[threadIdx.x] = kNegativeInfinity;
  float running_sum = 0.0f;  // of row threadIdx.x, in the first sixteen threads
  float values[kElements];   // element e: row e / kD, column e % kD, e = threadIdx.x + i kThreads
#pragma unroll
  for (int i = 0; i < kElements; ++i) values[i] = 0.0f;
  __syncthreads();

  for (int64_t base = walk.first; base <= walk.last; base += kWarps * p.num_stripes) {
    const int64_t block = base + warp * p.num_stripes;
    const bool has = block <= walk.last;
    Visible visible[2];
    float scores[kTokenTiles][4];
    float max[2] = {kNegativeInfinity, kNegativeInfinity};
    const uint8_t* data = nullptr;
    for (int i = 0; i < 2; ++i) {
      visible[i] =
          has && rows[i].valid ? VisibleTokens(rows[i].position, block, p.window) : Visible{0, 0};
    }
    if (has) {
      const int64_t physical = p.tables[sequence.table_begin + block];
      data = cache + p.layout.Keys(physical, group.kv_head);
      ScoreBlock<kD / kGroupK, kFp8>(p, q, data, visible, lane, scores);
      BlockMax(scores, max);
    }
    if (lane % 4 == 0) {
      block_max[warp][row_of_lane] = max[0];
      block_max[warp][row_of_lane + 8] = max[1];
    }
    __syncthreads();

    float after[2];
    float sum[2] = {0.0f, 0.0f};
    float factor[2];
    for (int i = 0; i < 2; ++i) {
      const int r = row_of_lane + 8 * i;
      float before = running_max[r];
      for (int w = 0; w < warp; ++w) before = Max(before, block_max[w][r]);
      after[i] = visible[i].empty() ? before : Max(before, max[i]);
      factor[i] = visible[i].empty() ? kNotSeen : Alpha(before, after[i]);
    }
    if (has) Probabilities(after, visible, lane, scores, sum);
    if (lane % 4 == 0) {
      for (int i = 0; i < 2; ++i) {
        const int r = row_of_lane + 8 * i;
        new_max[warp][r] = after[i];
        alpha[warp][r] = factor[i];
        block_sum[warp][r] = sum[i];
      }
    }
    if (has) {
      uint32_t a[2][4];
      PackProbabilities(scores, a);
      const Visible oldest = VisibleTokens(first_position, block, p.window);
      const Visible newest = VisibleTokens(last_position, block, p.window);
      const Values<kFp8> v(p, data, oldest.begin, newest.end, lane);
      float* to = products + warp * most_rows * dv;
#pragma unroll 4
      for (int t = 0; t < value_tiles; ++t) {
        float product[4];
        ValueTile(a, v, t, product);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = ResultRow(lane, r);
          if (row < num_rows) to[row * dv + t * kTileColumns + ResultColumn(lane, r)] = product[r];
        }
      }
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int row = (threadIdx.x + i * kThreads) / kD;
      const int column = (threadIdx.x + i * kThreads) % kD;
      if (row >= num_rows || column >= dv) continue;
      for (int w = 0; w < kWarps; ++w) {
        const float factor_of_row = alpha[w][row];
        if (factor_of_row == kNotSeen) continue;
        values[i] = Fma(values[i], factor_of_row, products[(w * most_rows + row) * dv + column]);
      }
    }
    if (threadIdx.x < kFewRows) {
      const int row = threadIdx.x;
      for (int w = 0; w < kWarps; ++w) {
        if (alpha[w][row] == kNotSeen) continue;
        running_sum = Fma(running_sum, alpha[w][row], block_sum[w][row]);
      }
      // Read by others after the next round's first barrier.
      running_max[row] = new_max[kWarps - 1][row];
    }
  }

  const int64_t stripes = p.stripe_end - p.stripe_begin;
  const int64_t width = 2 + p.head_dim;
  const auto state_of = [&](int row) {
    const QueryRow r = RowOfTile(p, sequence, group, tile.first + row);
    return p.partials + ((r.row * p.num_heads + r.head) * stripes + blockIdx.z) * width;
  };
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < num_rows) {
    float* state = state_of(thread);
    state[0] = running_max[thread];
    state[1] = running_sum;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int row = (threadIdx.x + i * kThreads) / kD;
    const int column = (threadIdx.x + i * kThreads) % kD;
    if (row < num_rows && column < p.head_dim) state_of(row)[2 + column] = values[i];
  }
}

template <int kD>
cudaError_t LaunchFor(const AttentionParams& p, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, cudaStream_t stream) {
  const size_t shared = sizeof(float) * kWarps * most_rows * p.layout.dv;
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(p.num_groups),
                  static_cast<unsigned>(p.stripe_end - p.stripe_begin));
  const auto kernel = p.layout.fp8 ? AttendFewKernel<kD, true> : AttendFewKernel<kD, false>;
  return Launch(kernel, grid, kThreads, shared, stream, p, tiles, most_rows);
}

}  // namespace

cudaError_t AttendFew(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, cudaStream_t stream) {
  if (num_tiles == 0 || params.num_groups == 0 || params.stripe_end <= params.stripe_begin) {
    return cudaSuccess;
  }
  if (params.head_dim <= 64) return LaunchFor<64>(params, tiles, num_tiles, most_rows, stream);
  if (params.head_dim <= 128) return LaunchFor<128>(params, tiles, num_tiles, most_rows, stream);
  return LaunchFor<256>(params, tiles, num_tiles, most_rows, stream);
}

}  // namespace phalanx::kernels::cuda
