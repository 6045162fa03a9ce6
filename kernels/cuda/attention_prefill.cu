// Attention of many query rows in profile `fast`: four warps of 32 rows walk a context's blocks,
// two at a time, all of them or a piece. No stripes: the order of sums is this kernel's own.
//
// After FlashAttention-2 (Dao, arXiv 2307.08691): running values stay in the products' own
// registers and are scaled only where a maximum has grown; sums are brought together at the end.
#include <cstddef>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kTilesOfWarp = 2;  // of sixteen rows: keys and values are read once for both
constexpr int kWarps = kManyRows / (kTilesOfWarp * kTileRows);
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocks = static_cast<int>(kPrefillStepTokens / kKvTokens);  // KV blocks of a step
constexpr int kStages = 2;  // steps: the next one arrives while this one is worked on
constexpr int kTokens = kBlocks * static_cast<int>(kKvTokens);
constexpr int kStepTiles = kBlocks * kTokenTiles;

// Tokens of a step, as offsets 0 .. kTokens.
__device__ __forceinline__ int FirstSeen(int position, int first, int window) {
  return window > 0 ? position - window + 1 - first : 0;
}

// Bytes of a block's queries in shared memory.
PHALANX_HOST_DEVICE constexpr int64_t QueryBytes(int64_t groups) {
  return kTilesOfWarp * 2 * groups * kThreads * static_cast<int64_t>(sizeof(Words));
}

// Query rows of a warp as operand A, in shared memory where only the lane reads them that wrote
// them: registers that have no room. What one product takes is 16 bytes in its registers' order.
template <int kGroups>
class KeptQueries {
 public:
  __device__ explicit KeptQueries(uint8_t* shared)
      : words_(reinterpret_cast<Words*>(shared) + threadIdx.x) {}

  __device__ void Put(int tile, const QueryFragments<kGroups>& q) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const Words& low = q.words[0][g];
      const Words& high = q.words[1][g];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        words_[((tile * kGroups + g) * 2 + s) * kThreads] = {
            {low.w[2 * s], high.w[2 * s], low.w[2 * s + 1], high.w[2 * s + 1]}};
      }
    }
  }
  __device__ __forceinline__ Words Get(int tile, int group, int step) const {
    return LoadWords(words_ + ((tile * kGroups + group) * 2 + step) * kThreads);
  }

 private:
  Words* words_;
};

// How heads of kD lie, as a constant.
template <int kD, bool kFp8>
PHALANX_HOST_DEVICE constexpr KvLayout LayoutOfHeads() {
  return KvLayout(DType::kBF16, 1, kD, kFp8);
}

