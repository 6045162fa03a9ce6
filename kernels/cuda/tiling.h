// Which kernel, tile and split a matmul gets: arithmetic on shapes, which changes no bit of a
// result (matmul.h). Free of CUDA, so that it is tested everywhere.
#ifndef PHALANX_KERNELS_CUDA_TILING_H_
#define PHALANX_KERNELS_CUDA_TILING_H_

#include <cstdint>
#include <limits>
#include <optional>

namespace phalanx::kernels::cuda {

inline constexpr int kMaxLeaves = 64;
// Output columns of one block of the tiled kernel.
inline constexpr int kTiledColumns = 128;

enum class MatMulKernel {
  kFew,    // a warp a chunk, straight from memory: decode
  kMany,   // tiles through shared memory
  kChain,  // of F32 and F16: a warp a leaf
};
enum class MatMulSplit {
  kNone,    // a block computes all leaves of its outputs
  kLeaves,  // a leaf each, joined by a second pass
  kChunks,  // a chunk each, joined by a second pass
};

struct MatMulPlan {
  MatMulKernel kernel = MatMulKernel::kFew;
  // Rows of x of a block: kFew 1, 2, 4, 8, 16; kMany 32, 64, 128; kChain 1, 4, 16.
  int tile_rows = 8;
  MatMulSplit split = MatMulSplit::kNone;
  int64_t units = 1;          // leaves, chunks or 1: what the split makes
  int64_t grid = 1;           // blocks of kMany (persistent: each takes several tiles)
  int warps = 0;              // of a block of kFew or kChain
  int slots = 0;              // groups of k that a warp of kFew has in memory
  int ahead_groups = 0;       // that it has brought to the L2 cache beside, of its first chunk
  int64_t shared_bytes = 0;   // of kFew and kChain
  int64_t in_flight = 0;      // of kFew: bytes of weights on their way to a multiprocessor
  int64_t scratch_bytes = 0;  // of kMany: unit sums, or sums that wait for their partner
};

struct MatMulShape {
  int64_t rows = 0;  // of x, all tiles together
  // Of the tallest weight's run of rows (GroupedMatMul; RunExperts: what is expected), else rows.
  int64_t most_rows = 0;
  int64_t num_runs = 1;  // runs of rows: weights of a GroupedMatMul
  int64_t n = 0;
  int64_t num_leaves = 1;
  int64_t num_chunks = 1;
  int depth = 1;
  // kFew's blocks compute so many times sixteen columns: 2 of gates and ups
  // (MatMulParams::activated).
  int column_tiles = 1;
  // Of 32 values of k and sixteen columns' weights; of kChain's a warp's (ChainGroupBytes).
  int64_t group_bytes = 1024;
};

// `num_sms`: multiprocessors; `max_shared`: bytes of shared memory that a block may have;
// `max_scratch`: no split, and no more blocks, than fit it. One block that holds sums back for its
// programs takes its scratch in any case.
MatMulPlan PlanMatMul(const MatMulShape& shape, int num_sms, int64_t max_shared,
                      int64_t max_scratch = std::numeric_limits<int64_t>::max());
// kFew for gates and ups at once (MatMulParams::activated). nullopt: `shape`'s own plan and SiluMul
// are better, since there are too many rows, too few blocks for the device, or so large ones that
// less of memory's work is on its way.
std::optional<MatMulPlan> PlanGatedMatMul(const MatMulShape& shape, int num_sms,
                                          int64_t max_shared);
// The most that plans of this shape and up to as many rows, in any runs, have for scratch_bytes:
// what is asked for once, in the largest step, serves all smaller ones. most_rows and num_runs of
// `shape` are not looked at.
int64_t MostScratchBytes(const MatMulShape& shape, int num_sms, int64_t max_shared);

// kFew: warps of a block at most, and groups of k that each has in memory: few where a block has
// many warps, and a multiprocessor several blocks.
inline constexpr int kFewWarps = 8;
inline constexpr int kFewSlots = 6;
inline constexpr int kFewManySlots = 12;
// Bytes of one group: weights of sixteen columns (MatMulShape::group_bytes), and x.
constexpr int64_t FewSlotBytes(int64_t group_bytes, int tile_rows) {
  return group_bytes + 64 * int64_t{tile_rows};
}
// Shared memory of kFew: slots, later the leaves' sums; chunk sums (rows padded by one word), which
// begin at FewSumsAt; the programs' stack.
// `num_leaves`: of all the block's columns, column_tiles times a product's.
int64_t FewSumsAt(int64_t group_bytes, int64_t num_leaves, int tile_rows, int warps, int slots);
int64_t FewSharedBytes(const MatMulShape& shape, int tile_rows, int warps, int slots);
// Bytes of weights that the blocks of kFew which a multiprocessor has at once bring to the L2 cache
// before their turn: with what their slots hold, as much as an H200 reads in 8 to 10 us and its
// cache can keep.
inline constexpr int64_t kFewAheadBytes = int64_t{184} << 10;

// The plan of F32 and F16 weights: kChain.
MatMulPlan PlanChain(const MatMulShape& shape, int64_t max_shared);

// kChain: warps of a block at most, and rows that blocks of several rows take.
inline constexpr int kChainWarps = 8;
inline constexpr int kChainFewRows = 4;
inline constexpr int kChainManyRows = 16;
// Bytes of one group: weights (MatMulShape::group_bytes), and x in F32.
constexpr int64_t ChainSlotBytes(int64_t group_bytes, int tile_rows) {
  return group_bytes + 128 * int64_t{tile_rows};
}
// Groups of k that a warp has in memory: up to 20 KiB, so that a few warps of a multiprocessor keep
// memory at work.
constexpr int ChainSlots(int64_t group_bytes, int tile_rows) {
  const int64_t slots = (int64_t{20} << 10) / ChainSlotBytes(group_bytes, tile_rows);
  return static_cast<int>(slots < 8 ? slots : 8);
}
// Sums of 32 columns of a tile's rows, `count` of them.
constexpr int64_t ChainSumBytes(int64_t count, int tile_rows) { return count * tile_rows * 128; }

// Rows of the tallest run that a product of experts is planned for, where only the device knows the
// runs: `rows` rows of at most `tokens` in each of up to `num_experts` runs. Twice the mean: a run
// that is taller takes several tiles.
int64_t ExpectedTallestRun(int64_t rows, int64_t tokens, int64_t num_experts);
// Tiles of up to `tile_rows` rows that `rows` rows in up to `num_runs` runs take at most.
int64_t MostTiles(int64_t rows, int64_t num_runs, int64_t tile_rows);

// Rows of an attention call that are worked on before their partials are merged, so that partials
// take at most `scratch_bytes`; at least one.
int64_t AttentionRows(int64_t num_heads, int num_stripes, int64_t head_dim, int64_t scratch_bytes);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_TILING_H_
