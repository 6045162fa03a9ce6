// Paged attention by stripes (R3): partial softmaxes of each stripe, then their merge.
//
// Every kernel of `exact` walks a stripe's blocks in rising order and computes for each row
//   scores, block max, new max, alpha = exp(old max - new max), p = exp(score - new max),
//   sum = fma(sum, alpha, sum of p), values = fma(values, alpha, p . V of the block from +0)
// with one and the same instruction sequence for a score, a sum of p and a p . V, so a row's bits
// don't depend on which kernel, tile or warp it fell to.
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_H_
#define PHALANX_KERNELS_CUDA_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/attention_types.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

struct AttentionParams {
  TensorView q;  // 16-byte aligned rows
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  int64_t window = 0;
  KvLayout layout = KvLayout(DType::kF32, 0, 1);
  const void* cache = nullptr;
  const SequenceRows* sequences = nullptr;
  const int32_t* tables = nullptr;
  const HeadGroup* groups = nullptr;
  const int32_t* heads = nullptr;
  int num_groups = 0;
  int num_stripes = 8;
  int stripe_begin = 0;
  int stripe_end = 8;
  // [row][head][stripe - stripe_begin][2 + head_dim] (kernels/kernels.h)
  float* partials = nullptr;
};

// A cache that is read as BF16, tiles of up to kFewRows rows: a block's warps take as many blocks
// of a stripe at once, or those of several stripes that have fewer. `most_rows`: rows in the
// fullest tile; `most_blocks`: no tile sees more blocks of a stripe; `warps`: FewAttentionWarps.
cudaError_t AttendFew(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                      int most_rows, int64_t most_blocks, int warps, cudaStream_t stream);
// Likewise, tiles of kManyRows rows: eight warps share a block's keys and values.
cudaError_t AttendMany(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                       cudaStream_t stream);
// Profile `fast`, a cache that is read as BF16, heads of IsPrefillHeadDim, a positive scale: tiles
// of kManyRows over all stripes, in an order of its own (attention_prefill.cu). One piece: to
// out[row][out_column[head] ..], and `partials` doesn't count. More: each takes a share of the
// context and leaves partials [row][head][piece][2 + head_dim], as stripes do.
cudaError_t AttendPrefill(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                          int pieces, const int32_t* out_column, TensorView out,
                          cudaStream_t stream);
// Shared memory of one of its blocks.
int64_t PrefillAttentionBytes(const KvLayout& layout);
// F32 or F16 cache, or FP8 read as F32, a tile for each token (`first`: the token): the bits of the
// CPU.
cudaError_t AttendChain(const AttentionParams& params, const RowTile* tiles, int64_t num_tiles,
                        cudaStream_t stream);

// One postfix program on the device.
struct DeviceProgram {
  const int* codes = nullptr;
  int steps = 0;
  int depth = 1;  // operands alive at once
  int tree = 0;   // operands, if they are a power of two and it is R2's tree over them; else 0
};

// out[row][out_column[head] ..] = the merged values over the merged sum; rows = out.rows. Columns
// of no head are not touched; no `out_column`: heads lie side by side. partials:
// [row][head][num_in][2 + head_dim].
cudaError_t MergeAttention(const float* partials, int64_t num_heads, int64_t head_dim, int num_in,
                           DeviceProgram program, const int32_t* out_column, TensorView out,
                           cudaStream_t stream);
// out[unit * num_programs + index] = `program` over the unit's operands, not normalised.
cudaError_t MergePartials(const float* partials, int64_t count, int64_t head_dim, int num_in,
                          DeviceProgram program, int index, int num_programs, float* out,
                          cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ATTENTION_H_
