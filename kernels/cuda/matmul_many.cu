// BF16 matmul of many rows: 128 output columns x 32, 64 or 128 rows a block, operands through
// shared memory by asynchronous copies, groups of 32 values of k at a time.
//
// Eight warps stand 4 x 2: each has 32 columns (two tiles of operand A) and half of the rows, so
// that weights are loaded from shared memory, and FP8 is widened, by two warps each. Of 128 rows
// they stand 2 x 4, which loads as many bytes and keeps fewer of them in registers.
// Shared memory holds operands as memory does, 512 bytes a tile and step (of row-major weights: a
// tile and its lower or upper eight rows; of FP8: a tile's codes) in lane order, so no load
// conflicts and nothing is swizzled. The first stages' weights are asked for, and more are brought
// to the L2 cache, while the kernels before still run (launch_order.cuh).
#include <cstddef>

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/matmul_device.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/prefetch.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnTiles = kTiledColumns / kTileRows;  // of a block
// Groups of a block's first item that are brought to the L2 cache behind those of the first stages:
// by two blocks of each of 132 multiprocessors 23 MB of BF16, which are read in 5 us.
constexpr int kAheadGroups = 11;

template <WeightLayout kLayout, int kRows>
struct Tiled {
  static constexpr int kTileBytes = TileGroupBytes(kLayout);
  static constexpr int kABytes = kColumnTiles * kTileBytes;
  // Five ahead: 40 KiB of BF16 weights. Of 128 rows that is 96 KiB in all, for one block.
  static constexpr int kStages = 6;
  // Of the block's eight: side by side over its columns, and over its rows.
  static constexpr int kColumnWarps = kRows == 128 ? 2 : 4;
  static constexpr int kRowWarps = kThreads / kWarp / kColumnWarps;
  static constexpr int kWarpColumnTiles = kColumnTiles / kColumnWarps;
  static constexpr int kWarpRows = kRows / kRowWarps;
  static constexpr int kRowTiles = kWarpRows / kTileColumns;
  static constexpr int kBBytes = kRows * kGroupK * 2;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kSums = kWarpColumnTiles * kRowTiles * 4;  // of a thread
};

// Where a block's work lies.
struct Work {
  MatMulTile tile;
  int64_t column_tile;  // of 128
  int unit;             // of the split
};

// In 32 bits: in front of a block's first load a division of 64 bits takes as long as the load.
__device__ __forceinline__ uint32_t TileOfItem(uint32_t item, uint32_t units, uint32_t num_tiles) {
  return item / units % num_tiles;
}
__device__ __forceinline__ Work WorkOf(uint32_t item, uint32_t units, uint32_t num_tiles,
                                       const MatMulTile& tile) {
  return {tile, item / units / num_tiles, static_cast<int>(item % units)};
}

// The leaves (or the one chunk) that a block walks, group by group, in the programs' order.
struct Walk {
  int segment;
  int end_segment;
  int group;
  int end;

  __device__ static GroupRange Range(const MatMulParams& p, MatMulSplit split, int segment) {
    return split == MatMulSplit::kChunks
               ? ChunkGroups(p, segment)
               : LeafGroups(p, split == MatMulSplit::kLeaves ? segment : p.order[segment]);
  }
  __device__ void Begin(const MatMulParams& p, MatMulSplit split, int first, int last) {
    segment = first;
    end_segment = last;
    group = end = 0;
    if (segment < end_segment) {
      const GroupRange range = Range(p, split, segment);
      group = range.begin;
      end = range.end;
    }
    SkipEmpty(p, split);
  }
  __device__ bool done() const { return segment >= end_segment; }
  __device__ void Next(const MatMulParams& p, MatMulSplit split) {
    ++group;
    SkipEmpty(p, split);
  }
  __device__ void SkipEmpty(const MatMulParams& p, MatMulSplit split) {
    while (segment < end_segment && group >= end) {
      if (++segment < end_segment) {
        const GroupRange range = Range(p, split, segment);
        group = range.begin;
        end = range.end;
      }
    }
  }
};

