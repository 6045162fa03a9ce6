// Attention of up to sixteen query rows over a cache that is read as BF16: decode, and short
// chunks.
//
// What bounds it is memory, so a block of threads asks for keys and values long before it works on
// them: each warp has a KV block of its own on the way to shared memory, and asks for the next
// one's keys as soon as it has its scores, for the values as soon as it has used these. A
// multiprocessor then waits for 64 KiB or more at a time (head_dim 128), where some 30 KiB are what
// keeps an H200's memory busy.
//
// A stripe's running softmax goes block by block, but only its maxima, factors and sums are in a
// chain. So warps take several blocks of a stripe at once: scores and block maxima; then each knows
// the running maximum before and after its block; then p . V of each block from +0; then every
// thread adds its own elements of the products in the blocks' order. The warps go round by round
// where a stripe has many blocks; of stripes with fewer, one, two, four or eight share them, and
// one round does it. (One stripe alone would leave warps idle: decode after 512 tokens has two
// blocks in each of eight stripes.)
#include <cstddef>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"

namespace phalanx::kernels::cuda {
namespace {

// In place of alpha: the row doesn't see the block.
constexpr float kNotSeen = -1.0f;
constexpr int kUnit = 16;  // bytes of an asynchronous copy

// Neighbouring columns, which are loaded and stored together.
struct alignas(8) Pair {
  float x;
  float y;
};

// Has `bytes` copied to shared memory, by all lanes of a warp. kMost: of a head of kD columns.
template <int kMost>
__device__ __forceinline__ void CopyRun(uint8_t* to, const uint8_t* from, int bytes, int lane) {
  const int mine = lane * kUnit;
  if (bytes == kMost) {
#pragma unroll
    for (int at = 0; at < kMost; at += kWarp * kUnit) {
      CopyAsync(to + mine + at, from + mine + at, true);
    }
  } else {
    for (int at = mine; at < bytes; at += kWarp * kUnit) CopyAsync(to + at, from + at, true);
  }
}
// The scales of 32 keys, or of 32 values.
__device__ __forceinline__ void CopyScales(uint8_t* to, const uint8_t* from, int lane) {
  if (lane < kKvTokens / kUnit) CopyAsync(to + lane * kUnit, from + lane * kUnit, true);
}

// What multiprocessors have room for: registers are limited to what lets these be there at once.
constexpr int BlocksOfSm(int d, int warps) {
  return d <= 64 ? 16 / warps : d <= 128 ? 12 / warps : 2;
}

// kRows: of a tile at most, 8 or 16. `warps_given` of a block's for each of its stripes, and as
// many blocks of KV at once; kOneRound: no stripe has more of them. Otherwise all kWarps are one
// stripe's. grid: tiles, groups, stripes (those that share a block count once). Dynamic shared
// memory: [kWarps][head_bytes] keys, values and scales, then [kWarps][most_rows][dv + 8] products.
template <int kD, int kWarps, int kRows, bool kFp8, bool kOneRound>
__global__ void __launch_bounds__(kWarps* kWarp, BlocksOfSm(kD, kWarps))
    AttendFewKernel(const AttentionParams p, const RowTile* tiles, int most_rows, int warps_given) {
  BeginInTurn();
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kHalves = kRows / kTileColumns;
  constexpr int kElement = kFp8 ? 1 : 2;
  constexpr int kPairs = kRows * kD / 2 / kThreads;  // of a thread
  PHALANX_DYNAMIC_SHARED(uint8_t, memory);
  __shared__ float block_max[kWarps][kRows];
  __shared__ float new_max[kWarps][kRows];
  __shared__ float alpha[kWarps][kRows];
  __shared__ float block_sum[kWarps][kRows];
  __shared__ float running_max[kRows];
  __shared__ float* state_of_row[kRows];  // the partial softmax of the block's first stripe

  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  const HeadGroup group = p.groups[blockIdx.y];
  const int heads = group.end - group.begin;
  const int left = sequence.row_count * heads - tile.first;
  if (left <= 0) return;
  const int num_rows = left < most_rows ? left : most_rows;
  const int64_t first_position = sequence.start + tile.first / heads;
  const int64_t last_position = sequence.start + (tile.first + num_rows - 1) / heads;

  const int warps = kOneRound ? warps_given : kWarps;
  const int stripes = p.stripe_end - p.stripe_begin;
  const int together = kOneRound ? kWarps / warps : 1;
  const int first_stripe = static_cast<int>(blockIdx.z) * together;
  // Of the block.
  const int num_stripes = together < stripes - first_stripe ? together : stripes - first_stripe;

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row_of_lane = lane / 4;
  const int my_stripe = kOneRound ? warp / warps : 0;  // of the block's
  const int first_warp = my_stripe * warps;

  const BlockWalk walk =
      BlocksOf(p, p.stripe_begin + first_stripe + my_stripe, first_position, last_position);
  const int head_bytes = static_cast<int>(p.layout.head_bytes);
  const int key_bytes = static_cast<int>(p.layout.key_bytes);
  const int scales = static_cast<int>(p.layout.scales);
  uint8_t* const mine = memory + warp * head_bytes;
  auto* const products = reinterpret_cast<float*>(memory + kWarps * head_bytes);
  const auto head_of = [&](int physical) {
    return static_cast<const uint8_t*>(p.cache) + p.layout.Keys(physical, group.kv_head);
  };
  const auto fetch_keys = [&](const uint8_t* head) {
    CopyRun<kD * kKvTokens * kElement>(mine, head, key_bytes, lane);
    if constexpr (kFp8) CopyScales(mine + scales, head + scales, lane);
  };
  const auto fetch_values = [&](const uint8_t* head) {
    CopyRun<kD * kKvTokens * kElement>(mine + key_bytes, head + key_bytes, scales - key_bytes,
                                       lane);
    if constexpr (kFp8) {
      CopyScales(mine + scales + kKvTokens, head + scales + kKvTokens, lane);
    }
  };

  // This warp's block of the round.
  int64_t block = walk.first + (warp - first_warp) * p.num_stripes;
  bool has = my_stripe < num_stripes && block <= walk.last;
  const int32_t* const table = p.tables + sequence.table_begin;
  if (has) {
    const uint8_t* const head = head_of(table[block]);
    fetch_keys(head);
    CommitCopies();
    fetch_values(head);
  } else {
    CommitCopies();  // an empty group counts, too
  }
  CommitCopies();

  QueryRow rows[kHalves];
  for (int i = 0; i < kHalves; ++i) {
    const int r = row_of_lane + 8 * i;
    rows[i] =
        r < num_rows ? RowOfTile(p, sequence, group, tile.first + r) : QueryRow{false, 0, 0, -1};
  }
  QueryFragments<kD / kGroupK, kHalves> q;
  q.Load(p, rows, lane);

  const int value_tiles = static_cast<int>(p.layout.dv / kTileColumns);
  const int dv = static_cast<int>(p.layout.dv);
  // Eight floats between rows: those that the lanes of a warp write at once lie in other banks.
  const int row_stride = dv + 8;

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t width = 2 + p.head_dim;
  if (thread < kRows) running_max[thread] = kNegativeInfinity;
  if (thread < num_rows) {
    const QueryRow r = RowOfTile(p, sequence, group, tile.first + thread);
    state_of_row[thread] =
        p.partials + ((r.row * p.num_heads + r.head) * stripes + first_stripe) * width;
  }
  float running_sum = 0.0f;  // of row `thread`, in the first kRows threads
  float values[kPairs]
              [2];  // pair i: of index thread + i kThreads; row and columns by RowOf, ColumnOf
#pragma unroll
  for (int i = 0; i < kPairs; ++i) values[i][0] = values[i][1] = 0.0f;
  const auto row_of = [&](int i) { return (thread + i * kThreads) / (kD / 2); };
  const auto column_of = [&](int i) { return (thread + i * kThreads) % (kD / 2) * 2; };
  const bool even = p.head_dim % 2 == 0;
  const auto put = [&](float* state, int column, const float(&pair)[2]) {
    float* const to = state + 2 + column;
    if (even) {
      *reinterpret_cast<Pair*>(to) = {pair[0], pair[1]};
      return;
    }
    to[0] = pair[0];
    if (column + 1 < p.head_dim) to[1] = pair[1];
  };
  __syncthreads();

  const int64_t step = int64_t{kWarps} * p.num_stripes;
  for (int64_t base = walk.first; kOneRound || base <= walk.last; base += step) {
    const bool more = !kOneRound && block + step <= walk.last;
    const int next = more ? table[block + step] : 0;
    // Every row sees all of the block, as of most blocks of a long context.
    const bool whole = has && (block + 1) * kKvTokens - 1 <= first_position &&
                       (p.window == 0 || block * kKvTokens > last_position - p.window);
    Visible visible[kHalves];
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      visible[i] =
          has && rows[i].valid ? VisibleTokens(rows[i].position, block, p.window) : Visible{0, 0};
    }
    float scores[kTokenTiles][2 * kHalves];
    float max[kHalves];
#pragma unroll
    for (int i = 0; i < kHalves; ++i) max[i] = kNegativeInfinity;
    WaitForCopies<1>();
    __syncwarp();
    if (whole) {
      ScoreBlock</*kWhole=*/true, kD / kGroupK, kFp8>(p, q, mine, visible, lane, scores);
    } else if (has) {
      ScoreBlock</*kWhole=*/false, kD / kGroupK, kFp8>(p, q, mine, visible, lane, scores);
    }
    if constexpr (!kOneRound) {
      __syncwarp();  // nobody reads these keys any more
      if (more) fetch_keys(head_of(next));
      CommitCopies();
    }
    if (has) BlockMax(scores, max);
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kHalves; ++i) block_max[warp][row_of_lane + 8 * i] = max[i];
    }
    __syncthreads();

