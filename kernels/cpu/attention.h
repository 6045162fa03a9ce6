// How attention is cut into tasks, and how much scratch memory a task takes. Shared by the front
// (attention.cc) and the per-path code (attention.inc).
#ifndef PHALANX_KERNELS_CPU_ATTENTION_H_
#define PHALANX_KERNELS_CPU_ATTENTION_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/kv_layout.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::cpu {

// Query rows (tokens x heads of a group) that share one pass over the keys and values.
inline constexpr int64_t kTileRows = 64;
inline constexpr int kMaxStripes = 64;

// Token rows of one task of a group of `heads` query heads.
inline int64_t TaskTokenRows(int64_t heads) { return std::max<int64_t>(1, kTileRows / heads); }

// Operands of the merge's program.
inline int NumPartials(const AttentionArgs& args) {
  return args.num_partials > 0 ? args.num_partials : args.num_stripes;
}

// One task's memory, as offsets in floats; every part starts at a multiple of 16.
struct AttendScratchLayout {
  // `rows`: query rows of the task.
  AttendScratchLayout(int64_t rows, const KvLayout& layout, int64_t head_dim, int num_stripes)
      : q_width(RoundUp(layout.dk, 16)), v_width(layout.dv) {
    const int64_t dv = layout.dv;
    const int64_t padded_rows = RoundUp(rows, 16);
    q = 0;                               // [rows][q_width]
    scores = q + rows * q_width;         // [rows][kBlockTokens]
    max = scores + rows * kBlockTokens;  // [rows]
    sum = max + padded_rows;             // [rows]
    new_max = sum + padded_rows;         // [rows]
    alpha = new_max + padded_rows;       // [rows]
    block_sum = alpha + padded_rows;     // [rows]
    acc = block_sum + padded_rows;       // [rows][dv]
    partials = acc + rows * dv;          // [rows][num_stripes][2 + head_dim]
    merge = RoundUp(partials + rows * num_stripes * (2 + head_dim), 16);
    keys = merge + MergeScratchFloats(head_dim, num_stripes);
    values = keys + (layout.fp8 ? layout.dk * kBlockTokens : 0);
    size = values + (layout.fp8 ? dv * kBlockTokens : 0);
  }
  // A stack of (max, sum, values), one level for each stripe at most.
  static int64_t MergeScratchFloats(int64_t head_dim, int num_stripes) {
    return RoundUp(2 + head_dim, 16) * (num_stripes + 1);
  }

  int64_t q_width, v_width;
  int64_t q, scores, max, sum, new_max, alpha, block_sum, acc, partials, merge;
  int64_t keys, values;  // of one block and head, from FP8: as a plain cache has them
  int64_t size;
};

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_ATTENTION_H_
