// BF16 matmul of up to sixteen rows: weights are read once.
//
// A block owns sixteen output columns. Each warp takes whole chunks (16 KB of weights each), so all
// of k is worked on at once; chunk sums meet in shared memory, where leaves and programs are added.
// Weights and x come by asynchronous copies, several groups of 32 values of k ahead. (Loads to
// registers won't do: the compiler puts each next to its use, and few are in flight.) A lane copies
// just the bytes that it reads back, so no barrier is needed on the way; but of FP8's factors,
// which a few lanes copy for the warp. The first groups' weights are asked for while the kernels
// before still run (launch_order.cuh), and the rest of a warp's first chunk is brought to the L2
// cache: so memory has work through the small kernels between two products.
//
// Row-major weights come in 64 bytes of each of sixteen rows; the other 64 of their lines, which
// are next, are asked for along with them.
#include <cstddef>

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/matmul_device.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/prefetch.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMaxWarps = kFewWarps;
// Words between two rows of x in shared memory: one more than columns, against bank conflicts.
constexpr int kPitch = kTileRows + 1;

template <WeightLayout kLayout>
struct WeightSlot {
  Words a[2][kWarp];  // by step; of row-major weights: of the lower and the upper eight rows
};
template <WeightLayout kLayout>
struct CodeSlot {
  Words codes[kWarp];
  Words factors[(TileGroupBytes(kLayout) - kFp8CodeBytes) / 16];
};
template <>
struct WeightSlot<WeightLayout::kFp8> : CodeSlot<WeightLayout::kFp8> {};
template <>
struct WeightSlot<WeightLayout::kFp8Fine> : CodeSlot<WeightLayout::kFp8Fine> {};
template <WeightLayout kLayout, int kRowTiles>
struct Slot : WeightSlot<kLayout> {
  Words b[kRowTiles][kWarp];
};

// grid: output columns / 16, tiles of rows. Shared memory: Slot [warp][kSlots], then sums
// [chunk][kRows][kPitch], then the programs' stack [depth][kRows * 16].
template <WeightLayout kLayout, int kRowTiles, int kSlots>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    MatMulFewKernel(const __grid_constant__ MatMulParams p) {
  constexpr int kRows = kRowTiles * kTileColumns;
  PHALANX_DYNAMIC_SHARED(uint8_t, memory);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int num_warps = blockDim.x / kWarp;
  using WarpSlot = Slot<kLayout, kRowTiles>;
  auto* slots = reinterpret_cast<WarpSlot*>(memory) + warp * kSlots;
  auto* sums = reinterpret_cast<float*>(memory + num_warps * kSlots * sizeof(WarpSlot));
  const int64_t groups_of_k = p.k / kGroupK;
  const auto copy_weights = [&](const void* of_tile, int group, WarpSlot& slot) {
    const auto* weight = static_cast<const uint16_t*>(of_tile);
    if constexpr (IsFp8(kLayout)) {
      const uint8_t* from =
          static_cast<const uint8_t*>(of_tile) + Fp8Offset(kLayout, blockIdx.x, group, groups_of_k);
      CopyAsync(&slot.codes[lane], from + lane * 16, true);
      if (lane < static_cast<int>(sizeof slot.factors / 16)) {
        CopyAsync(&slot.factors[lane], from + kFp8CodeBytes + lane * 16, true);
      }
    } else {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if constexpr (kLayout == WeightLayout::kRows) {
          // This lane's 16 bytes of the lower and of the upper eight rows.
          const int64_t row =
              int64_t{blockIdx.x} * kTileRows + OperandRow(lane) + s * (kTileRows / 2);
          CopyAsyncOfLine(&slot.a[s][lane], weight + row * p.k + OperandK(lane) + group * kGroupK);
        } else {
          CopyAsync(&slot.a[s][lane],
                    weight + WeightOffset(blockIdx.x, group, s, lane, groups_of_k), true);
        }
      }
    }
  };

  const auto prefetch_weights = [&](const void* of_tile, int begin, int end) {
    const auto* weight = static_cast<const uint8_t*>(of_tile);
    if constexpr (kLayout == WeightLayout::kRows) {
      const int lines = (end - begin) * kGroupK * 2 / kLineBytes;  // of a row
      for (int i = lane; i < kTileRows * lines; i += kWarp) {
        const int64_t row = int64_t{blockIdx.x} * kTileRows + i % kTileRows;
        PrefetchLine(weight + (row * p.k + begin * kGroupK) * 2 + i / kTileRows * kLineBytes);
      }
    } else {
      constexpr int kBytes = TileGroupBytes(kLayout);
      PrefetchRun(weight + (blockIdx.x * groups_of_k + begin) * kBytes, (end - begin) * kBytes,
                  lane);
    }
  };

  // The weights of the slots that are filled in front.
  const bool ahead = TilesAreKnownAtLaunch(p);
  LetNextStart();
  if (ahead) {
    GroupWalk<Chunks> first;
    first.Begin(p, warp, num_warps);
    for (int i = 0; i < kSlots - 1 && !first.done(p); ++i) {
      copy_weights(p.weight, first.group, slots[i]);
      first.Next(p);
    }
    if (!first.done(p) && first.segment == warp) {
      prefetch_weights(p.weight, first.group, first.end);
    }
  }
  WaitForEarlier();
  if (blockIdx.y >= NumTiles(p)) return;
  const MatMulTile tile = TileOf(p, blockIdx.y);

  const uint16_t* x[kRowTiles];
  bool valid[kRowTiles];
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const int row = t * kTileColumns + OperandRow(lane);
    valid[t] = row < tile.rows;
    x[t] = static_cast<const uint16_t*>(p.x) +
           (tile.first_row + (valid[t] ? row : 0)) * p.x_stride + OperandK(lane);
  }

  GroupWalk<Chunks> fetch;
  fetch.Begin(p, warp, num_warps);
  int fetch_slot = 0;
  const auto copy_next = [&](bool with_weights) {
    if (!fetch.done(p)) {
      WarpSlot& slot = slots[fetch_slot];
      if (with_weights) copy_weights(tile.weight, fetch.group, slot);
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        CopyAsync(&slot.b[t][lane], x[t] + fetch.group * kGroupK, valid[t]);
      }
      fetch.Next(p);
    }
    CommitCopies();  // an empty group counts, too
    fetch_slot = fetch_slot + 1 == kSlots ? 0 : fetch_slot + 1;
  };
  // Weights that were asked for above come with the first group.
  for (int i = 0; i < kSlots - 1; ++i) copy_next(!ahead);

  float sum[kRowTiles][4] = {};
  GroupWalk<Chunks> walk;
  walk.Begin(p, warp, num_warps);
  int slot_index = 0;
  while (!walk.done(p)) {
    if constexpr (IsFp8(kLayout)) {
      // Every lane's copies of this group are here, and none reads the slot filled next.
      WaitForCopies<kSlots - 2>();
      __syncwarp();
      copy_next(true);
    } else {
      copy_next(true);
      WaitForCopies<kSlots - 1>();
    }
    const WarpSlot& slot = slots[slot_index];
    slot_index = slot_index + 1 == kSlots ? 0 : slot_index + 1;
    Words a[2];
    if constexpr (kLayout == WeightLayout::kTiles) {
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = slot.a[s][lane];
    } else if constexpr (kLayout == WeightLayout::kRows) {
      const Words low = slot.a[0][lane];
      const Words high = slot.a[1][lane];
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = OperandOfRows(low, high, s);
    } else {
      const Words codes = slot.codes[lane];
      const Fp8Factors<kLayout> factors(reinterpret_cast<const uint32_t*>(slot.factors), lane);
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = OperandOfCodes(codes, factors, s);
    }
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const Words b = slot.b[t][lane];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        Mma(sum[t], a[s].w[0], a[s].w[1], a[s].w[2], a[s].w[3], b.w[2 * s], b.w[2 * s + 1]);
      }
    }
    const int chunk = walk.segment;
    if (!walk.Next(p)) continue;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = t * kTileColumns + ResultColumn(lane, r);
        sums[(chunk * kRows + row) * kPitch + ResultRow(lane, r)] = sum[t][r];
        sum[t][r] = 0.0f;
      }
    }
  }
  WaitForCopies<0>();
  __syncthreads();

  for (int i = threadIdx.x; i < kRows * kTileRows; i += blockDim.x) {
    const int column = i % kTileRows;
    const int row = i / kTileRows;
    const int64_t n = int64_t{blockIdx.x} * kTileRows + column;
    if (row >= tile.rows || n >= p.n) continue;
    float* stack = sums + p.num_chunks * kRows * kPitch + i;
    const auto leaf_sum = [&](int leaf) {
      float total = 0.0f;
      for (int c = p.first_chunk[leaf]; c < p.first_chunk[leaf + 1]; ++c) {
        total = Add(total, sums[(c * kRows + row) * kPitch + column]);
      }
      return total;
    };
    for (int part = 0; part < p.num_parts; ++part) {
      p.outs[part][(tile.first_row + row) * p.out_strides[part] + n] =
          RunPart(p, part, stack, kRows * kTileRows, leaf_sum);
    }
  }
}