// A thread's part of what is copied of each group: of kUnits units of 16 bytes every kThreads-th.
// Where they come from is worked out once for an item, in steps of 16 bytes from the operand's
// beginning (32 bits of them are 64 GiB); a group's lie kGroupSteps after those of the one before.
// With that arithmetic in front of each copy it was most of what the kernel executed.
template <int kUnits, int kGroupSteps>
class Copies {
 public:
  // `first(u, &valid)`: unit u's place in group 0; not valid: 16 zero bytes come, whatever lies
  // there.
  template <typename First>
  __device__ __forceinline__ Copies(const void* base, const First& first)
      : base_(static_cast<const uint8_t*>(base)) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int u = static_cast<int>(threadIdx.x) + i * kThreads;
      bool valid = false;
      const int64_t from = u < kUnits ? first(u, &valid) : 0;
      from_[i] = valid ? static_cast<uint32_t>(from) : 0;
      valid_ |= static_cast<uint32_t>(valid) << i;
    }
  }
  __device__ __forceinline__ void Enqueue(int group, uint8_t* to) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int u = static_cast<int>(threadIdx.x) + i * kThreads;
      if ((i + 1) * kThreads > kUnits && u >= kUnits) return;
      CopyAsync(to + u * 16, base_ + int64_t{16} * (from_[i] + group * kGroupSteps),
                (valid_ >> i & 1) != 0);
    }
  }

 private:
  static constexpr int kMine = (kUnits + kThreads - 1) / kThreads;

  const uint8_t* base_;
  uint32_t from_[kMine];
  uint32_t valid_ = 0;  // a bit a unit
};

template <WeightLayout kLayout, int kRows>
using WeightCopies =
    Copies<Tiled<kLayout, kRows>::kABytes / 16,
           (kLayout == WeightLayout::kRows ? kGroupK * 2 : Tiled<kLayout, kRows>::kTileBytes) / 16>;
template <WeightLayout kLayout, int kRows>
__device__ __forceinline__ WeightCopies<kLayout, kRows> CopiesOfWeights(const MatMulParams& p,
                                                                        const Work& work) {
  constexpr int kUnitsOfTile = Tiled<kLayout, kRows>::kTileBytes / 16;
  const int64_t groups_of_k = p.k / kGroupK;
  const int64_t column_tiles = (p.n + kTileRows - 1) / kTileRows;
  return {work.tile.weight, [&](int u, bool* valid) -> int64_t {
            const int64_t tile = work.column_tile * kColumnTiles + u / kUnitsOfTile;
            *valid = tile < column_tiles;
            if constexpr (kLayout == WeightLayout::kRows) {
              const int64_t row = tile * kTileRows + u % kUnitsOfTile / 4;
              return row * (p.k / 8) + u % 4;
            } else {
              return tile * groups_of_k * kUnitsOfTile + u % kUnitsOfTile;
            }
          }};
}

template <WeightLayout kLayout, int kRows>
using XCopies = Copies<Tiled<kLayout, kRows>::kBBytes / 16, kGroupK * 2 / 16>;
template <WeightLayout kLayout, int kRows>
__device__ __forceinline__ XCopies<kLayout, kRows> CopiesOfX(const MatMulParams& p,
                                                             const Work& work) {
  return {p.x, [&](int u, bool* valid) -> int64_t {
            const int row = u / 4;
            *valid = row < work.tile.rows;
            return (work.tile.first_row + row) * (p.x_stride / 8) + u % 4;
          }};
}

template <int kWarpColumnTiles, int kRowTiles>
struct Sums {
  float v[kWarpColumnTiles][kRowTiles][4];

  template <typename Body>
  __device__ __forceinline__ void ForEach(const Body& body) {
#pragma unroll
    for (int i = 0; i < kWarpColumnTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) body(i, j, r, v[i][j][r]);
      }
    }
  }
  __device__ __forceinline__ void Clear() {
    ForEach([](int, int, int, float& value) { value = 0.0f; });
  }
};

