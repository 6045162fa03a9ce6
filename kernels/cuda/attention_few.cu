// Attention of up to sixteen query rows over a cache that is read as BF16: decode, and short
// chunks.
//
// A stripe's running softmax goes block by block, but only its maxima, factors and sums are in a
// chain. So warps take several blocks of a stripe at once: scores and block maxima; then each knows
// the running maximum before and after its block; then p . V of each block from +0; then every
// thread adds its own elements of the products in the blocks' order. Eight warps go round by round
// where a stripe has many blocks; of stripes with fewer, two, four or eight share them, and one
// round does it. (One stripe alone would leave warps idle: decode after 512 tokens has two blocks
// in each of eight stripes.)
#include <cstddef>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/prefetch.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = kAttendWarps;
constexpr int kThreads = kWarps * kWarp;
// In place of alpha: the row doesn't see the block.
constexpr float kNotSeen = -1.0f;

// `warps` of a block's for each of its stripes, and as many blocks of KV at once; kOneRound: no
// stripe has more of them. Otherwise `warps` is kWarps. grid: tiles, groups, stripes (those that
// share a block count once). Dynamic shared memory: [kWarps][most_rows][dv] products.
template <int kD, bool kFp8, bool kOneRound>
__global__ void __launch_bounds__(kThreads, kD <= 128 ? 2 : 1)
    AttendFewKernel(const AttentionParams p, const RowTile* tiles, int most_rows, int warps_given) {
  BeginInTurn();
  constexpr int kElements = kFewRows * kD / kThreads;
  PHALANX_DYNAMIC_SHARED(float, products);
  __shared__ float block_max[kWarps][kFewRows];
  __shared__ float new_max[kWarps][kFewRows];
  __shared__ float alpha[kWarps][kFewRows];
  __shared__ float block_sum[kWarps][kFewRows];
  __shared__ float running_max[kFewRows];
  __shared__ float* state_of_row[kFewRows];  // the partial softmax of the block's first stripe

  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  const HeadGroup group = p.groups[blockIdx.y];
  const int64_t heads = group.end - group.begin;
  const int64_t left = sequence.row_count * heads - tile.first;
  if (left <= 0) return;
  const int num_rows = static_cast<int>(left < most_rows ? left : most_rows);
  const int64_t first_position = sequence.start + tile.first / heads;
  const int64_t last_position = sequence.start + (tile.first + num_rows - 1) / heads;

  const int warps = kOneRound ? warps_given : kWarps;
  const int stripes = p.stripe_end - p.stripe_begin;
  const int first_stripe = static_cast<int>(blockIdx.z) * (kWarps / warps);
  // Of the block.
  const int num_stripes =
      kWarps / warps < stripes - first_stripe ? kWarps / warps : stripes - first_stripe;

  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int row_of_lane = lane / 4;
  const int my_stripe = kOneRound ? warp / warps : 0;  // of the block's
  const int first_warp = my_stripe * warps;

  QueryRow rows[2];
  for (int i = 0; i < 2; ++i) {
    const int r = row_of_lane + 8 * i;
    rows[i] =
        r < num_rows ? RowOfTile(p, sequence, group, tile.first + r) : QueryRow{false, 0, 0, -1};
  }
  QueryFragments<kD / kGroupK> q;
  q.Load(p, rows, lane);

  const BlockWalk walk =
      BlocksOf(p, p.stripe_begin + first_stripe + my_stripe, first_position, last_position);
  const auto* cache = static_cast<const uint8_t*>(p.cache);
  const int value_tiles = static_cast<int>(p.layout.dv / kTileColumns);
  const int dv = static_cast<int>(p.layout.dv);

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t width = 2 + p.head_dim;
  if (thread < kFewRows) running_max[thread] = kNegativeInfinity;
  if (thread < num_rows) {
    const QueryRow r = RowOfTile(p, sequence, group, tile.first + thread);
    state_of_row[thread] =
        p.partials + ((r.row * p.num_heads + r.head) * stripes + first_stripe) * width;
  }
  float running_sum = 0.0f;  // of row `thread`, in the first sixteen threads
  float values[kElements];   // element e: row e / kD, column e % kD, e = thread + i kThreads
#pragma unroll
  for (int i = 0; i < kElements; ++i) values[i] = 0.0f;
  __syncthreads();

  for (int64_t base = walk.first; kOneRound || base <= walk.last; base += kWarps * p.num_stripes) {
    const int64_t block = base + (warp - first_warp) * p.num_stripes;
    const bool has = my_stripe < num_stripes && block <= walk.last;
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
      // Values come while scores are computed.
      PrefetchRun(data + p.layout.key_bytes, p.layout.scales - p.layout.key_bytes, lane);
      ScoreBlock</*kWhole=*/false, kD / kGroupK, kFp8>(p, q, data, visible, lane, scores);
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
      for (int w = first_warp; w < warp; ++w) before = Max(before, block_max[w][r]);
      after[i] = visible[i].empty() ? before : Max(before, max[i]);
      factor[i] = visible[i].empty() ? kNotSeen : Alpha(before, after[i]);
    }
    if (has) Probabilities</*kWhole=*/false>(after, visible, lane, scores, sum);
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
      const Values<kFp8, /*kWhole=*/false> v(p.layout, data, oldest.begin, newest.end, lane);
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

    // `running` with what warps [begin, begin + count) have made of an element, or of a row's sum.
    const auto add = [&](float running, int begin, int count, int row, const auto& term_of) {
    // Not all of them at once: there are threads enough to wait for each other's loads, and
    // registers are few.
#pragma unroll 2
      for (int w = begin; w < begin + count; ++w) {
        const float factor_of_row = alpha[w][row];
        if (factor_of_row == kNotSeen) continue;
        running = Fma(running, factor_of_row, term_of(w));
      }
      return running;
    };
    const auto product_at = [&](int row, int column) {
      return [=](int w) { return products[(w * most_rows + row) * dv + column]; };
    };
    const auto sum_of = [&](int row) { return [&, row](int w) { return block_sum[w][row]; }; };
    if constexpr (kOneRound) {
      for (int s = 0; s < num_stripes; ++s) {
        for (int e = thread; e < num_rows * kD; e += kThreads) {
          const int row = e / kD;
          const int column = e % kD;
          if (column >= p.head_dim) continue;
          state_of_row[row][s * width + 2 + column] =
              add(0.0f, s * warps, warps, row, product_at(row, column));
        }
      }
      const int row = thread % kFewRows;
      const int s = thread / kFewRows;
      if (s < num_stripes && row < num_rows) {
        float* state = state_of_row[row] + s * width;
        state[0] = new_max[(s + 1) * warps - 1][row];
        state[1] = add(0.0f, s * warps, warps, row, sum_of(row));
      }
      return;
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const int row = (thread + i * kThreads) / kD;
        const int column = (thread + i * kThreads) % kD;
        if (row >= num_rows || column >= dv) continue;
        values[i] = add(values[i], 0, kWarps, row, product_at(row, column));
      }
      if (thread < kFewRows) {
        const int row = thread;
        running_sum = add(running_sum, 0, kWarps, row, sum_of(row));
        // Read by others after the next round's first barrier.
        running_max[row] = new_max[kWarps - 1][row];
      }
    }
  }

  if (thread < num_rows) {
    float* state = state_of_row[thread];
    state[0] = running_max[thread];
    state[1] = running_sum;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int row = (thread + i * kThreads) / kD;
    const int column = (thread + i * kThreads) % kD;
    if (row < num_rows && column < p.head_dim) state_of_row[row][2 + column] = values[i];
  }
}

