#include "kernels/cuda/tiling.h"

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

// A split whose sums would take more is not made.
constexpr int64_t kMostSplitBytes = int64_t{128} << 20;

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t FewSharedBytes(int tile_rows, int warps, int slots, int64_t num_chunks, int depth) {
  const int64_t floats = num_chunks * tile_rows * 17 + int64_t{depth} * tile_rows * 16;
  return warps * slots * FewSlotBytes(tile_rows) + floats * 4;
}

MatMulPlan PlanMatMul(const MatMulShape& shape, int num_sms, int64_t max_shared) {
  MatMulPlan plan;
  plan.warps =
      static_cast<int>(std::min<int64_t>(kFewWarps, std::max<int64_t>(1, shape.num_chunks)));
  plan.slots = plan.warps <= kFewWarps / 2 ? kFewManySlots : kFewSlots;
  for (const int rows : {8, 16}) {
    plan.tile_rows = rows;
    plan.shared_bytes = FewSharedBytes(rows, plan.warps, plan.slots, shape.num_chunks, shape.depth);
    if (shape.most_rows <= rows && plan.shared_bytes <= max_shared) return plan;
  }
  plan.kernel = MatMulKernel::kMany;
  plan.warps = plan.slots = 0;
  plan.shared_bytes = 0;
  plan.tile_rows = shape.most_rows <= 32 ? 32 : shape.most_rows <= 64 ? 64 : 128;
  // At most: each run may end in a tile of its own.
  const int64_t row_tiles = shape.rows / plan.tile_rows + shape.num_runs;
  const int64_t tiles = row_tiles * Ceil(shape.n, kTiledColumns);
  const int64_t per_sm = plan.tile_rows == 128 ? 1 : 2;
  const int64_t slots = num_sms * per_sm;
  const bool by_leaf = shape.num_leaves >= 4;
  const int64_t units = by_leaf ? shape.num_leaves : shape.num_chunks;
  const int64_t split_bytes = units * shape.rows * shape.n * 4;
  if (tiles < slots && units > 1 && split_bytes <= kMostSplitBytes) {
    plan.split = by_leaf ? MatMulSplit::kLeaves : MatMulSplit::kChunks;
    plan.units = units;
    plan.scratch_bytes = split_bytes;
    plan.grid = std::min(slots, tiles * units);
    return plan;
  }
  plan.grid = std::min(slots, tiles);
  // A thread's sums of a tile, for each level of the program's stack but the top one.
  const int64_t sums = kTiledColumns * plan.tile_rows;
  plan.scratch_bytes = plan.grid * (shape.depth - 1) * sums * 4;
  return plan;
}

int ChainRows(int64_t most_rows) { return most_rows <= 1 ? 1 : 4; }

int64_t AttentionRows(int64_t num_heads, int num_stripes, int64_t head_dim, int64_t scratch_bytes) {
  const int64_t row_bytes = num_heads * num_stripes * (2 + head_dim) * 4;
  return std::max<int64_t>(1, scratch_bytes / std::max<int64_t>(row_bytes, 1));
}

}  // namespace phalanx::kernels::cuda
