// The second pass of a matmul whose units, leaves or chunks, were computed apart (matmul_many.cu).
#include <cstddef>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/matmul_device.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kJoinThreads = 128;
// Blocks that rows are dealt out to, about: twice what an H200 has at once.
constexpr int64_t kJoinBlocks = 4096;
// Units' sums that a thread asks for at once.
constexpr int kJoinAtOnce = 8;

// Adds the units of a split: grid: columns / kJoinThreads, tiles, rows of a tile or fewer. What is
// added lies in the L2 cache, and the way from there is what takes the time: so there is a thread
// for each output where there are not too many of them, and all that it loads is under way before
// its first sum.
__global__ void __launch_bounds__(kJoinThreads)
    JoinKernel(const __grid_constant__ MatMulParams p, MatMulSplit split, const float* scratch) {
  BeginInTurn();
  if (blockIdx.y >= NumTiles(p)) return;
  PHALANX_DYNAMIC_SHARED(float, memory);  // leaves' sums [leaf][threads], stack [depth][threads]
  const MatMulTile tile = TileOf(p, blockIdx.y);
  const int64_t n = int64_t{blockIdx.x} * kJoinThreads + threadIdx.x;
  if (n >= p.n) return;
  float* const leaves = memory + threadIdx.x;
  float* const stack = leaves + p.num_leaves * kJoinThreads;
  const int64_t unit_step = p.rows * p.n;
  for (int in_tile = blockIdx.z; in_tile < tile.rows; in_tile += gridDim.z) {
    const int64_t row = tile.first_row + in_tile;
    const float* const units = scratch + row * p.n + n;
    const auto for_each = [&](int begin, int end, const auto& body) {
      for (int unit = begin; unit < end; unit += kJoinAtOnce) {
        float sums[kJoinAtOnce];
#pragma unroll
        for (int i = 0; i < kJoinAtOnce; ++i) {
          if (unit + i < end) sums[i] = units[(unit + i) * unit_step];
        }
#pragma unroll
        for (int i = 0; i < kJoinAtOnce; ++i) {
          if (unit + i < end) body(unit + i, sums[i]);
        }
      }
    };
    if (split == MatMulSplit::kLeaves) {
      for_each(0, p.num_leaves, [&](int leaf, float sum) { leaves[leaf * kJoinThreads] = sum; });
    } else {
      for (int leaf = 0; leaf < p.num_leaves; ++leaf) {
        float total = 0.0f;
        for_each(p.first_chunk[leaf], p.first_chunk[leaf + 1],
                 [&](int, float sum) { total = Add(total, sum); });
        leaves[leaf * kJoinThreads] = total;
      }
    }
    for (int part = 0; part < p.num_parts; ++part) {
      p.outs[part][row * p.out_strides[part] + n] = RunPart(
          p, part, stack, kJoinThreads, [&](int leaf) { return leaves[leaf * kJoinThreads]; });
    }
  }
}

}  // namespace

cudaError_t JoinSplit(const MatMulParams& p, const MatMulPlan& plan, const float* scratch,
                      cudaStream_t stream) {
  const int64_t columns = (p.n + kJoinThreads - 1) / kJoinThreads;
  const int64_t rows = kJoinBlocks / (columns * p.num_tiles);
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(p.num_tiles),
                  static_cast<unsigned>(rows < 1                ? 1
                                        : rows > plan.tile_rows ? plan.tile_rows
                                                                : rows));
  // At most 64 leaves and as many levels: 64 KiB.
  const size_t shared = sizeof(float) * kJoinThreads * (p.num_leaves + p.depth);
  return Launch(JoinKernel, grid, kJoinThreads, shared, stream, p, plan.split, scratch);
}

}  // namespace phalanx::kernels::cuda