    float after[kHalves];
    float sum[kHalves];
    float factor[kHalves];
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      const int r = row_of_lane + 8 * i;
      const bool seen = !visible[i].empty();
      float before = running_max[r];
#pragma unroll
      for (int w = 0; w < kWarps - 1; ++w) {
        const float other = block_max[w][r];
        if (w >= first_warp && w < warp) before = Max(before, other);
      }
      after[i] = seen ? Max(before, max[i]) : before;
      factor[i] = seen ? Alpha(before, after[i]) : kNotSeen;
      sum[i] = 0.0f;
    }
    if (whole) {
      Probabilities</*kWhole=*/true>(after, visible, lane, scores, sum);
    } else if (has) {
      Probabilities</*kWhole=*/false>(after, visible, lane, scores, sum);
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
        const int r = row_of_lane + 8 * i;
        new_max[warp][r] = after[i];
        alpha[warp][r] = factor[i];
        block_sum[warp][r] = sum[i];
      }
    }
    WaitForCopies<kOneRound ? 0 : 1>();
    __syncwarp();
    if (has) {
      uint32_t a[2][4];
      PackProbabilities(scores, a);
      float* const to =
          products + (warp * most_rows + row_of_lane) * row_stride + ResultColumn(lane, 0);
      const auto take = [&](const auto& v, int t) {
        float product[4];
        ValueTile(a, v, t, product);
#pragma unroll
        for (int i = 0; i < kHalves; ++i) {
          if (row_of_lane + 8 * i >= num_rows) continue;
          *reinterpret_cast<Pair*>(to + 8 * i * row_stride + t * kTileColumns) = {
              product[2 * i], product[2 * i + 1]};
        }
      };
      if (whole && dv == kD) {
        const Values<kFp8, /*kWhole=*/true> v(p.layout, mine, 0, kKvTokens, lane);
#pragma unroll 8
        for (int t = 0; t < kD / kTileColumns; ++t) take(v, t);
      } else {
        const Visible oldest = VisibleTokens(first_position, block, p.window);
        const Visible newest = VisibleTokens(last_position, block, p.window);
        const Values<kFp8, /*kWhole=*/false> v(p.layout, mine, oldest.begin, newest.end, lane);
#pragma unroll 4
        for (int t = 0; t < value_tiles; ++t) take(v, t);
      }
    }
    if constexpr (!kOneRound) {
      __syncwarp();  // nor these values
      if (more) fetch_values(head_of(next));
      CommitCopies();
    }
    __syncthreads();

    // What the warps [begin, begin + warps) have made of a row is added in the blocks' order.
    const auto add_pair = [&](float(&running)[2], int begin, int row, int column) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (kOneRound && w >= warps) break;
        const float factor_of_row = alpha[begin + w][row];
        const Pair product = *reinterpret_cast<const Pair*>(
            products + ((begin + w) * most_rows + row) * row_stride + column);
        if (factor_of_row == kNotSeen) continue;
        running[0] = Fma(running[0], factor_of_row, product.x);
        running[1] = Fma(running[1], factor_of_row, product.y);
      }
    };
    const auto add_sum = [&](float running, int begin, int row) {
      for (int w = begin; w < begin + warps; ++w) {
        if (alpha[w][row] == kNotSeen) continue;
        running = Fma(running, alpha[w][row], block_sum[w][row]);
      }
      return running;
    };
    if constexpr (kOneRound) {
      for (int s = 0; s < num_stripes; ++s) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const int row = row_of(i);
          const int column = column_of(i);
          if (row >= num_rows || column >= p.head_dim) continue;
          float pair[2] = {0.0f, 0.0f};
          add_pair(pair, s * warps, row, column);
          put(state_of_row[row] + s * width, column, pair);
        }
      }
      for (int i = thread; i < num_stripes * kRows; i += kThreads) {
        const int row = i % kRows;
        const int s = i / kRows;
        if (row >= num_rows) continue;
        float* const state = state_of_row[row] + s * width;
        state[0] = new_max[(s + 1) * warps - 1][row];
        state[1] = add_sum(0.0f, s * warps, row);
      }
      return;
    } else {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int row = row_of(i);
        const int column = column_of(i);
        if (row < num_rows && column < dv) add_pair(values[i], 0, row, column);
      }
      if (thread < num_rows) {
        running_sum = add_sum(running_sum, 0, thread);
        // Read by others after the next round's first barrier.
        running_max[thread] = new_max[kWarps - 1][thread];
      }
    }
    block += step;
    has = more;
  }

  if (thread < num_rows) {
    float* state = state_of_row[thread];
    state[0] = running_max[thread];
    state[1] = running_sum;
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int row = row_of(i);
    const int column = column_of(i);
    if (row < num_rows && column < p.head_dim) put(state_of_row[row], column, values[i]);
  }
}