// Where a tile of operand A lies in a stage: its first or second 512 bytes, this lane's.
__device__ __forceinline__ Words LoadA(const uint8_t* stage, int tile, int half, int lane) {
  return LoadWords(stage + (tile * 2 + half) * kTileStepElements * 2 + lane * 16);
}

template <WeightLayout kLayout, int kRows>
using SumsOf = Sums<Tiled<kLayout, kRows>::kWarpColumnTiles, Tiled<kLayout, kRows>::kRowTiles>;
template <WeightLayout kLayout, int kRows>
__device__ __forceinline__ void MultiplyGroup(const uint8_t* stage, int column_warp, int row_warp,
                                              int lane, SumsOf<kLayout, kRows>& sums) {
  using T = Tiled<kLayout, kRows>;
  constexpr int kWarpColumnTiles = T::kWarpColumnTiles;
  constexpr int kRowTiles = T::kRowTiles;
  Words b[kRowTiles];
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j) {
    const int row = row_warp * T::kWarpRows + j * kTileColumns;
    b[j] = LoadWords(stage + T::kABytes + row * kGroupK * 2 + lane * 16);
  }
  const auto multiply = [&](int i, int s, const Words& a) {
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      Mma(sums.v[i][j], a.w[0], a.w[1], a.w[2], a.w[3], b[j].w[2 * s], b[j].w[2 * s + 1]);
    }
  };
  const int first_tile = column_warp * kWarpColumnTiles;
  if constexpr (kLayout == WeightLayout::kRows) {
    // Two tiles at a time: what a lane loads serves both steps, and the steps of one sum aren't
    // neighbours.
#pragma unroll
    for (int pair = 0; pair < kWarpColumnTiles; pair += 2) {
      Words low[2];
      Words high[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        low[i] = LoadA(stage, first_tile + pair + i, 0, lane);
        high[i] = LoadA(stage, first_tile + pair + i, 1, lane);
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply(pair + i, s, OperandOfRows(low[i], high[i], s));
      }
    }
  } else if constexpr (IsFp8(kLayout)) {
    // Two tiles at a time, likewise.
#pragma unroll
    for (int pair = 0; pair < kWarpColumnTiles; pair += 2) {
      const uint8_t* first = stage + (first_tile + pair) * T::kTileBytes;
      const uint8_t* second = first + T::kTileBytes;
      const Words codes[2] = {LoadWords(first + lane * 16), LoadWords(second + lane * 16)};
      const auto factors_of = [lane](const uint8_t* tile) {
        const auto* const words = reinterpret_cast<const uint32_t*>(tile + kFp8CodeBytes);
        return Fp8Factors<kLayout>([words](int i) { return words[i]; }, lane);
      };
      const Fp8Factors<kLayout> factors[2] = {factors_of(first), factors_of(second)};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply(pair + i, s, OperandOfCodes(codes[i], factors[i], s));
      }
    }
  } else {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < kWarpColumnTiles; ++i) {
        multiply(i, s, LoadA(stage, first_tile + i, s, lane));
      }
    }
  }
}

