// The inner layout of a KV block on GPUs: what attention loads is contiguous.
//
//   block: [num_kv_heads] x { keys, values }
//   BF16:     keys [4 token tiles][dk / 32][8 tokens][32]   values [dv / 8][8 columns][32 tokens]
//   F16, F32: keys [dk][32 tokens]                           values [32 tokens][dv]
//   FP8:      either of the two, by what it is read as, a byte each; then the scales of 32 keys, of
//             32 values in the order of the values
//
// BF16 keys and values are B operands of mma.m16n8k16 (fragment.h): 512 bytes are eight rows of a
// dot group in lane order. A score's registers become the A operand of P.V as they are, so tokens
// of the values stand in the order in which a lane holds its scores: token 16s + 8h + 2t + e at
// 8t + 4s + 2h + e.
#ifndef PHALANX_KERNELS_CUDA_KV_LAYOUT_H_
#define PHALANX_KERNELS_CUDA_KV_LAYOUT_H_

#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

inline constexpr int64_t kKvTokens = 32;

// Where a token's value stands among the 32 of its column, and back.
PHALANX_SHARED int ValuePosition(int token) {
  const int t = token % 8 / 2;
  return t * 8 + token / 16 * 4 + token % 16 / 8 * 2 + token % 2;
}
PHALANX_SHARED int TokenAtPosition(int position) {
  return position % 8 / 4 * 16 + position % 4 / 2 * 8 + position / 8 * 2 + position % 2;
}

struct KvLayout {
  // `type`: what is stored, or what FP8 is read as (KvShape::read_type).
  constexpr PHALANX_HOST_DEVICE KvLayout(DType type, int64_t heads, int64_t head_dim,
                                         bool is_fp8 = false)
      : dtype(type),
        fp8(is_fp8),
        num_heads(heads),
        dk(type == DType::kBF16 ? (head_dim + 31) / 32 * 32 : head_dim),
        dv(type == DType::kBF16 ? (head_dim + 7) / 8 * 8 : (head_dim + 15) / 16 * 16),
        element(is_fp8                ? 1
                : type == DType::kF32 ? 4
                                      : 2),
        key_bytes(dk * kKvTokens * element),
        scales(key_bytes + dv * kKvTokens * element),
        head_bytes((scales + (is_fp8 ? 2 * kKvTokens : 0) + 63) / 64 * 64),
        block_bytes(head_bytes * heads) {}

  // Byte offsets in the cache.
  PHALANX_HOST_DEVICE int64_t Keys(int64_t block, int64_t head) const {
    return block * block_bytes + head * head_bytes;
  }
  PHALANX_HOST_DEVICE int64_t Values(int64_t block, int64_t head) const {
    return Keys(block, head) + key_bytes;
  }
  // Element offsets inside one head's keys and values.
  PHALANX_HOST_DEVICE int64_t KeyIndex(int64_t column, int64_t token) const {
    if (dtype != DType::kBF16) return column * kKvTokens + token;
    return (token / 8 * (dk / 32) + column / 32) * 256 + token % 8 * 32 + column % 32;
  }
  PHALANX_HOST_DEVICE int64_t ValueIndex(int64_t column, int64_t token) const {
    if (dtype != DType::kBF16) return token * dv + column;
    return column * 32 + ValuePosition(static_cast<int>(token));
  }
  // Byte offsets of a token's scales from Keys().
  PHALANX_HOST_DEVICE int64_t KeyScale(int64_t token) const { return scales + token; }
  PHALANX_HOST_DEVICE int64_t ValueScale(int64_t token) const {
    return scales + kKvTokens +
           (dtype == DType::kBF16 ? ValuePosition(static_cast<int>(token)) : token);
  }

  DType dtype;
  bool fp8;
  int64_t num_heads;
  int64_t dk;
  int64_t dv;
  int64_t element;
  int64_t key_bytes;
  int64_t scales;  // bytes of keys and values: where the scales begin
  int64_t head_bytes;
  int64_t block_bytes;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_KV_LAYOUT_H_