template <int kD>
cudaError_t LaunchFor(const AttentionParams& p, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, int64_t most_blocks, cudaStream_t stream) {
  const size_t shared = sizeof(float) * kWarps * most_rows * p.layout.dv;
  const int warps = WarpsOfStripe(most_blocks);
  const int together = kWarps / warps;
  const int stripes = p.stripe_end - p.stripe_begin;
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(p.num_groups),
                  static_cast<unsigned>((stripes + together - 1) / together));
  const bool one_round = most_blocks <= kWarps;
  const auto kernel =
      p.layout.fp8 ? one_round ? AttendFewKernel<kD, true, true> : AttendFewKernel<kD, true, false>
      : one_round ? AttendFewKernel<kD, false, true>
                   : AttendFewKernel<kD, false, false>;
  return Launch(kernel, grid, kThreads, shared, stream, p, tiles, most_rows, warps);
}

}  // namespace

cudaError_t AttendFew(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, int64_t most_blocks, cudaStream_t stream) {
  if (num_tiles == 0 || params.num_groups == 0 || params.stripe_end <= params.stripe_begin) {
    return cudaSuccess;
  }
  const auto launch = params.head_dim <= 64    ? LaunchFor<64>
                      : params.head_dim <= 128 ? LaunchFor<128>
                                               : LaunchFor<256>;
  return launch(params, tiles, num_tiles, most_rows, most_blocks, stream);
}

}  // namespace phalanx::kernels::cuda
