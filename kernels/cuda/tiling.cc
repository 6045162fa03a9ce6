#include "kernels/cuda/tiling.h"

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

// A split whose sums would take more is not made.
constexpr int64_t kMostSplitBytes = int64_t{128} << 20;
// Bytes on their way to a multiprocessor that keep memory at work: a third to a half more than the
// product of an H200's rate and its latency under load.
constexpr int64_t kEnoughInFlight = int64_t{48} << 10;
// Rows that kFew takes at most.
constexpr int64_t kMostFewRows = 16;
// Output columns of a block of kFew.
constexpr int64_t kFewColumns = 16;

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of the tiled kernel that run at once.
int64_t Slots(int tile_rows, int num_sms) { return int64_t{num_sms} * (tile_rows == 128 ? 1 : 2); }

// Tiles from which on work is not split: fewer than the multiprocessors, since a block can keep one
// at work alone, while sums that are joined are written, read, and waited for by a kernel more.
int64_t EnoughTiles(int num_sms) { return std::max<int64_t>(1, int64_t{num_sms} * 2 / 3); }

// What a split computes apart: leaves where there are enough of them, else chunks.
bool SplitsByLeaf(const MatMulShape& shape) { return shape.num_leaves >= 4; }
int64_t Units(const MatMulShape& shape) {
  return SplitsByLeaf(shape) ? shape.num_leaves : shape.num_chunks;
}

// A tile's sums, one level of a program's stack.
int64_t WaitingSumBytes(int tile_rows) { return int64_t{kTiledColumns} * tile_rows * 4; }

// kFew, whether its memory fits or not.
MatMulPlan PlanFew(const MatMulShape& shape, int num_sms, int64_t max_shared) {
  MatMulPlan plan;
  plan.kernel = MatMulKernel::kFew;
  // What a slot has of x is as much as there can be: blocks of one row are a third smaller than
  // those of eight. A run of several that is taller than expected takes tiles of eight at least.
  plan.tile_rows = 1;
  while (plan.tile_rows < shape.most_rows) plan.tile_rows *= 2;
  if (plan.tile_rows > 1 && shape.num_runs > 1) plan.tile_rows = std::max(plan.tile_rows, 8);
  const int64_t chunks = shape.column_tiles * shape.num_chunks;
  plan.warps = static_cast<int>(std::min<int64_t>(kFewWarps, std::max<int64_t>(1, chunks)));
  const auto shared_bytes = [&](int slots) {
    return FewSharedBytes(shape, plan.tile_rows, plan.warps, slots);
  };
  // A block's shared memory costs 1 KiB more; a multiprocessor has as much more than a block.
  const auto blocks_of_sm = [&](int slots) {
    return std::max<int64_t>(1, (max_shared + 1024) / (shared_bytes(slots) + 1024));
  };
  const int64_t blocks =
      std::max<int64_t>(1, Ceil(shape.n, kFewColumns * shape.column_tiles) * shape.num_runs);
  const int64_t blocks_each = Ceil(blocks, num_sms);
  // Few blocks must read further ahead to keep memory at work: but there must be room for one of
  // the next kernel beside them.
  const int64_t in_flight = blocks_each * plan.warps * (kFewSlots - 1) * shape.group_bytes;
  const bool far = in_flight < kEnoughInFlight && blocks_of_sm(kFewManySlots) > blocks_each;
  plan.slots = plan.warps <= kFewWarps / 2 || far ? kFewManySlots : kFewSlots;
  plan.shared_bytes = shared_bytes(plan.slots);
  const int64_t warps_of_sm = std::min(blocks_each, blocks_of_sm(plan.slots)) * plan.warps;
  plan.in_flight = warps_of_sm * (plan.slots - 1) * shape.group_bytes;
  plan.ahead_groups = static_cast<int>(kFewAheadBytes / (warps_of_sm * shape.group_bytes));
  return plan;
}

}  // namespace

int64_t FewSumsAt(int64_t group_bytes, int64_t num_leaves, int tile_rows, int warps, int slots) {
  return std::max(warps * slots * FewSlotBytes(group_bytes, tile_rows),
                  num_leaves * tile_rows * kFewColumns * 4);
}

int64_t FewSharedBytes(const MatMulShape& shape, int tile_rows, int warps, int slots) {
  const int64_t floats = shape.column_tiles * shape.num_chunks * tile_rows * (kFewColumns + 1) +
                         int64_t{shape.depth - 1} * tile_rows * kFewColumns;
  return FewSumsAt(shape.group_bytes, shape.column_tiles * shape.num_leaves, tile_rows, warps,
                   slots) +
         floats * 4;
}

