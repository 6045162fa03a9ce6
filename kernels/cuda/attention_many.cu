// Attention of many query rows over a cache that is read as BF16: eight warps of sixteen rows walk
// a stripe's blocks together and share each block's keys and values, which arrive in shared memory
// while the blocks before it are worked on.
#include <cstddef>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kWarps = kManyRows / kTileRows;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 3;

// grid: tiles, groups, stripes. Dynamic shared memory: [kStages][head_bytes].
template <int kD, bool kFp8>
__global__ void __launch_bounds__(kThreads)
    AttendManyKernel(const AttentionParams p, const RowTile* tiles) {
  BeginInTurn();
  constexpr int kTiles = kD / kTileColumns;
  PHALANX_DYNAMIC_SHARED(uint8_t, blocks);
  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  const HeadGroup group = p.groups[blockIdx.y];
  const int64_t heads = group.end - group.begin;
  const int64_t left = sequence.row_count * heads - tile.first;
  if (left <= 0) return;
  const int64_t num_rows = left < kManyRows ? left : kManyRows;
  const int stripe = p.stripe_begin + static_cast<int>(blockIdx.z);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;

  QueryRow rows[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t r = warp * kTileRows + lane / 4 + 8 * i;
    rows[i] =
        r < num_rows ? RowOfTile(p, sequence, group, tile.first + r) : QueryRow{false, 0, 0, -1};
  }
  QueryFragments<kD / kGroupK> q;
  q.Load(p, rows, lane);

  const auto position_of = [&](int64_t r) { return sequence.start + (tile.first + r) / heads; };
  const BlockWalk walk = BlocksOf(p, stripe, position_of(0), position_of(num_rows - 1));
  // This warp's oldest and newest rows.
  const bool any_row = warp * kTileRows < num_rows;
  const int64_t last_of_warp =
      num_rows < (warp + 1) * kTileRows ? num_rows - 1 : (warp + 1) * kTileRows - 1;
  const int64_t first_position = any_row ? position_of(warp * kTileRows) : -1;
  const int64_t last_position = any_row ? position_of(last_of_warp) : -1;

  float running_max[2] = {kNegativeInfinity, kNegativeInfinity};
  float running_sum[2] = {0.0f, 0.0f};
  float values[kTiles][4];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    values[t][0] = values[t][1] = values[t][2] = values[t][3] = 0.0f;
  }

  const auto fetch = [&](int64_t block, int stage) {
    if (block <= walk.last) {
      CopyBlock<kThreads, kD, kFp8>(p, p.tables[sequence.table_begin + block], group.kv_head,
                                    blocks + stage * p.layout.head_bytes);
    }
    CommitCopies();  // an empty group counts, too
  };
  for (int s = 0; s < kStages - 1; ++s) fetch(walk.first + s * p.num_stripes, s);

  const int value_tiles = static_cast<int>(p.layout.dv / kTileColumns);
  const auto take = [&](int64_t block, const uint8_t* data, const Visible& oldest,
                        const Visible& newest, auto whole) {
    constexpr bool kWhole = decltype(whole)::kValue;
    Visible visible[2];
    for (int i = 0; i < 2; ++i) {
      visible[i] = rows[i].valid ? VisibleTokens(rows[i].position, block, p.window) : Visible{0, 0};
    }
    float scores[kTokenTiles][4];
    float max[2];
    float sum[2];
    float after[2];
    float alpha[2];
    ScoreBlock<kWhole, kD / kGroupK, kFp8>(p, q, data, visible, lane, scores);
    BlockMax(scores, max);
    bool seen[2];
    for (int i = 0; i < 2; ++i) {
      seen[i] = kWhole || !visible[i].empty();
      after[i] = seen[i] ? Max(running_max[i], max[i]) : running_max[i];
      alpha[i] = Alpha(running_max[i], after[i]);
    }
    Probabilities<kWhole>(after, visible, lane, scores, sum);
    for (int i = 0; i < 2; ++i) {
      if (seen[i]) running_sum[i] = Fma(running_sum[i], alpha[i], sum[i]);
      running_max[i] = after[i];
    }
    uint32_t a[2][4];
    PackProbabilities(scores, a);
    const Values<kFp8, kWhole> v(p.layout, data, oldest.begin, newest.end, lane);
    const auto add_tile = [&](int t) {
      float product[4];
      ValueTile(a, v, t, product);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float next = Fma(values[t][r], alpha[r / 2], product[r]);
        values[t][r] = seen[r / 2] ? next : values[t][r];
      }
    };
    // As in ScoreBlock: a loop without an early end lets tiles' loads and products overlap.
    if (value_tiles == kTiles) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) add_tile(t);
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (t >= value_tiles) break;
        add_tile(t);
      }
    }
  };
  int stage = 0;
  for (int64_t block = walk.first; block <= walk.last; block += p.num_stripes) {
    WaitForCopies<kStages - 2>();
    // Everybody's copies of this block are here, and nobody reads the stage that is filled next.
    __syncthreads();
    fetch(block + (kStages - 1) * p.num_stripes, (stage + kStages - 1) % kStages);
    const uint8_t* data = blocks + stage * p.layout.head_bytes;
    stage = (stage + 1) % kStages;

    const Visible oldest = VisibleTokens(first_position, block, p.window);
    const Visible newest = VisibleTokens(last_position, block, p.window);
    // No row of this warp sees the block: it is in the future of the newest, or behind the window
    // of the oldest.
    if (!any_row || newest.end == 0 || oldest.begin == kKvTokens) continue;
    // Most blocks of a long prompt are seen whole.
    if (oldest.end == kKvTokens && newest.begin == 0) {
      take(block, data, oldest, newest, Flag<true>());
    } else {
      take(block, data, oldest, newest, Flag<false>());
    }
  }

  const int64_t stripes = p.stripe_end - p.stripe_begin;
  const int64_t width = 2 + p.head_dim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows[i].valid) continue;
    float* state =
        p.partials + ((rows[i].row * p.num_heads + rows[i].head) * stripes + blockIdx.z) * width;
    if (lane % 4 == 0) {
      state[0] = running_max[i];
      state[1] = running_sum[i];
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = t * kTileColumns + ResultColumn(lane, e);
        if (column < p.head_dim) state[2 + column] = values[t][2 * i + e];
      }
    }
  }
}

template <int kD>
cudaError_t LaunchFor(const AttentionParams& p, const RowTile* tiles, int64_t num_tiles,
                      cudaStream_t stream) {
  const size_t shared = kStages * p.layout.head_bytes;
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(p.num_groups),
                  static_cast<unsigned>(p.stripe_end - p.stripe_begin));
  const auto kernel = p.layout.fp8 ? AttendManyKernel<kD, true> : AttendManyKernel<kD, false>;
  return Launch(kernel, grid, kThreads, shared, stream, p, tiles);
}

}  // namespace

cudaError_t AttendMany(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                       cudaStream_t stream) {
  if (num_tiles == 0 || params.num_groups == 0 || params.stripe_end <= params.stripe_begin) {
    return cudaSuccess;
  }
  if (params.head_dim <= 64) return LaunchFor<64>(params, tiles, num_tiles, stream);
  if (params.head_dim <= 128) return LaunchFor<128>(params, tiles, num_tiles, stream);
  return LaunchFor<256>(params, tiles, num_tiles, stream);
}

}  // namespace phalanx::kernels::cuda
