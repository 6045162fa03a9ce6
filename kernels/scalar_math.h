// Scalar twins of the kernels' arithmetic, for references, sampling on the host and tests. They
// give the bits that every vector path gives, whatever the floating-point environment, and use no
// libm.
#ifndef PHALANX_KERNELS_SCALAR_MATH_H_
#define PHALANX_KERNELS_SCALAR_MATH_H_

#include <cstdint>

#include "kernels/kernels.h"

namespace phalanx::kernels {

// e^x, within 1 ulp. +0 for x < -87.33654 (results below the smallest normal), +inf above
// 88.72283, NaN for NaN.
float ExpScalar(float x);

// ln(x), within 1 ulp. Denormals count as zero (-inf); NaN for x < 0 and NaN.
float LogScalar(float x);

// Standard Gumbel noise -ln(-ln(u)) for one token id: u = (w + 0.5) / 2^32 with w the first word of
// Philox-4x32-10 with key {seed low, seed high} and counter {position, sample, token_id, purpose}.
// Finite: between -3.14 and 22.88.
float Gumbel(const GumbelKey& key, uint32_t token_id);

inline float Bf16ToF32(uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}
// Rounded to nearest even; NaN stays NaN and becomes quiet.
inline uint16_t F32ToBf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits | 0x00400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// Exact, denormals included; a signalling NaN becomes quiet.
float F16ToF32(uint16_t bits);
// Rounded to nearest even, denormals kept; NaN stays NaN and becomes quiet.
uint16_t F32ToF16(float value);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_SCALAR_MATH_H_