template <int kD, int kWarps, int kRows>
cudaError_t LaunchFor(const AttentionParams& p, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, int64_t most_blocks, cudaStream_t stream) {
  const auto shared = static_cast<size_t>(FewAttentionBytes(p.layout, kWarps, most_rows));
  const int warps = WarpsOfStripe(most_blocks, kWarps);
  const int together = kWarps / warps;
  const int stripes = p.stripe_end - p.stripe_begin;
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(p.num_groups),
                  static_cast<unsigned>((stripes + together - 1) / together));
  const bool one_round = most_blocks <= kWarps;
  const auto kernel = p.layout.fp8 ? one_round ? AttendFewKernel<kD, kWarps, kRows, true, true>
                                               : AttendFewKernel<kD, kWarps, kRows, true, false>
                      : one_round ? AttendFewKernel<kD, kWarps, kRows, false, true>
                                   : AttendFewKernel<kD, kWarps, kRows, false, false>;
  return Launch(kernel, grid, kWarps * kWarp, shared, stream, p, tiles, most_rows, warps);
}

}  // namespace

cudaError_t AttendFew(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, int64_t most_blocks, int warps, cudaStream_t stream) {
  if (num_tiles == 0 || params.num_groups == 0 || params.stripe_end <= params.stripe_begin) {
    return cudaSuccess;
  }
  const bool eight = most_rows <= kFewRows / 2;
  const auto launch = params.head_dim > 128  ? LaunchFor<256, 2, 8>
                      : params.head_dim > 64 ? warps == 8 ? LaunchFor<128, 8, 8>
                                               : eight    ? LaunchFor<128, 4, 8>
                                                          : LaunchFor<128, 4, 16>
                      : warps == 8 ? LaunchFor<64, 8, 8>
                      : eight                ? LaunchFor<64, 4, 8>
                                             : LaunchFor<64, 4, 16>;
  return launch(params, tiles, num_tiles, most_rows, most_blocks, stream);
}

}  // namespace phalanx::kernels::cuda