// Persistent: block b takes work items b, b + gridDim.x, ... Items that share columns are
// neighbours, so that weights are read while they are in the L2 cache.
// `scratch`: kNone: [block][depth - 1][kSums][threads], sums that wait for their partner; else
// [unit][rows][n].
template <WeightLayout kLayout, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 128 ? 1 : 2)
    MatMulManyKernel(const __grid_constant__ MatMulParams p, MatMulSplit split,
                     uint32_t items_of_tile, uint32_t units, float* scratch) {
  using T = Tiled<kLayout, kRows>;
  PHALANX_DYNAMIC_SHARED(uint8_t, stages);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int column_warp = warp % T::kColumnWarps;
  const int row_warp = warp / T::kColumnWarps;

  // The segments of an item.
  const auto first_of = [&](int unit) { return split == MatMulSplit::kNone ? 0 : unit; };
  const auto last_of = [&](int unit) {
    return split == MatMulSplit::kNone ? p.num_leaves : unit + 1;
  };

  const auto most_tiles = static_cast<uint32_t>(p.num_tiles);
  const bool ahead = TilesAreKnownAtLaunch(p) && blockIdx.x < most_tiles * items_of_tile;
  LetNextStart();
  if (ahead) {
    const Work work = WorkOf(blockIdx.x, units, most_tiles,
                             RowsTile(p, TileOfItem(blockIdx.x, units, most_tiles)));
    const auto weights = CopiesOfWeights<kLayout, kRows>(p, work);
    Walk fetch;
    fetch.Begin(p, split, first_of(work.unit), last_of(work.unit));
    for (int s = 0; s < T::kStages - 1 && !fetch.done(); ++s) {
      weights.Enqueue(fetch.group, stages + s * T::kStageBytes);
      fetch.Next(p, split);
    }
    if constexpr (kLayout != WeightLayout::kRows) {
      // A warp one tile's next groups, which lie behind each other.
      static_assert(kThreads / kWarp == kColumnTiles);
      const int64_t tile = work.column_tile * kColumnTiles + warp;
      if (tile * kTileRows < p.n && !fetch.done()) {
        const int groups = fetch.end - fetch.group;
        PrefetchRun(static_cast<const uint8_t*>(p.weight) +
                        (tile * (p.k / kGroupK) + fetch.group) * T::kTileBytes,
                    (groups < kAheadGroups ? groups : kAheadGroups) * T::kTileBytes, lane);
      }
    }
  }
  WaitForEarlier();

  const auto num_tiles = static_cast<uint32_t>(NumTiles(p));
  for (uint32_t item = blockIdx.x; item < num_tiles * items_of_tile; item += gridDim.x) {
    const Work work = WorkOf(item, units, num_tiles, TileOf(p, TileOfItem(item, units, num_tiles)));
    const int first = first_of(work.unit);
    const int last = last_of(work.unit);
    const auto weights = CopiesOfWeights<kLayout, kRows>(p, work);
    const auto x = CopiesOfX<kLayout, kRows>(p, work);

    Walk fetch;
    fetch.Begin(p, split, first, last);
    int fetch_stage = 0;
    const auto copy_next = [&](bool with_weights) {
      if (!fetch.done()) {
        uint8_t* const to = stages + fetch_stage * T::kStageBytes;
        if (with_weights) weights.Enqueue(fetch.group, to);
        x.Enqueue(fetch.group, to + T::kABytes);
        fetch.Next(p, split);
      }
      CommitCopies();  // an empty group counts, too
      fetch_stage = (fetch_stage + 1) % T::kStages;
    };
    // The item before may still be read.
    __syncthreads();
    // Weights that were asked for above come with the first group.
    const bool with_weights = !ahead || item != blockIdx.x;
    for (int s = 0; s < T::kStages - 1; ++s) copy_next(with_weights);

    int stage = 0;
    int code = 0;
    int part = 0;
    int depth = 0;
    SumsOf<kLayout, kRows> sum;
    SumsOf<kLayout, kRows> total;
    float* waiting = scratch + int64_t{blockIdx.x} * (p.depth - 1) * T::kSums * kThreads;
    const auto waiting_at = [&](int level, int i, int j, int r) -> float& {
      const int reg = (i * T::kRowTiles + j) * 4 + r;
      return waiting[(level * T::kSums + reg) * kThreads + threadIdx.x];
    };
    const auto for_each_output = [&](const auto& body) {
      total.ForEach([&](int i, int j, int r, float& value) {
        const int64_t n = work.column_tile * kTiledColumns +
                          (column_warp * T::kWarpColumnTiles + i) * kTileRows + ResultRow(lane, r);
        const int row = row_warp * T::kWarpRows + j * kTileColumns + ResultColumn(lane, r);
        if (n < p.n && row < work.tile.rows) body(work.tile.first_row + row, n, value);
      });
    };

    for (int segment = first; segment < last; ++segment) {
      if (split == MatMulSplit::kNone && depth > 0) {
        total.ForEach(
            [&](int i, int j, int r, float& value) { waiting_at(depth - 1, i, j, r) = value; });
      }
      total.Clear();
      const GroupRange range = Walk::Range(p, split, segment);
      for (int chunk = range.begin; chunk < range.end; chunk += kChunkGroups) {
        const int end = chunk + kChunkGroups < range.end ? chunk + kChunkGroups : range.end;
        sum.Clear();
        for (int group = chunk; group < end; ++group) {
          WaitForCopies<T::kStages - 2>();
          // Everybody's copies of this group are here, and nobody reads the stage filled next.
          __syncthreads();
          copy_next(true);
          MultiplyGroup<kLayout, kRows>(stages + stage * T::kStageBytes, column_warp, row_warp,
                                        lane, sum);
          stage = (stage + 1) % T::kStages;
        }
        total.ForEach(
            [&](int i, int j, int r, float& value) { value = Add(value, sum.v[i][j][r]); });
      }
      if (split != MatMulSplit::kNone) {
        for_each_output([&](int64_t row, int64_t n, float value) {
          scratch[(work.unit * p.rows + row) * p.n + n] = value;
        });
        continue;
      }
      // The leaf is pushed; then what the programs say up to the next leaf.
      ++depth;
      for (++code; code < p.code_begin[part + 1] && p.codes[code] < 0; ++code) {
        --depth;
        total.ForEach([&](int i, int j, int r, float& value) {
          value = Add(waiting_at(depth - 1, i, j, r), value);
        });
      }
      if (code == p.code_begin[part + 1]) {
        for_each_output([&](int64_t row, int64_t n, float value) {
          p.outs[part][row * p.out_strides[part] + n] = value;
        });
        ++part;
        depth = 0;
      }
    }
    WaitForCopies<0>();
  }
}

