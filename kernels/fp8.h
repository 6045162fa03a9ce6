// FP8 E4M3 values and the power-of-two scales that go with them, in arithmetic that is exact: the
// same bits on every processor, whatever the floating-point environment.
//
// E4M3 (OCP 8-bit Floating Point Specification; Micikevicius et al., arXiv:2209.05433): a sign,
// four bits of exponent with bias 7, three of fraction; denormals, no infinities, NaN is 0x7f and
// 0xff, the largest value is 448. E8M0 (OCP Microscaling Formats Specification): byte b is 2^(b -
// 127), 0xff is NaN.
//
// Numbers that share a scale are stored as the E4M3 codes of x / scale, rounded to nearest even and
// saturating. The scale is the smallest power of two with max |x| / scale <= 448, but at least
// 2^-117 and at most 2^119: then every value that is read back is zero or a normal BF16. It has at
// most four significant bits, so it is exact in BF16 and F32. Denormal F32 count as zero. Where one
// of the numbers is a NaN or an infinity the scale is NaN and so is all that is read back: no fault
// is hidden.
#ifndef PHALANX_KERNELS_FP8_H_
#define PHALANX_KERNELS_FP8_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace phalanx::kernels {

inline constexpr uint8_t kE4m3Nan = 0x7f;
inline constexpr uint8_t kE8m0Nan = 0xff;

// Exact. NaN is quiet.
PHALANX_SHARED float E4m3ToF32(uint8_t code) {
  // Without branches: a GPU asks for many codes before it has the first.
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t normal = (magnitude << 20) + (120u << 23);
  const uint32_t denormal =
      __builtin_bit_cast(uint32_t, static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
  const uint32_t value = magnitude == kE4m3Nan ? 0x7fc00000u : magnitude >= 8 ? normal : denormal;
  return __builtin_bit_cast(float, sign | value);
}

// The scale of numbers of which the largest has the magnitude `largest`: the bits of an F32 without
// its sign.
PHALANX_SHARED uint8_t E4m3Scale(uint32_t largest) {
  if (largest >= 0x7f800000u) return kE8m0Nan;
  // 448 = 1.75 * 2^8: a larger fraction than that needs the next power of two.
  const int32_t scale = static_cast<int32_t>((largest + 0x1fffffu) >> 23) - 8;
  return static_cast<uint8_t>(scale < 10 ? 10 : scale > 246 ? 246 : scale);
}

// Exact; a denormal for 0, which no scale of E4m3Scale is.
PHALANX_SHARED float E8m0ToF32(uint8_t scale) {
  if (scale == kE8m0Nan) return __builtin_bit_cast(float, 0x7fc00000u);
  return __builtin_bit_cast(float, scale == 0 ? 0x00400000u : static_cast<uint32_t>(scale) << 23);
}

// 1 / scale, for scales of E4m3Scale that aren't NaN: exact and normal.
PHALANX_SHARED float E8m0Inverse(uint8_t scale) {
  return __builtin_bit_cast(float, (254u - scale) << 23);
}

// The code of value / scale; NaN where the scale is.
PHALANX_SHARED uint8_t F32ToE4m3(float value, uint8_t scale) {
  if (scale == kE8m0Nan) return kE4m3Nan;
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x00800000u) return static_cast<uint8_t>(sign);
  const uint32_t fraction = magnitude & 0x7fffffu;
  // The quotient's exponent, biased as F32's.
  const int32_t exponent = static_cast<int32_t>(magnitude >> 23) + 127 - scale;
  if (exponent > 120) {  // at least 2^-6: normal
    const uint32_t quotient = static_cast<uint32_t>(exponent) << 23 | fraction;
    const uint32_t code = ((quotient + 0x7ffffu + (quotient >> 20 & 1u)) >> 20) - (120u << 3);
    return static_cast<uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
  }
  // Denormal: the significand in units of 2^-9.
  const int32_t shift = 141 - exponent;               // 21 and more
  if (shift > 24) return static_cast<uint8_t>(sign);  // less than half a unit
  const uint32_t significand = fraction | 0x800000u;
  const uint32_t kept = significand >> shift;
  const uint32_t rest = significand & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1);
  const uint32_t up = (rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u;
  return static_cast<uint8_t>(sign | (kept + up));
}

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_FP8_H_
