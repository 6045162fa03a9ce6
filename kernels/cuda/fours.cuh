// Four neighbouring columns of a row by one load or store.
#ifndef PHALANX_KERNELS_CUDA_FOURS_CUH_
#define PHALANX_KERNELS_CUDA_FOURS_CUH_

#include <cstdint>

#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {

inline constexpr int kFour = 4;

struct Four {
  float v[kFour];
};

__device__ __forceinline__ Four LoadFour(const float* from) {
  const Words words = LoadWords(from);
  Four four;
#pragma unroll
  for (int i = 0; i < kFour; ++i) four.v[i] = __builtin_bit_cast(float, words.w[i]);
  return four;
}
// Columns from `index` on of F32 or BF16.
__device__ __forceinline__ Four LoadFour(const void* data, DType type, int64_t index) {
  if (type == DType::kF32) return LoadFour(static_cast<const float*>(data) + index);
  const Codes pairs = LoadCodes(static_cast<const uint16_t*>(data) + index);
  Four four;
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    four.v[i] = Bf16ToF32(static_cast<uint16_t>(pairs.w[i / 2] >> i % 2 * 16));
  }
  return four;
}
__device__ __forceinline__ void StoreFour(float* to, const Four& four) {
  Words words;
#pragma unroll
  for (int i = 0; i < kFour; ++i) words.w[i] = __builtin_bit_cast(uint32_t, four.v[i]);
  StoreWords(to, words);
}
// To columns from `index` on of F32 or BF16.
__device__ __forceinline__ void StoreFour(void* data, DType type, int64_t index, const Four& four) {
  if (type == DType::kF32) return StoreFour(static_cast<float*>(data) + index, four);
  Codes pairs;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    pairs.w[i] = F32ToBf16(four.v[2 * i]) | static_cast<uint32_t>(F32ToBf16(four.v[2 * i + 1]))
                                                << 16;
  }
  StoreCodes(static_cast<uint16_t*>(data) + index, pairs);
}

// Whether the above can take it: null, too.
inline bool AreFours(const float* row) { return reinterpret_cast<uintptr_t>(row) % 16 == 0; }
inline bool AreFours(const TensorView& t) {
  const auto bytes = static_cast<uintptr_t>(kFour * SizeOf(t.dtype));
  return t.dtype != DType::kF16 && reinterpret_cast<uintptr_t>(t.data) % bytes == 0 &&
         t.stride % kFour == 0 && t.cols % kFour == 0;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_FOURS_CUH_