template <WeightLayout kLayout, int kRows>
cudaError_t LaunchFor(const MatMulParams& p, const MatMulPlan& plan, float* scratch,
                      cudaStream_t stream) {
  using T = Tiled<kLayout, kRows>;
  constexpr int kShared = T::kStages * T::kStageBytes;
  const int64_t column_tiles = (p.n + kTiledColumns - 1) / kTiledColumns;
  // Work is counted in 32 bits, a turn of all blocks beyond the last included.
  if (p.num_tiles > (int64_t{1} << 31) / (column_tiles * plan.units)) return cudaErrorInvalidValue;
  const cudaError_t error =
      Launch(MatMulManyKernel<kLayout, kRows>, dim3(static_cast<unsigned>(plan.grid)), kThreads,
             kShared, stream, p, plan.split, static_cast<uint32_t>(column_tiles * plan.units),
             static_cast<uint32_t>(plan.units), scratch);
  if (error != cudaSuccess || plan.split == MatMulSplit::kNone) return error;
  return JoinSplit(p, plan, scratch, stream);
}

template <WeightLayout kLayout>
cudaError_t LaunchPlan(const MatMulParams& p, const MatMulPlan& plan, float* scratch,
                       cudaStream_t stream) {
  if (plan.tile_rows == 32) return LaunchFor<kLayout, 32>(p, plan, scratch, stream);
  if (plan.tile_rows == 64) return LaunchFor<kLayout, 64>(p, plan, scratch, stream);
  return LaunchFor<kLayout, 128>(p, plan, scratch, stream);
}

}  // namespace

cudaError_t MatMulMany(const MatMulParams& params, const MatMulPlan& plan, float* scratch,
                       cudaStream_t stream) {
  switch (params.layout) {
    case WeightLayout::kTiles:
      return LaunchPlan<WeightLayout::kTiles>(params, plan, scratch, stream);
    case WeightLayout::kRows:
      return LaunchPlan<WeightLayout::kRows>(params, plan, scratch, stream);
    case WeightLayout::kFp8:
      return LaunchPlan<WeightLayout::kFp8>(params, plan, scratch, stream);
    case WeightLayout::kFp8Fine:
      return LaunchPlan<WeightLayout::kFp8Fine>(params, plan, scratch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace phalanx::kernels::cuda
