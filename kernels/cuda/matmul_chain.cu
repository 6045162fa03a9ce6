// Matmul of F32 and F16 weights: one FMA chain in rising k from +0 per leaf and output, as on the
// CPU and with its bits. A lane is an output column; a warp takes whole leaves.
//
// A chain can't be cut, so where a weight has one leaf a block is one warp, and what keeps memory
// at work is how far it reads ahead: weights and x come by asynchronous copies, a slot for each
// group of 32 values of k. The first groups' weights are asked for while the kernels before still
// run (launch_order.cuh).

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/matmul_device.cuh"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {
namespace {

// Four neighbouring values.
struct alignas(16) Floats {
  float v[4];
};

template <DType kType>
using WeightElement = std::conditional_t<kType == DType::kF32, float, uint16_t>;

template <DType kType>
__device__ __forceinline__ float Widened(WeightElement<kType> weight) {
  if constexpr (kType == DType::kF32) {
    return weight;
  } else {
    return F16ToF32(weight);
  }
}

// One group of a warp's 32 columns, as it lies in memory: of tiles [k][32 columns]; of rows
// [32 columns][k], each row followed by 16 bytes against bank conflicts. And of x.
template <DType kType, WeightLayout kLayout, int kRows>
struct ChainSlot {
  using Element = WeightElement<kType>;
  static constexpr int kUnit = 16 / sizeof(Element);  // elements of 16 bytes
  static constexpr int kLine = kLayout == WeightLayout::kRows ? kGroupK + kUnit : kGroupK;

  alignas(16) Element weights[kChainColumns * kLine];
  Floats x[kRows][kGroupK / 4];
};

// grid: output columns / 32, tiles of kRows rows. Shared memory: ChainSlot [warp][kSlots], then
// leaf sums [leaf][kRows][32]; where slots were, then, the programs' stack [depth][kRows][32].
template <DType kType, WeightLayout kLayout, int kRows, int kSlots>
__global__ void __launch_bounds__(kChainWarps* kWarp)
    MatMulChainKernel(const __grid_constant__ MatMulParams p, int sums_at) {
  using Slot = ChainSlot<kType, kLayout, kRows>;
  using Element = typename Slot::Element;
  constexpr int kTile = kRows * kChainColumns;
  PHALANX_DYNAMIC_SHARED(uint8_t, memory);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int num_warps = blockDim.x / kWarp;
  auto* const slots = reinterpret_cast<Slot*>(memory) + warp * kSlots;
  auto* const sums = reinterpret_cast<float*>(memory + sums_at);

  const auto copy_weights = [&](const void* weight, int group, Slot& slot) {
    constexpr int kUnits = kChainColumns * kGroupK / Slot::kUnit;
    const auto* const elements = static_cast<const Element*>(weight);
    const int64_t first_column = int64_t{blockIdx.x} * kChainColumns;
    const int64_t first_k = int64_t{group} * kGroupK;
#pragma unroll
    for (int u = lane; u < kUnits; u += kWarp) {
      if constexpr (kLayout == WeightLayout::kRows) {
        constexpr int kUnitsOfRow = kGroupK / Slot::kUnit;
        const int column = u / kUnitsOfRow;
        const int k = u % kUnitsOfRow * Slot::kUnit;
        CopyAsync(&slot.weights[column * Slot::kLine + k],
                  elements + (first_column + column) * p.k + first_k + k, true);
      } else {
        CopyAsync(&slot.weights[u * Slot::kUnit],
                  elements + ChainOffset(first_column, first_k, p.k) + u * Slot::kUnit, true);
      }
    }
  };

  // The weights of the slots that are filled in front.
  const bool ahead = TilesAreKnownAtLaunch(p);
  LetNextStart();
  if (ahead) {
    GroupWalk<Leaves> first;
    first.Begin(p, warp, num_warps);
    for (int i = 0; i < kSlots - 1 && !first.done(); ++i) {
      copy_weights(p.weight, first.group, slots[i]);
      first.Next(p);
    }
  }
  WaitForEarlier();
  if (blockIdx.y >= NumTiles(p)) return;
  const MatMulTile tile = TileOf(p, blockIdx.y);
  const auto* const x = static_cast<const float*>(p.x) + tile.first_row * p.x_stride;

  GroupWalk<Leaves> fetch;
  fetch.Begin(p, warp, num_warps);
  int fetch_slot = 0;
  const auto copy_next = [&](bool with_weights) {
    if (!fetch.done()) {
      Slot& slot = slots[fetch_slot];
      if (with_weights) copy_weights(tile.weight, fetch.group, slot);
#pragma unroll
      for (int u = lane; u < kRows * (kGroupK / 4); u += kWarp) {
        const int row = u / (kGroupK / 4);
        const int k = u % (kGroupK / 4) * 4;
        const bool valid = row < tile.rows;
        CopyAsync(&slot.x[row][k / 4],
                  x + (valid ? row : 0) * p.x_stride + fetch.group * kGroupK + k, valid);
      }
      fetch.Next(p);
    }
    CommitCopies();  // an empty group counts, too
    fetch_slot = fetch_slot + 1 == kSlots ? 0 : fetch_slot + 1;
  };
  // Weights that were asked for above come with the first group.
  for (int i = 0; i < kSlots - 1; ++i) copy_next(!ahead);

  // The walk passes over empty leaves.
  for (int leaf = warp; leaf < p.num_leaves; leaf += num_warps) {
    const GroupRange groups = Leaves::Groups(p, leaf);
    if (groups.begin < groups.end) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[leaf * kTile + r * kChainColumns + lane] = 0.0f;
  }

  float sum[kRows] = {};
  GroupWalk<Leaves> walk;
  walk.Begin(p, warp, num_warps);
  int slot_index = 0;
  while (!walk.done()) {
    // Every lane's copies of this group are here, and none reads the slot filled next.
    WaitForCopies<kSlots - 2>();
    __syncwarp();
    copy_next(true);
    const Slot& slot = slots[slot_index];
    slot_index = slot_index + 1 == kSlots ? 0 : slot_index + 1;
#pragma unroll
    for (int i = 0; i < kGroupK; i += 4) {
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        w[j] = Widened<kType>(
            slot.weights[kLayout == WeightLayout::kRows ? lane * Slot::kLine + i + j
                                                        : (i + j) * kChainColumns + lane]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Floats values = slot.x[r][i / 4];
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[r] = Fma(values.v[j], w[j], sum[r]);
      }
    }
    const int leaf = walk.segment;
    if (!walk.Next(p)) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[leaf * kTile + r * kChainColumns + lane] = sum[r];
      sum[r] = 0.0f;
    }
  }
  WaitForCopies<0>();
  __syncthreads();

