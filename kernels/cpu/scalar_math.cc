#include "kernels/scalar_math.h"

#include <cstdint>

namespace phalanx::kernels::cpu {
namespace {

// One lane, in the vocabulary of vector_math.h.
struct F32x1 {
  float v;
};
struct I32x1 {
  uint32_t v;
};
struct M1 {
  bool v;
};

template <typename F>
struct VectorTypes;
template <>
struct VectorTypes<F32x1> {
  using Int = I32x1;
};

template <typename V, typename S>
V Splat(S value);
template <>
inline F32x1 Splat<F32x1, float>(float value) {
  return {value};
}
template <>
inline I32x1 Splat<I32x1, int32_t>(int32_t value) {
  return {static_cast<uint32_t>(value)};
}

inline F32x1 Add(F32x1 x, F32x1 y) { return {x.v + y.v}; }
inline F32x1 Sub(F32x1 x, F32x1 y) { return {x.v - y.v}; }
inline F32x1 Mul(F32x1 x, F32x1 y) { return {x.v * y.v}; }
inline F32x1 Fma(F32x1 x, F32x1 y, F32x1 z) { return {__builtin_fmaf(x.v, y.v, z.v)}; }
inline F32x1 Neg(F32x1 x) { return {-x.v}; }
inline M1 Greater(F32x1 x, F32x1 y) { return {x.v > y.v}; }
inline M1 GreaterEqual(F32x1 x, F32x1 y) { return {x.v >= y.v}; }
inline M1 Equal(F32x1 x, F32x1 y) { return {x.v == y.v}; }
inline F32x1 Select(M1 m, F32x1 x, F32x1 y) { return m.v ? x : y; }
inline I32x1 Add(I32x1 x, I32x1 y) { return {x.v + y.v}; }
inline I32x1 Sub(I32x1 x, I32x1 y) { return {x.v - y.v}; }
inline I32x1 Xor(I32x1 x, I32x1 y) { return {x.v ^ y.v}; }
template <int kBits>
I32x1 ShiftLeft(I32x1 x) {
  return {x.v << kBits};
}
template <int kBits>
I32x1 ShiftRightArithmetic(I32x1 x) {
  return {static_cast<uint32_t>(static_cast<int32_t>(x.v) >> kBits)};
}
inline M1 GreaterI(I32x1 x, I32x1 y) {
  return {static_cast<int32_t>(x.v) > static_cast<int32_t>(y.v)};
}
inline F32x1 AsFloat(I32x1 x) { return {__builtin_bit_cast(float, x.v)}; }
inline I32x1 AsInt(F32x1 x) { return {__builtin_bit_cast(uint32_t, x.v)}; }
inline F32x1 ToFloat(I32x1 x) { return {static_cast<float>(static_cast<int32_t>(x.v))}; }
inline I32x1 MulHigh(I32x1 x, uint32_t m) {
  return {static_cast<uint32_t>((static_cast<uint64_t>(x.v) * m) >> 32)};
}
inline I32x1 MulLow(I32x1 x, uint32_t m) { return {x.v * m}; }

}  // namespace
}  // namespace phalanx::kernels::cpu

#include "kernels/cpu/vector_math.h"

namespace phalanx::kernels {

float ExpScalar(float x) { return cpu::Exp(cpu::F32x1{x}).v; }

float LogScalar(float x) { return cpu::Log(cpu::F32x1{x}).v; }

float Gumbel(const GumbelKey& key, uint32_t token_id) {
  return cpu::GumbelNoise<cpu::F32x1>(key, cpu::I32x1{token_id}).v;
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0x1f) {
    if (fraction != 0) fraction |= 0x200u;
    return __builtin_bit_cast(float, sign | 0x7f800000u | (fraction << 13));
  }
  if (exponent != 0) {
    return __builtin_bit_cast(float, sign | ((exponent + 112u) << 23) | (fraction << 13));
  }
  if (fraction == 0) return __builtin_bit_cast(float, sign);
  // Denormal: fraction * 2^-24, made normal by hand.
  uint32_t e = 113;
  while ((fraction & 0x400u) == 0) {
    fraction <<= 1;
    --e;
  }
  return __builtin_bit_cast(float, sign | (e << 23) | ((fraction & 0x3ffu) << 13));
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN: quiet, the payload's top bits kept
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude >= 0x38800000u) {                                              // normal
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  if (magnitude <= 0x33000000u) return static_cast<uint16_t>(sign);  // at most half of 2^-24
  // Denormal: the significand shifted to units of 2^-24, rounded to nearest even.
  const uint32_t exponent = magnitude >> 23;  // 102 .. 112
  const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = 126u - exponent;  // 14 .. 24
  const uint32_t kept = significand >> shift;
  const uint32_t rest = significand & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1u);
  const uint32_t up = (rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (kept + up));
}

}  // namespace phalanx::kernels
