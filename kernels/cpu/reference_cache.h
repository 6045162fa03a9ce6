// Elements of tensors and of a layer's cache, one at a time, for the plain references.
#ifndef PHALANX_KERNELS_CPU_REFERENCE_CACHE_H_
#define PHALANX_KERNELS_CPU_REFERENCE_CACHE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/kv_layout.h"
#include "kernels/float16.h"
#include "kernels/fp8.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::reference {

inline float Get(const void* data, DType type, int64_t index) {
  if (type == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

inline void Put(void* data, DType type, int64_t index, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = type == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
  }
}

inline float Get(TensorView t, int64_t row, int64_t col) {
  return Get(t.data, t.dtype, row * t.stride + col);
}
inline void Put(TensorView t, int64_t row, int64_t col, float value) {
  Put(t.data, t.dtype, row * t.stride + col, value);
}

// One KV head's keys and values of one block.
class CacheBlock {
 public:
  CacheBlock(const KvView& cache, int64_t block, int64_t head)
      : layout_(cache.shape),
        type_(cache.shape.dtype),
        head_(static_cast<uint8_t*>(cache.data) + layout_.Keys(block, head)) {}

  float Key(int64_t column, int64_t token) const {
    return Read(0, layout_.KeyIndex(column, token), layout_.KeyScales(0, 0) + token);
  }
  float Value(int64_t column, int64_t token) const {
    return Read(layout_.Values(0, 0), layout_.ValueIndex(column, token),
                layout_.ValueScales(0, 0) + token);
  }
  // x: [head_dim]; pad elements become +0.
  void PutKey(const std::vector<float>& x, int64_t token) const {
    const uint8_t scale = PutScale(x, layout_.KeyScales(0, 0) + token);
    for (int64_t i = 0; i < layout_.dk; ++i) Write(0, layout_.KeyIndex(i, token), x, i, scale);
  }
  void PutValue(const std::vector<float>& x, int64_t token) const {
    const uint8_t scale = PutScale(x, layout_.ValueScales(0, 0) + token);
    for (int64_t i = 0; i < layout_.dv; ++i) {
      Write(layout_.Values(0, 0), layout_.ValueIndex(i, token), x, i, scale);
    }
  }

 private:
  // `panel`, `scale_at`: bytes from the head's first; `index`: elements from the panel's.
  float Read(int64_t panel, int64_t index, int64_t scale_at) const {
    if (!layout_.fp8) return Get(head_ + panel, type_, index);
    return E4m3ToF32(head_[panel + index]) * E8m0ToF32(head_[scale_at]);
  }
  uint8_t PutScale(const std::vector<float>& x, int64_t scale_at) const {
    if (!layout_.fp8) return 0;
    uint32_t largest = 0;
    for (const float v : x) {
      largest = std::max(largest, __builtin_bit_cast(uint32_t, v) & 0x7fffffffu);
    }
    return head_[scale_at] = E4m3Scale(largest);
  }
  void Write(int64_t panel, int64_t index, const std::vector<float>& x, int64_t i,
             uint8_t scale) const {
    const bool pad = i >= static_cast<int64_t>(x.size());
    if (layout_.fp8) {
      head_[panel + index] = pad ? uint8_t{0} : F32ToE4m3(x[i], scale);
    } else {
      Put(head_ + panel, type_, index, pad ? 0.0f : x[i]);
    }
  }

  cpu::KvLayout layout_;
  DType type_;
  uint8_t* head_;
};

}  // namespace phalanx::kernels::reference

#endif  // PHALANX_KERNELS_CPU_REFERENCE_CACHE_H_