// grid: tiles, groups, pieces. Dynamic shared memory: queries, then [kStages][kBlocks][head_bytes].
template <int kD, bool kFp8>
__global__ void __launch_bounds__(kThreads)
    AttendPrefillKernel(const AttentionParams p, const RowTile* tiles, const int32_t* out_column,
                        const TensorView out) {
  BeginInTurn();
  constexpr int64_t kHeadBytes = LayoutOfHeads<kD, kFp8>().head_bytes;
  constexpr int kGroups = kD / kGroupK;
  constexpr int kColumnTiles = kD / kTileColumns;
  PHALANX_DYNAMIC_SHARED(uint8_t, memory);
  const RowTile tile = tiles[blockIdx.x];
  const SequenceRows sequence = p.sequences[tile.sequence];
  const HeadGroup group = p.groups[blockIdx.y];
  const int64_t heads = group.end - group.begin;
  const int64_t left = sequence.row_count * heads - tile.first;
  if (left <= 0) return;
  const int num_rows = static_cast<int>(left < kManyRows ? left : kManyRows);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  // As wide as any context, it is none.
  const int window = p.window < (int64_t{1} << 30) ? static_cast<int>(p.window) : 0;

  // Row 16 m + lane / 4 + 8 i of the warp is (m, i) of a lane.
  const int first_row = warp * kTilesOfWarp * kTileRows;
  const auto row_of = [&](int m, int i) {
    const int r = first_row + m * kTileRows + lane / 4 + 8 * i;
    return r < num_rows ? RowOfTile(p, sequence, group, tile.first + r) : QueryRow{false, 0, 0, -1};
  };
  KeptQueries<kGroups> queries(memory);
  int position[kTilesOfWarp][2];
#pragma unroll
  for (int m = 0; m < kTilesOfWarp; ++m) {
    const QueryRow rows[2] = {row_of(m, 0), row_of(m, 1)};
    position[m][0] = static_cast<int>(rows[0].position);
    position[m][1] = static_cast<int>(rows[1].position);
    QueryFragments<kGroups> q;
    q.Load(p, rows, lane);
    queries.Put(m, q);
  }

  const auto position_of = [&](int r) {
    return static_cast<int>(sequence.start + (tile.first + r) / heads);
  };
  // This piece of the blocks that a row of the tile sees: whole steps.
  const int oldest_block = static_cast<int>(OldestBlock(position_of(0), p.window));
  const int newest_block = position_of(num_rows - 1) / static_cast<int>(kKvTokens);
  const int steps = (newest_block - oldest_block) / kBlocks + 1;
  const int pieces = static_cast<int>(gridDim.z);
  const int piece = static_cast<int>(blockIdx.z);
  const int first_block = oldest_block + kBlocks * (steps * piece / pieces);
  const int end_block = oldest_block + kBlocks * (steps * (piece + 1) / pieces);
  const int last_block = newest_block < end_block ? newest_block : end_block - 1;
  // This warp's oldest and newest rows.
  const bool any_row = first_row < num_rows;
  const int last_row = first_row + kTilesOfWarp * kTileRows - 1;
  const int oldest = any_row ? position_of(first_row) : -1;
  const int newest = any_row ? position_of(last_row < num_rows ? last_row : num_rows - 1) : -1;

  uint8_t* const stages = memory + QueryBytes(kGroups);
  const auto fetch = [&](int block, int stage) {
    for (int b = 0; b < kBlocks; ++b) {
      if (block + b <= last_block) {
        CopyBlock<kThreads, kD, kFp8>(p, p.tables[sequence.table_begin + block + b], group.kv_head,
                                      stages + (stage * kBlocks + b) * kHeadBytes);
      }
    }
    CommitCopies();
  };
  fetch(first_block, 0);

  // exp(scale * (score - max)) as a power of two.
  const float scale = Mul(p.scale, 1.44269504f);
  float max[kTilesOfWarp][2];
  float sum[kTilesOfWarp][2];  // of this lane's columns
  float values[kTilesOfWarp][kColumnTiles][4];
#pragma unroll
  for (int m = 0; m < kTilesOfWarp; ++m) {
    max[m][0] = max[m][1] = kNegativeInfinity;
    sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      values[m][t][0] = values[m][t][1] = values[m][t][2] = values[m][t][3] = 0.0f;
    }
  }

  // kAll: every row of the warp sees all tokens of the step.
  const auto take = [&](int block, const uint8_t* data, auto all) {
    constexpr bool kAll = decltype(all)::kValue;
    const int first = block * static_cast<int>(kKvTokens);
    float scores[kTilesOfWarp][kStepTiles][4];
#pragma unroll
    for (int m = 0; m < kTilesOfWarp; ++m) {
#pragma unroll
      for (int j = 0; j < kStepTiles; ++j) {
        scores[m][j][0] = scores[m][j][1] = scores[m][j][2] = scores[m][j][3] = 0.0f;
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      Words q[kTilesOfWarp][2];
#pragma unroll
      for (int m = 0; m < kTilesOfWarp; ++m) {
        q[m][0] = queries.Get(m, g, 0);
        q[m][1] = queries.Get(m, g, 1);
      }
#pragma unroll
      for (int j = 0; j < kStepTiles; ++j) {
        const uint8_t* head = data + j / kTokenTiles * kHeadBytes;
        const Words k = Keys<kFp8>(LayoutOfHeads<kD, kFp8>(), head, j % kTokenTiles, lane).Group(g);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int m = 0; m < kTilesOfWarp; ++m) {
            const Words& a = q[m][s];
            Mma(scores[m][j], a.w[0], a.w[1], a.w[2], a.w[3], k.w[2 * s], k.w[2 * s + 1]);
          }
        }
      }
    }
    if constexpr (!kAll) {
#pragma unroll
      for (int m = 0; m < kTilesOfWarp; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int begin = FirstSeen(position[m][i], first, window);
          const int end = position[m][i] + 1 - first;
#pragma unroll
          for (int j = 0; j < kStepTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int token = j * kTileColumns + ResultColumn(lane, e);
              if (token < begin || token >= end) scores[m][j][2 * i + e] = kNegativeInfinity;
            }
          }
        }
      }
    }

    float alpha[kTilesOfWarp][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < kTilesOfWarp; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float after = max[m][i];
#pragma unroll
        for (int j = 0; j < kStepTiles; ++j) {
          after = fmaxf(fmaxf(scores[m][j][2 * i], scores[m][j][2 * i + 1]), after);
        }
        after = fmaxf(__shfl_xor_sync(0xffffffffu, after, 1), after);
        after = fmaxf(__shfl_xor_sync(0xffffffffu, after, 2), after);
        // A row that has seen nothing yet: its powers are of -infinity, not of a difference.
        const float base = after == kNegativeInfinity ? 0.0f : Mul(after, scale);
        // Exactly 1 where another row of the warp has grown, not this one.
        const bool grows = after > max[m][i];
        alpha[m][i] = grows ? Exp2Approx(Mul(Sub(max[m][i], after), scale)) : 1.0f;
        grown = grown || grows;
        max[m][i] = after;
        float added = 0.0f;
#pragma unroll
        for (int j = 0; j < kStepTiles; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = scores[m][j][2 * i + e];
            score = Exp2Approx(Fma(score, scale, -base));
            added = Add(added, score);
          }
        }
        sum[m][i] = Fma(sum[m][i], alpha[m][i], added);
      }
    }
    if (__ballot_sync(0xffffffffu, grown) != 0) {
#pragma unroll
      for (int m = 0; m < kTilesOfWarp; ++m) {
#pragma unroll
        for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
          for (int r = 0; r < 4; ++r) values[m][t][r] = Mul(values[m][t][r], alpha[m][r / 2]);
        }
      }
    }

