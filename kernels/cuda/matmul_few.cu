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
// Of gates and ups a block owns sixteen of either: their chunks are walked as twice as many, and
// what is written is what SiluMul makes of both.
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
constexpr int kXBytes = kGroupK * 2;  // of a row's group

// Chunks of a block's column tiles, one after the other: of gates, then of ups.
template <bool kGated>
struct ColumnChunks {
  __device__ static int Count(const MatMulParams& p) {
    return kGated ? 2 * p.num_chunks : p.num_chunks;
  }
  __device__ static bool IsUp(const MatMulParams& p, int segment) {
    return kGated && segment >= p.num_chunks;
  }
  __device__ static GroupRange Groups(const MatMulParams& p, int segment) {
    return ChunkGroups(p, IsUp(p, segment) ? segment - p.num_chunks : segment);
  }
};

// Where a lane's part of one group lies in memory, of weights or of x: so many bytes after that of
// the group before.
template <int kStep>
struct Run {
  const uint8_t* from;

  __device__ __forceinline__ const uint8_t* At(int group) const {
    return from + int64_t{group} * kStep;
  }
};

// grid: output columns (kGated: gates) / 16, tiles of rows. Shared memory: for each warp kSlots
// slots (weights, x of p.tile_rows rows), then sums [segment][p.tile_rows][kPitch], then the
// programs' stack [depth - 1][p.tile_rows * 16]. Where slots were, then: leaves' sums
// [leaf][p.tile_rows * 16], kGated: of gates, then of ups. `ahead_groups`: of each warp's first
// chunk, what is brought to the L2 cache in front.
template <WeightLayout kLayout, int kRowTiles, int kSlots, bool kGated>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    MatMulFewKernel(const __grid_constant__ MatMulParams p, int ahead_groups, int sums_at) {
  constexpr bool kByRows = kLayout == WeightLayout::kRows;
  constexpr int kTileBytes = TileGroupBytes(kLayout);
  constexpr int kFactorUnits = IsFp8(kLayout) ? (kTileBytes - kFp8CodeBytes) / 16 : 0;
  PHALANX_DYNAMIC_SHARED(uint8_t, memory);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int num_warps = blockDim.x / kWarp;
  const uint32_t slot_bytes = Kept(kTileBytes + kXBytes * p.tile_rows);
  const SharedAt slots = Kept(AtShared(memory + warp * kSlots * slot_bytes + lane * 16));
  const SharedAt slots_end = Kept(slots + kSlots * slot_bytes);
  auto* const sums = reinterpret_cast<float*>(memory + sums_at);
  const int64_t groups_of_k = p.k / kGroupK;
  const int64_t row_bytes = int64_t{p.k} * 2;
  using Segments = ColumnChunks<kGated>;
  // From a gate's weights to its up's.
  const int64_t up_bytes = p.n / 2 * (kByRows ? row_bytes : groups_of_k * kTileBytes / kTileRows);

  // This lane's 16 bytes of group 0; of row-major weights those of the lower eight rows.
  using WeightRun = Run<kByRows ? kXBytes : kTileBytes>;
  const auto weights_of = [&](const void* weight) -> WeightRun {
    const auto* const bytes = static_cast<const uint8_t*>(weight);
    if constexpr (kByRows) {
      const int64_t row = int64_t{blockIdx.x} * kTileRows + OperandRow(lane);
      return {Kept(bytes + row * row_bytes + OperandK(lane) * 2)};
    } else {
      return {Kept(bytes + blockIdx.x * groups_of_k * kTileBytes + lane * 16)};
    }
  };
  const auto copy_weights = [&](const WeightRun& weights, const GroupWalk<Segments>& at,
                                SharedAt slot) {
    const uint8_t* from = weights.At(at.group);
    if (Segments::IsUp(p, at.segment)) from += up_bytes;
    if constexpr (IsFp8(kLayout)) {
      CopyAsync(slot, from, true);
      if (lane < kFactorUnits) CopyAsync(slot + kFp8CodeBytes, from + kFp8CodeBytes, true);
    } else if constexpr (kByRows) {
      CopyAsyncOfLine(slot, from);
      CopyAsyncOfLine(slot + kTileBytes / 2, from + kTileRows / 2 * row_bytes);
    } else {
      CopyAsync(slot, from, true);
      CopyAsync(slot + kTileBytes / 2, from + kTileBytes / 2, true);
    }
  };
  const auto prefetch_weights = [&](int segment, int begin, int end) {
    const auto* weight = static_cast<const uint8_t*>(p.weight);
    if (Segments::IsUp(p, segment)) weight += up_bytes;
    if constexpr (kByRows) {
      const int lines = (end - begin) * kGroupK * 2 / kLineBytes;  // of a row
      for (int i = lane; i < kTileRows * lines; i += kWarp) {
        const int64_t row = int64_t{blockIdx.x} * kTileRows + i % kTileRows;
        PrefetchLine(weight + row * row_bytes + begin * kGroupK * 2 + i / kTileRows * kLineBytes);
      }
    } else {
      PrefetchRun(weight + (blockIdx.x * groups_of_k + begin) * kTileBytes,
                  (end - begin) * kTileBytes, lane);
    }
  };

  LetNextStart();
  GroupWalk<Segments> walk;
  walk.Begin(p, warp, num_warps);
  // The weights of the slots that are filled in front.
  const bool ahead = TilesAreKnownAtLaunch(p);
  if (ahead) {
    const WeightRun weights = weights_of(p.weight);
    GroupWalk<Segments> first = walk;
    SharedAt slot = slots;
    for (int i = 0; i < kSlots - 1 && !first.done(); ++i) {
      copy_weights(weights, first, slot);
      slot += slot_bytes;
      first.Next(p);
    }
    if (!first.done() && first.segment == walk.segment) {
      const int end = first.group + ahead_groups;
      prefetch_weights(first.segment, first.group, end < first.end ? end : first.end);
    }
  }
  WaitForEarlier();
  if (blockIdx.y >= NumTiles(p)) return;
  const MatMulTile tile = TileOf(p, blockIdx.y);

  const WeightRun weights = weights_of(tile.weight);
  // Rows from this lane's first on: that slots have room for, and that there are.
  const auto room = static_cast<int>(Kept(p.tile_rows - OperandRow(lane)));
  const auto rows = static_cast<int>(Kept(tile.rows - OperandRow(lane)));
  Run<kXBytes> x[kRowTiles];
  bool has_x[kRowTiles];
  bool valid[kRowTiles];
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const int row = t * kTileColumns + OperandRow(lane);
    has_x[t] = t * kTileColumns < room;
    valid[t] = t * kTileColumns < rows;
    x[t].from = Kept(reinterpret_cast<const uint8_t*>(
        static_cast<const uint16_t*>(p.x) + (tile.first_row + (valid[t] ? row : 0)) * p.x_stride +
        OperandK(lane)));
  }

  GroupWalk<Segments> fetch = walk;
  SharedAt fetch_slot = slots;
  const auto copy_next = [&](bool with_weights) {
    if (!fetch.done()) {
      if (with_weights) copy_weights(weights, fetch, fetch_slot);
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        if (has_x[t]) {
          CopyAsync(fetch_slot + kTileBytes + t * kTileColumns * kXBytes, x[t].At(fetch.group),
                    valid[t]);
        }
      }
      fetch.Next(p);
    }
    CommitCopies();  // an empty group counts, too
    fetch_slot += slot_bytes;
    if (fetch_slot == slots_end) fetch_slot = slots;
  };
  // Weights that were asked for above come with the first group.
