// The plain values of an attention call, which host and device share. Free of CUDA.
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_
#define PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_

#include <cstdint>

namespace phalanx::kernels::cuda {

// The widest head that attention over a BF16 cache takes; F32 and F16 take kMaxHeadDim (qkv.h).
inline constexpr int64_t kMaxMmaHeadDim = 256;
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

// Rows of a tile of each kernel over a BF16 cache.
inline constexpr int kFewRows = 16;
inline constexpr int kManyRows = 128;

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ATTENTION_TYPES_H_