MatMulPlan PlanMatMul(const MatMulShape& shape, int num_sms, int64_t max_shared,
                      int64_t max_scratch) {
  if (shape.most_rows <= kMostFewRows) {
    const MatMulPlan plan = PlanFew(shape, num_sms, max_shared);
    if (plan.shared_bytes <= max_shared) return plan;
  }
  MatMulPlan plan;
  plan.kernel = MatMulKernel::kMany;
  plan.tile_rows = shape.most_rows <= 32 ? 32 : shape.most_rows <= 64 ? 64 : 128;
  // Of several runs at most: each may end in a tile of its own.
  const int64_t row_tiles = shape.num_runs == 1 ? Ceil(shape.rows, plan.tile_rows)
                                                : shape.rows / plan.tile_rows + shape.num_runs;
  const int64_t tiles = row_tiles * Ceil(shape.n, kTiledColumns);
  const int64_t slots = Slots(plan.tile_rows, num_sms);
  const int64_t units = Units(shape);
  const int64_t split_bytes = units * shape.rows * shape.n * 4;
  if (tiles < EnoughTiles(num_sms) && units > 1 &&
      split_bytes <= std::min(kMostSplitBytes, max_scratch)) {
    plan.split = SplitsByLeaf(shape) ? MatMulSplit::kLeaves : MatMulSplit::kChunks;
    plan.units = units;
    plan.scratch_bytes = split_bytes;
    plan.grid = std::min(slots, tiles * units);
    return plan;
  }
  plan.grid = std::min(slots, tiles);
  // A thread's sums of a tile, for each level of the program's stack but the top one.
  const int64_t block_bytes = (shape.depth - 1) * WaitingSumBytes(plan.tile_rows);
  if (block_bytes > 0) {
    plan.grid = std::max<int64_t>(1, std::min(plan.grid, max_scratch / block_bytes));
  }
  plan.scratch_bytes = plan.grid * block_bytes;
  return plan;
}

std::optional<MatMulPlan> PlanGatedMatMul(const MatMulShape& shape, int num_sms,
                                          int64_t max_shared) {
  MatMulShape gated = shape;
  gated.column_tiles = 2;
  if (shape.most_rows > kMostFewRows ||
      Ceil(shape.n, kFewColumns * gated.column_tiles) * shape.num_runs < num_sms) {
    return std::nullopt;
  }
  const MatMulPlan plan = PlanFew(gated, num_sms, max_shared);
  const int64_t enough = std::min(PlanFew(shape, num_sms, max_shared).in_flight, kEnoughInFlight);
  if (plan.shared_bytes > max_shared || plan.in_flight < enough) return std::nullopt;
  return plan;
}

int64_t MostScratchBytes(const MatMulShape& shape, int num_sms, int64_t max_shared) {
  MatMulShape one_run = shape;
  one_run.most_rows = shape.rows;
  one_run.num_runs = 1;
  // Then fewer rows get it, too.
  if (PlanMatMul(one_run, num_sms, max_shared).kernel == MatMulKernel::kFew) return 0;
  const int64_t column_tiles = std::max<int64_t>(1, Ceil(shape.n, kTiledColumns));
  int64_t most = 0;
  int64_t split_rows = 0;  // more are never split
  for (const int tile_rows : {32, 64, 128}) {
    const int64_t slots = Slots(tile_rows, num_sms);
    most = std::max(most, slots * (shape.depth - 1) * WaitingSumBytes(tile_rows));
    const int64_t row_tiles = (EnoughTiles(num_sms) - 1) / column_tiles;
    split_rows = std::max(split_rows, row_tiles * tile_rows);
  }
  const int64_t units = Units(shape);
  if (units > 1) {
    most = std::max(
        most, std::min(kMostSplitBytes, units * std::min(shape.rows, split_rows) * shape.n * 4));
  }
  return most;
}

int64_t ExpectedTallestRun(int64_t rows, int64_t tokens, int64_t num_experts) {
  return std::min(tokens, 2 * Ceil(rows, num_experts));
}

int64_t MostTiles(int64_t rows, int64_t num_runs, int64_t tile_rows) {
  return std::min(rows, rows / tile_rows + num_runs);
}

MatMulPlan PlanChain(const MatMulShape& shape, int64_t max_shared) {
  MatMulPlan plan;
  plan.kernel = MatMulKernel::kChain;
  // Warps that fit beside the leaves' sums.
  const auto most_warps = [&](int tile_rows) {
    const int64_t warp_bytes =
        ChainSlots(shape.group_bytes, tile_rows) * ChainSlotBytes(shape.group_bytes, tile_rows);
    const int64_t room = max_shared - ChainSumBytes(shape.num_leaves, tile_rows);
    return std::clamp<int64_t>(room / warp_bytes, 0, kChainWarps);
  };
  plan.tile_rows = shape.most_rows <= 1               ? 1
                   : shape.most_rows <= kChainFewRows ? kChainFewRows
                                                      : kChainManyRows;
  // Many leaves' sums of many rows would leave no room to read ahead, or for a deep stack.
  const int64_t enough = std::min<int64_t>(shape.num_leaves, kChainWarps / 2);
  if (plan.tile_rows == kChainManyRows &&
      (most_warps(kChainManyRows) < enough ||
       ChainSumBytes(shape.num_leaves + shape.depth, kChainManyRows) > max_shared)) {
    plan.tile_rows = kChainFewRows;
  }
  // As few as take no more turns at the leaves.
  const int64_t turns = Ceil(shape.num_leaves, std::max<int64_t>(1, most_warps(plan.tile_rows)));
  plan.warps = static_cast<int>(Ceil(shape.num_leaves, turns));
  const int64_t slot_bytes = plan.warps * ChainSlots(shape.group_bytes, plan.tile_rows) *
                             ChainSlotBytes(shape.group_bytes, plan.tile_rows);
  plan.shared_bytes = std::max(slot_bytes, ChainSumBytes(shape.depth, plan.tile_rows)) +
                      ChainSumBytes(shape.num_leaves, plan.tile_rows);
  return plan;
}

int64_t AttentionRows(int64_t num_heads, int num_stripes, int64_t head_dim, int64_t scratch_bytes) {
  const int64_t row_bytes = num_heads * num_stripes * (2 + head_dim) * 4;
  return std::max<int64_t>(1, scratch_bytes / std::max<int64_t>(row_bytes, 1));
}

}  // namespace phalanx::kernels::cuda