#pragma unroll 1
  for (int i = 0; i < kSlots - 1; ++i) copy_next(!ahead);

  float sum[kRowTiles][4] = {};
  SharedAt slot = slots;
  while (!walk.done()) {
    if constexpr (IsFp8(kLayout)) {
      // Every lane's copies of this group are here, and none reads the slot filled next.
      WaitForCopies<kSlots - 2>();
      __syncwarp();
      copy_next(true);
    } else {
      copy_next(true);
      WaitForCopies<kSlots - 1>();
    }
    Words a[2];
    if constexpr (kLayout == WeightLayout::kTiles) {
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = LoadShared(slot + s * (kTileBytes / 2));
    } else if constexpr (kByRows) {
      const Words low = LoadShared(slot);
      const Words high = LoadShared(slot + kTileBytes / 2);
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = OperandOfRows(low, high, s);
    } else {
      const Words codes = LoadShared(slot);
      const auto factors_at = slot - lane * 16 + kFp8CodeBytes;
      const Fp8Factors<kLayout> factors(
          [&](int word) { return LoadSharedWord(factors_at + word * 4); }, lane);
#pragma unroll
      for (int s = 0; s < 2; ++s) a[s] = OperandOfCodes(codes, factors, s);
    }
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const Words b =
          has_x[t] ? LoadShared(slot + kTileBytes + t * kTileColumns * kXBytes) : Words{};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        Mma(sum[t], a[s].w[0], a[s].w[1], a[s].w[2], a[s].w[3], b.w[2 * s], b.w[2 * s + 1]);
      }
    }
    slot += slot_bytes;
    if (slot == slots_end) slot = slots;
    const int segment = walk.segment;
    if (!walk.Next(p)) continue;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = t * kTileColumns + ResultColumn(lane, r);
        if (row < p.tile_rows) {
          sums[(segment * p.tile_rows + row) * kPitch + ResultRow(lane, r)] = sum[t][r];
        }
        sum[t][r] = 0.0f;
      }
    }
  }
  WaitForCopies<0>();
  __syncthreads();

  // Leaves, each by threads of its own, then the programs over them.
  const unsigned outputs = p.tile_rows * kTileRows;
  auto* const leaves = reinterpret_cast<float*>(memory);
  const unsigned num_leaves = kGated ? 2 * p.num_leaves : p.num_leaves;
  for (unsigned i = threadIdx.x; i < num_leaves * outputs; i += blockDim.x) {
    const bool of_up = kGated && i >= p.num_leaves * outputs;
    const unsigned leaf = i / outputs - (of_up ? p.num_leaves : 0);
    const int before = of_up ? p.num_chunks : 0;
    const unsigned row = i % outputs / kTileRows;
    float total = 0.0f;
    for (int c = p.first_chunk[leaf]; c < p.first_chunk[leaf + 1]; ++c) {
      total = Add(total, sums[((before + c) * p.tile_rows + row) * kPitch + i % kTileRows]);
    }
    leaves[i] = total;
  }
  __syncthreads();
  float* const stacks = sums + Segments::Count(p) * p.tile_rows * kPitch;
  // Of a part and a thread's output, `first` being the leaves' sums of its columns.
  const auto run_part = [&](int part, unsigned i, const float* first) {
    return RunPart(p, part, stacks + i, static_cast<int>(outputs),
                   [&](int leaf) { return first[leaf * outputs + i]; });
  };
  for (unsigned i = threadIdx.x; i < outputs; i += blockDim.x) {
    const int row = static_cast<int>(i / kTileRows);
    const int64_t n = int64_t{blockIdx.x} * kTileRows + i % kTileRows;
    if (row >= tile.rows || n >= (kGated ? p.n / 2 : p.n)) continue;
    if constexpr (kGated) {
      float gate = run_part(0, i, leaves);
      float up = run_part(0, i, leaves + p.num_leaves * outputs);
      if (p.gate_up_bias != nullptr) {
        gate = Add(gate, p.gate_up_bias[n]);
        up = Add(up, p.gate_up_bias[p.n / 2 + n]);
      }
      p.activated[(tile.first_row + row) * p.activated_stride + n] = F32ToBf16(SiluTimes(gate, up));
    } else {
      for (int part = 0; part < p.num_parts; ++part) {
        p.outs[part][(tile.first_row + row) * p.out_strides[part] + n] = run_part(part, i, leaves);
      }
    }
  }
}

