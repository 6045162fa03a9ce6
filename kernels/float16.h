// BF16 and F16 to F32 and back, in integer arithmetic: the same bits on every processor, whatever
// the floating-point environment.
#ifndef PHALANX_KERNELS_FLOAT16_H_
#define PHALANX_KERNELS_FLOAT16_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace phalanx::kernels {

PHALANX_SHARED float Bf16ToF32(uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}
// Rounded to nearest even; NaN stays NaN and becomes quiet.
PHALANX_SHARED uint16_t F32ToBf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits | 0x00400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact, denormals included; a signalling NaN becomes quiet.
PHALANX_SHARED float F16ToF32(uint16_t bits) {
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

// Rounded to nearest even, denormals kept; NaN stays NaN and becomes quiet.
PHALANX_SHARED uint16_t F32ToF16(float value) {
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

#endif  // PHALANX_KERNELS_FLOAT16_H_
