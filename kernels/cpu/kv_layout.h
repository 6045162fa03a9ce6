// The inner layout of a KV block on CPUs, chosen so that both attention products read it as panels:
// lanes are tokens for Q.K and head_dim columns for P.V.
//
//   block: [num_kv_heads] x { keys, values }
//   BF16:     keys [dk / 2][32 tokens][2]        values [16 token pairs][dv][2]
//   F16, F32: keys [dk][32 tokens]               values [32 tokens][dv]
//   FP8:      as F32, a byte each; then the scales of 32 keys, of 32 values
//
// dk is head_dim padded to dot groups where attention reads BF16 (pad rows are zero), else
// head_dim; dv is head_dim padded to 16 lanes (pad columns are never used for results).
#ifndef PHALANX_KERNELS_CPU_KV_LAYOUT_H_
#define PHALANX_KERNELS_CPU_KV_LAYOUT_H_

#include <cstdint>

#include "kernels/kernels.h"

namespace phalanx::kernels::cpu {

struct KvLayout {
  explicit KvLayout(const KvShape& shape)
      : fp8(shape.format == KvFormat::kF8E4M3),
        paired(!fp8 && shape.dtype == DType::kBF16),
        element(fp8 ? 1 : SizeOf(shape.dtype)),
        dk(shape.read_type() == DType::kBF16 ? RoundUp(shape.head_dim, kDotGroup) : shape.head_dim),
        dv(RoundUp(shape.head_dim, 16)),
        key_bytes(dk * kBlockTokens * element),
        value_bytes(dv * kBlockTokens * element),
        head_bytes(RoundUp(key_bytes + value_bytes + (fp8 ? 2 * kBlockTokens : 0), 64)),
        block_bytes(head_bytes * shape.num_kv_heads) {}

  // Byte offsets in the cache.
  int64_t Keys(int64_t block, int64_t head) const {
    return block * block_bytes + head * head_bytes;
  }
  int64_t Values(int64_t block, int64_t head) const { return Keys(block, head) + key_bytes; }
  // FP8: a byte for each token.
  int64_t KeyScales(int64_t block, int64_t head) const { return Values(block, head) + value_bytes; }
  int64_t ValueScales(int64_t block, int64_t head) const {
    return KeyScales(block, head) + kBlockTokens;
  }

  // Element offsets inside one head's keys and values.
  int64_t KeyIndex(int64_t column, int64_t token) const {
    if (!paired) return column * kBlockTokens + token;
    return column / 2 * (2 * kBlockTokens) + 2 * token + column % 2;
  }
  int64_t ValueIndex(int64_t column, int64_t token) const {
    if (!paired) return token * dv + column;
    return token / 2 * (2 * dv) + 2 * column + token % 2;
  }

  bool fp8;
  bool paired;  // neighbours of a product stand together: BF16
  int64_t element;
  int64_t dk;
  int64_t dv;
  int64_t key_bytes;
  int64_t value_bytes;
  int64_t head_bytes;
  int64_t block_bytes;
};

// Tokens [begin, end) of a block, as offsets 0 .. 32, that a query sees: causal, inside the window.
// Empty when begin >= end.
struct VisibleRange {
  VisibleRange(int64_t query_position, int64_t block, int64_t window) {
    const int64_t first = block * kBlockTokens;
    const int64_t low = window > 0 ? query_position - window + 1 - first : 0;
    const int64_t high = query_position + 1 - first;
    begin = static_cast<int>(low < 0 ? 0 : (low > kBlockTokens ? kBlockTokens : low));
    end = static_cast<int>(high < 0 ? 0 : (high > kBlockTokens ? kBlockTokens : high));
  }
  bool empty() const { return begin >= end; }
  bool whole() const { return begin == 0 && end == kBlockTokens; }
  int begin;
  int end;
};

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_KV_LAYOUT_H_
