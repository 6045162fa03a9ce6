// An attention call as the kernels want it: heads by KV head, rows in tiles, tables in one row.
// Arithmetic on the host, tested everywhere.
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_PLAN_H_
#define PHALANX_KERNELS_CUDA_ATTENTION_PLAN_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/attention_types.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cuda {

// How a layer's blocks lie in memory.
inline KvLayout LayoutOf(const KvShape& shape) {
  return KvLayout(shape.read_type(), shape.num_kv_heads, shape.head_dim,
                  shape.format == KvFormat::kF8E4M3);
}

struct HeadGroups {
  std::vector<HeadGroup> groups;
  std::vector<int32_t> heads;  // query heads by KV head, both in rising order
  int64_t widest = 0;          // query heads of the largest group
};
HeadGroups GroupHeads(absl::Span<const int32_t> kv_head_of, int64_t num_kv_heads);

// Whether a sequence of so many query rows is cut into tiles of kManyRows; else of few_rows.
bool AreMany(int64_t query_rows);

struct AttentionPlan {
  std::vector<SequenceRows> sequences;
  std::vector<int32_t> tables;
  std::vector<RowTile> few;                       // BF16: tiles of few_rows
  std::vector<RowTile> many;                      // BF16: tiles of kManyRows
  std::vector<RowTile> tokens;                    // F32, F16: a tile a token
  int most_few_rows = 1;                          // rows of the fullest tile of `few`
  std::vector<std::pair<int64_t, int64_t>> runs;  // rows [begin, end) that belong to a sequence
};

// Rows [row_begin, row_end) of the call; rows of the plan count from row_begin. `few_rows`:
// FewAttentionRows.
AttentionPlan PlanAttention(absl::Span<const AttentionSequence> sequences, int64_t row_begin,
                            int64_t row_end, int64_t widest_group, bool bf16,
                            int64_t few_rows = kFewRows);

// The most rows, up to kFewRows, that a tile of AttendFew may have where a block has `max_shared`
// bytes of shared memory.
int64_t FewAttentionRows(const KvLayout& layout, int64_t max_shared);
// Warps of a block of AttendFew: 4, or 2 of heads wider than 128. Eight, which have twice as many
// bytes on the way, where there is a block for each multiprocessor at most, for tiles of up to
// eight rows, if `max_shared` allows. `blocks`: tiles x groups x stripes; `most_rows`,
// `most_blocks`: as of AttendFew. No bit depends on it.
int FewAttentionWarps(const KvLayout& layout, int most_rows, int64_t most_blocks, int64_t blocks,
                      int num_sms, int64_t max_shared);

// Into how many pieces AttendPrefill cuts the contexts of `plan.many`, for `num_groups` groups of
// heads on `num_sms` multiprocessors: as many as keep two blocks on each busy, but none shorter
// than some steps, and at most `most`.
int PrefillPieces(const AttentionPlan& plan, int64_t num_groups, int64_t window, int num_sms,
                  int64_t most);

// The most blocks of one of `stripes` stripes that a tile of `plan.few` sees with `window`.
int64_t MostFewBlocks(const AttentionPlan& plan, int64_t window, int64_t stripes);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ATTENTION_PLAN_H_