template <WeightLayout kLayout, int kRowTiles, int kSlots>
cudaError_t LaunchFor(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  static_assert(sizeof(Slot<kLayout, kRowTiles>) ==
                FewSlotBytes(TileGroupBytes(kLayout), kRowTiles * kTileColumns));
  const dim3 grid(static_cast<unsigned>((p.n + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(p.num_tiles));
  return Launch(MatMulFewKernel<kLayout, kRowTiles, kSlots>, grid, plan.warps * kWarp,
                static_cast<size_t>(plan.shared_bytes), stream, p);
}

template <WeightLayout kLayout>
cudaError_t LaunchPlan(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  if (plan.tile_rows == 8) {
    return plan.slots == kFewSlots ? LaunchFor<kLayout, 1, kFewSlots>(p, plan, stream)
                                   : LaunchFor<kLayout, 1, kFewManySlots>(p, plan, stream);
  }
  return plan.slots == kFewSlots ? LaunchFor<kLayout, 2, kFewSlots>(p, plan, stream)
                                 : LaunchFor<kLayout, 2, kFewManySlots>(p, plan, stream);
}

}  // namespace

cudaError_t MatMulFew(const MatMulParams& params, const MatMulPlan& plan, cudaStream_t stream) {
  switch (params.layout) {
    case WeightLayout::kTiles:
      return LaunchPlan<WeightLayout::kTiles>(params, plan, stream);
    case WeightLayout::kRows:
      return LaunchPlan<WeightLayout::kRows>(params, plan, stream);
    case WeightLayout::kFp8:
      return LaunchPlan<WeightLayout::kFp8>(params, plan, stream);
    case WeightLayout::kFp8Fine:
      return LaunchPlan<WeightLayout::kFp8Fine>(params, plan, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t MatMulMma(const MatMulParams& params, const MatMulPlan& plan, void* scratch,
                      cudaStream_t stream) {
  if (params.n == 0 || params.num_tiles == 0) return cudaSuccess;
  if (plan.kernel == MatMulKernel::kFew) return MatMulFew(params, plan, stream);
  return MatMulMany(params, plan, static_cast<float*>(scratch), stream);
}

}  // namespace phalanx::kernels::cuda
