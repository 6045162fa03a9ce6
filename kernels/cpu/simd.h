// Sixteen lanes of F32 (F32x16), I32 (I32x16) and masks (M16) for one instruction set.
//
// The including file says which: #define PHALANX_SIMD_PATH 0 (portable), 2 (AVX2, FMA, F16C) or 3
// (AVX-512 F, BW, DQ, VL) and is compiled with the matching flags. Everything lies in an unnamed
// namespace, so files compiled for different sets never share a function (one definition rule).
//
// Every operation rounds once, as IEEE 754 says, so all three give the same bits. Max(a, b) is
// a > b ? a : b and Min(a, b) is a < b ? a : b, the x86 instruction's answer for zeros and NaN.
#ifndef PHALANX_KERNELS_CPU_SIMD_H_
#define PHALANX_KERNELS_CPU_SIMD_H_

#ifndef PHALANX_SIMD_PATH
#error "define PHALANX_SIMD_PATH before including kernels/cpu/simd.h"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#if PHALANX_SIMD_PATH == 0 && defined(__GNUC__) && !defined(__clang__)
// No vector crosses a call that isn't inlined, so GCC's notes on the calling convention don't
// apply.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
#if PHALANX_SIMD_PATH != 0
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns about its own _mm512_undefined_ps() (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#include "kernels/fp8.h"
#include "kernels/scalar_math.h"

#define PHALANX_INLINE inline __attribute__((always_inline))

namespace phalanx::kernels::cpu {
namespace {

constexpr int kLanes = 16;

#if PHALANX_SIMD_PATH == 3
#include "kernels/cpu/simd_avx512.inc"
#elif PHALANX_SIMD_PATH == 2
#include "kernels/cpu/simd_avx2.inc"
#else
#include "kernels/cpu/simd_portable.inc"
#endif

// How vector_math.h names the types that belong together.
template <typename F>
struct VectorTypes;
template <>
struct VectorTypes<F32x16> {
  using Int = I32x16;
};
template <typename V, typename S>
PHALANX_INLINE V Splat(S value);
template <>
PHALANX_INLINE F32x16 Splat<F32x16, float>(float value) {
  return Set1(value);
}
template <>
PHALANX_INLINE I32x16 Splat<I32x16, int32_t>(int32_t value) {
  return SetI(value);
}

// Widened elements of a row of any dtype.
template <DType kType>
PHALANX_INLINE F32x16 LoadAs(const void* row, int64_t index) {
  if constexpr (kType == DType::kF32) return Load(static_cast<const float*>(row) + index);
  if constexpr (kType == DType::kBF16) return LoadBf16(static_cast<const uint16_t*>(row) + index);
  if constexpr (kType == DType::kF16) return LoadF16(static_cast<const uint16_t*>(row) + index);
}
template <DType kType>
PHALANX_INLINE F32x16 LoadAsN(const void* row, int64_t index, int n) {
  if constexpr (kType == DType::kF32) return LoadN(static_cast<const float*>(row) + index, n);
  uint16_t buffer[kLanes] = {};
  std::memcpy(buffer, static_cast<const uint16_t*>(row) + index, n * sizeof(uint16_t));
  return LoadAs<kType>(buffer, 0);
}
// Rounded (to nearest even) and stored.
template <DType kType>
PHALANX_INLINE void StoreAs(void* row, int64_t index, F32x16 v) {
  if constexpr (kType == DType::kF32) Store(static_cast<float*>(row) + index, v);
  if constexpr (kType == DType::kBF16) StoreBf16(static_cast<uint16_t*>(row) + index, v);
  if constexpr (kType == DType::kF16) StoreF16(static_cast<uint16_t*>(row) + index, v);
}
template <DType kType>
PHALANX_INLINE void StoreAsN(void* row, int64_t index, F32x16 v, int n) {
  if constexpr (kType == DType::kF32) {
    StoreN(static_cast<float*>(row) + index, v, n);
  } else {
    uint16_t buffer[kLanes];
    StoreAs<kType>(buffer, 0, v);
    std::memcpy(static_cast<uint16_t*>(row) + index, buffer, n * sizeof(uint16_t));
  }
}

// The value as it reads back after a store as kType.
template <DType kType>
PHALANX_INLINE F32x16 RoundTo(F32x16 v) {
  if constexpr (kType == DType::kF32) {
    return v;
  } else if constexpr (kType == DType::kBF16) {
    return RoundToBf16(v);
  } else {
    alignas(32) uint16_t buffer[kLanes];
    StoreF16(buffer, v);
    return LoadF16(buffer);
  }
}

}  // namespace
}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_SIMD_H_