#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t a[kTilesOfWarp][2][4];
#pragma unroll
      for (int m = 0; m < kTilesOfWarp; ++m) {
        PackProbabilities(&scores[m][b * kTokenTiles], a[m]);
      }
      const Visible first_seen = VisibleTokens(oldest, block + b, p.window);
      const Visible last_seen = VisibleTokens(newest, block + b, p.window);
      const Values<kFp8, kAll> v(LayoutOfHeads<kD, kFp8>(), data + b * kHeadBytes, first_seen.begin,
                                 last_seen.end, lane);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        const Words w = v.Tile(t);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int m = 0; m < kTilesOfWarp; ++m) {
            Mma(values[m][t], a[m][s][0], a[m][s][1], a[m][s][2], a[m][s][3], w.w[2 * s],
                w.w[2 * s + 1]);
          }
        }
      }
    }
  };

  int stage = 0;
  for (int block = first_block; block <= last_block; block += kBlocks) {
    WaitForCopies<0>();
    // Everybody's copies of this step are here, and nobody reads the stage that is filled next.
    __syncthreads();
    if (block + kBlocks <= last_block) fetch(block + kBlocks, 1 - stage);
    const uint8_t* data = stages + stage * kBlocks * kHeadBytes;
    stage = 1 - stage;
    const int first = block * static_cast<int>(kKvTokens);
    // No row of this warp sees the step.
    if (!any_row || newest < first || FirstSeen(oldest, first, window) >= kTokens) continue;
    // Most steps of a long prompt are seen whole.
    if (oldest >= first + kTokens - 1 && FirstSeen(newest, first, window) <= 0) {
      take(block, data, Flag<true>());
    } else {
      take(block, data, Flag<false>());
    }
  }

#pragma unroll
  for (int m = 0; m < kTilesOfWarp; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float all = sum[m][i];
      all = Add(all, __shfl_xor_sync(0xffffffffu, all, 1));
      all = Add(all, __shfl_xor_sync(0xffffffffu, all, 2));
      const QueryRow row = row_of(m, i);
      if (!row.valid) continue;
      if (pieces > 1) {
        float* state =
            p.partials + ((row.row * p.num_heads + row.head) * pieces + piece) * (2 + kD);
        if (lane % 4 == 0) {
          state[0] = Mul(max[m][i], p.scale);
          state[1] = all;
        }
#pragma unroll
        for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            state[2 + t * kTileColumns + ResultColumn(lane, e)] = values[m][t][2 * i + e];
          }
        }
        continue;
      }
      const float factor = Div(1.0f, all);
      const int64_t to = row.row * out.stride + out_column[row.head];
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          Store(out.data, out.dtype, to + t * kTileColumns + ResultColumn(lane, e),
                Mul(values[m][t][2 * i + e], factor));
        }
      }
    }
  }
}

template <int kD>
cudaError_t LaunchFor(const AttentionParams& p, const RowTile* tiles, int64_t num_tiles, int pieces,
                      const int32_t* out_column, TensorView out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(p.num_groups),
                  static_cast<unsigned>(pieces));
  const auto kernel = p.layout.fp8 ? AttendPrefillKernel<kD, true> : AttendPrefillKernel<kD, false>;
  return Launch(kernel, grid, kThreads, static_cast<size_t>(PrefillAttentionBytes(p.layout)),
                stream, p, tiles, out_column, out);
}

}  // namespace

int64_t PrefillAttentionBytes(const KvLayout& layout) {
  return QueryBytes(layout.dk / kGroupK) + kStages * kBlocks * layout.head_bytes;
}

cudaError_t AttendPrefill(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                          int pieces, const int32_t* out_column, TensorView out,
                          cudaStream_t stream) {
  if (num_tiles == 0 || params.num_groups == 0) return cudaSuccess;
  if (params.head_dim == 64) {
    return LaunchFor<64>(params, tiles, num_tiles, pieces, out_column, out, stream);
  }
  return LaunchFor<128>(params, tiles, num_tiles, pieces, out_column, out, stream);
}

}  // namespace phalanx::kernels::cuda