template <WeightLayout kLayout, int kRowTiles, int kSlots, bool kGated>
cudaError_t LaunchFor(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  constexpr int kColumnTiles = kGated ? 2 : 1;
  constexpr int kColumns = kColumnTiles * kTileRows;
  static_assert(FewSlotBytes(TileGroupBytes(kLayout), kTileColumns) ==
                TileGroupBytes(kLayout) + kXBytes * kTileColumns);
  const dim3 grid(static_cast<unsigned>((p.n + kColumns - 1) / kColumns),
                  static_cast<unsigned>(p.num_tiles));
  const auto sums_at = static_cast<int>(FewSumsAt(
      TileGroupBytes(kLayout), kColumnTiles * p.num_leaves, plan.tile_rows, plan.warps, kSlots));
  return Launch(MatMulFewKernel<kLayout, kRowTiles, kSlots, kGated>, grid, plan.warps * kWarp,
                static_cast<size_t>(plan.shared_bytes), stream, p, plan.ahead_groups, sums_at);
}

template <WeightLayout kLayout, int kRowTiles, int kSlots>
cudaError_t LaunchColumns(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  return p.activated != nullptr ? LaunchFor<kLayout, kRowTiles, kSlots, true>(p, plan, stream)
                                : LaunchFor<kLayout, kRowTiles, kSlots, false>(p, plan, stream);
}

template <WeightLayout kLayout>
cudaError_t LaunchPlan(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  if (plan.tile_rows <= kTileColumns) {
    return plan.slots == kFewSlots ? LaunchColumns<kLayout, 1, kFewSlots>(p, plan, stream)
                                   : LaunchColumns<kLayout, 1, kFewManySlots>(p, plan, stream);
  }
  return plan.slots == kFewSlots ? LaunchColumns<kLayout, 2, kFewSlots>(p, plan, stream)
                                 : LaunchColumns<kLayout, 2, kFewManySlots>(p, plan, stream);
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
