// Matmul of F32 and F16 weights: one FMA chain in rising k from +0 per leaf and output, as on the
// CPU and with its bits. A lane is an output column; a warp takes whole leaves.
#include <cuda_fp16.h>

#include <cstddef>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/matmul_device.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kMaxWarps = 8;
// Words of a row-major weight's group in shared memory, [32 columns][kTurnPitch]: one more than a
// row has, against bank conflicts.
constexpr int kTurnPitch = kGroupK + 1;
constexpr int kTurnWords = kChainColumns * kTurnPitch;

template <DType kType>
__device__ __forceinline__ float LoadWeight(const void* weight, int64_t index) {
  if constexpr (kType == DType::kF32) {
    return __ldg(static_cast<const float*>(weight) + index);
  } else {
    // Exact, denormals included.
    return __half2float(__ushort_as_half(__ldg(static_cast<const uint16_t*>(weight) + index)));
  }
}

// grid: output columns / 32, tiles of kRows rows.
// Shared memory: leaf sums [leaf][kRows][32], the stack [depth][kRows][32], x [warp][kRows][32]; of
// row-major weights also a group of 32 columns [warp][kTurnWords], which a warp reads along k and
// each lane then goes through down its own column.
template <DType kType, WeightLayout kLayout, int kRows>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    MatMulChainKernel(const __grid_constant__ MatMulParams p) {
  BeginInTurn();
  if (blockIdx.y >= NumTiles(p)) return;
  PHALANX_DYNAMIC_SHARED(float, memory);
  constexpr int kTile = kRows * kChainColumns;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int num_warps = blockDim.x / kWarp;
  const MatMulTile tile = TileOf(p, blockIdx.y);
  float* stack = memory + p.num_leaves * kTile;
  float* x = stack + p.depth * kTile + warp * kTile;
  float* turned = stack + (p.depth + num_warps) * kTile + warp * kTurnWords;
  const auto* from = static_cast<const float*>(p.x) + tile.first_row * p.x_stride;

  for (int leaf = warp; leaf < p.num_leaves; leaf += num_warps) {
    float sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = 0.0f;
    for (int k = LeafBegin(p, leaf); k < p.leaf_end[leaf]; k += kGroupK) {
      __syncwarp();
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        x[r * kGroupK + lane] = r < tile.rows ? from[r * p.x_stride + k + lane] : 0.0f;
      }
      const int64_t first_column = int64_t{blockIdx.x} * kChainColumns;
      if constexpr (kLayout == WeightLayout::kRows) {
#pragma unroll
        for (int c = 0; c < kChainColumns; ++c) {
          turned[c * kTurnPitch + lane] =
              LoadWeight<kType>(tile.weight, (first_column + c) * p.k + k + lane);
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kGroupK; ++i) {
        float w;
        if constexpr (kLayout == WeightLayout::kRows) {
          w = turned[lane * kTurnPitch + i];
        } else {
          w = LoadWeight<kType>(tile.weight, ChainOffset(first_column + lane, k + i, p.k));
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] = Fma(x[r * kGroupK + i], w, sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) memory[leaf * kTile + r * kChainColumns + lane] = sum[r];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile; i += blockDim.x) {
    const int row = i / kChainColumns;
    const int64_t n = int64_t{blockIdx.x} * kChainColumns + i % kChainColumns;
    if (row >= tile.rows || n >= p.n) continue;
    for (int part = 0; part < p.num_parts; ++part) {
      p.outs[part][(tile.first_row + row) * p.out_strides[part] + n] =
          RunPart(p, part, stack + i, kTile, [&](int leaf) { return memory[leaf * kTile + i]; });
    }
  }
}

template <DType kType, WeightLayout kLayout, int kRows>
cudaError_t LaunchFor(const MatMulParams& p, cudaStream_t stream) {
  const int warps = p.num_leaves < kMaxWarps ? p.num_leaves : kMaxWarps;
  const int turned = kLayout == WeightLayout::kRows ? warps * kTurnWords : 0;
  const size_t shared =
      sizeof(float) * ((p.num_leaves + p.depth + warps) * kRows * kChainColumns + turned);
  const dim3 grid(static_cast<unsigned>((p.n + kChainColumns - 1) / kChainColumns),
                  static_cast<unsigned>(p.num_tiles));
  return Launch(MatMulChainKernel<kType, kLayout, kRows>, grid, warps * kWarp, shared, stream, p);
}

template <DType kType, WeightLayout kLayout>
cudaError_t LaunchRows(const MatMulParams& p, int rows_at_once, cudaStream_t stream) {
  return rows_at_once == 1 ? LaunchFor<kType, kLayout, 1>(p, stream)
                           : LaunchFor<kType, kLayout, 4>(p, stream);
}

}  // namespace

cudaError_t MatMulChain(const MatMulParams& params, int rows_at_once, cudaStream_t stream) {
  if (params.n == 0 || params.num_tiles == 0) return cudaSuccess;
  if (params.weight_type == DType::kF16) {
    return LaunchRows<DType::kF16, WeightLayout::kTiles>(params, rows_at_once, stream);
  }
  return params.layout == WeightLayout::kRows
             ? LaunchRows<DType::kF32, WeightLayout::kRows>(params, rows_at_once, stream)
             : LaunchRows<DType::kF32, WeightLayout::kTiles>(params, rows_at_once, stream);
}

}  // namespace phalanx::kernels::cuda