  for (int i = threadIdx.x; i < kTile; i += blockDim.x) {
    const int row = i / kChainColumns;
    const int64_t n = int64_t{blockIdx.x} * kChainColumns + i % kChainColumns;
    if (row >= tile.rows || n >= p.n) continue;
    float* const stack = reinterpret_cast<float*>(memory) + i;
    for (int part = 0; part < p.num_parts; ++part) {
      p.outs[part][(tile.first_row + row) * p.out_strides[part] + n] =
          RunPart(p, part, stack, kTile, [&](int leaf) { return sums[leaf * kTile + i]; });
    }
  }
}

template <DType kType, WeightLayout kLayout, int kRows>
cudaError_t LaunchFor(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  using Slot = ChainSlot<kType, kLayout, kRows>;
  constexpr int kGroupBytes = ChainGroupBytes(kLayout, sizeof(WeightElement<kType>));
  static_assert(sizeof(Slot) == ChainSlotBytes(kGroupBytes, kRows));
  constexpr int kSlots = ChainSlots(kGroupBytes, kRows);
  const dim3 grid(static_cast<unsigned>((p.n + kChainColumns - 1) / kChainColumns),
                  static_cast<unsigned>(p.num_tiles));
  // Where the slots end, and the stack.
  const auto sums_at = static_cast<int>(plan.shared_bytes - ChainSumBytes(p.num_leaves, kRows));
  return Launch(MatMulChainKernel<kType, kLayout, kRows, kSlots>, grid, plan.warps * kWarp,
                static_cast<size_t>(plan.shared_bytes), stream, p, sums_at);
}

template <DType kType, WeightLayout kLayout>
cudaError_t LaunchPlan(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  switch (plan.tile_rows) {
    case 1:
      return LaunchFor<kType, kLayout, 1>(p, plan, stream);
    case kChainFewRows:
      return LaunchFor<kType, kLayout, kChainFewRows>(p, plan, stream);
    case kChainManyRows:
      return LaunchFor<kType, kLayout, kChainManyRows>(p, plan, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <DType kType>
cudaError_t LaunchLayout(const MatMulParams& p, const MatMulPlan& plan, cudaStream_t stream) {
  return p.layout == WeightLayout::kRows ? LaunchPlan<kType, WeightLayout::kRows>(p, plan, stream)
                                         : LaunchPlan<kType, WeightLayout::kTiles>(p, plan, stream);
}

}  // namespace

cudaError_t MatMulChain(const MatMulParams& params, const MatMulPlan& plan, cudaStream_t stream) {
  if (params.n == 0 || params.num_tiles == 0) return cudaSuccess;
  if (params.weight_type == DType::kF16) {
    return LaunchLayout<DType::kF16>(params, plan, stream);
  }
  return LaunchLayout<DType::kF32>(params, plan, stream);
}

}  // namespace phalanx::kernels::cuda
