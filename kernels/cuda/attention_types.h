// The plain values of an attention call, which host and device share. Free of CUDA.
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_
#define PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_

#include <cstdint>

#include "kernels/cuda/kv_layout.h"
#include "kernels/host_device.h"

namespace phalanx::kernels::cuda {

// The widest head that attention over a BF16 cache takes; F32 and F16 take kMaxHeadDim (qkv.h).
inline constexpr int64_t kMaxMmaHeadDim = 256;
// Tokens that AttendPrefill takes at once, and the heads that it takes.
inline constexpr int64_t kPrefillStepTokens = 64;
PHALANX_SHARED bool IsPrefillHeadDim(int64_t head_dim) { return head_dim == 64 || head_dim == 128; }
inline constexpr int kMaxPartials = 64;

// One sequence's rows. As AttentionSequence, with its block table at tables + table_begin.
struct SequenceRows {
  int64_t row_begin;
  int64_t start;
  int32_t row_count;
  int32_t table_begin;
};

// Query heads heads[begin .. end) read KV head `kv_head`.
struct HeadGroup {
  int32_t kv_head;
  int32_t begin;
  int32_t end;
};

// Some query rows of a sequence: rows count by token, then by head of the group.
struct RowTile {
  int32_t sequence;
  int32_t first;
};

// Rows of a tile of each kernel over a BF16 cache; at most, of the first.
inline constexpr int kFewRows = 16;
inline constexpr int kManyRows = 128;

// Dynamic shared memory of a block of the first that has `warps` warps, for tiles of up to `rows`:
// for each warp a KV block, and the products of it, in rows with eight floats between them.
PHALANX_SHARED int64_t FewAttentionBytes(const KvLayout& layout, int warps, int rows) {
  return warps * (layout.head_bytes + int64_t{4} * rows * (layout.dv + 8));
}
// Warps of a block of `warps` that a stripe of at most `blocks` KV blocks gets: a power of two.
// Where that is less than `warps` several stripes share the block.
PHALANX_SHARED int WarpsOfStripe(int64_t blocks, int warps) {
  int given = 1;
  while (given < warps && given < blocks) given *= 2;
  return given;
}
// Blocks of 32 tokens that rows at positions [first, last] see with `window` (0: all), and the
// oldest of them.
PHALANX_SHARED int64_t OldestBlock(int64_t first, int64_t window) {
  return window > 0 && first >= window ? (first - window + 1) / kKvTokens : 0;
}
// The most blocks of one of `stripes` stripes among them.
PHALANX_SHARED int64_t MostBlocksOfStripe(int64_t first, int64_t last, int64_t window,
                                          int64_t stripes) {
  return (last / kKvTokens - OldestBlock(first, window) + stripes) / stripes;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_
