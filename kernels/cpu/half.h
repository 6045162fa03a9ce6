// Exact widening of 16-bit floats, in scalar code.
#ifndef PHALANX_KERNELS_CPU_HALF_H_
#define PHALANX_KERNELS_CPU_HALF_H_

#include <cstdint>
#include <cstring>

namespace phalanx::kernels::cpu {

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float WidenBf16(uint16_t v) { return FloatFromBits(static_cast<uint32_t>(v) << 16); }

// IEEE binary16. Denormals widen exactly, as VCVTPH2PS does whatever DAZ says: integer arithmetic
// only. NaN and infinity keep their payload's top bits.
inline float WidenF16(uint16_t v) {
  const uint32_t sign = static_cast<uint32_t>(v & 0x8000) << 16;
  uint32_t exponent = (v >> 10) & 31;
  uint32_t mantissa = v & 1023;
  if (exponent == 31) return FloatFromBits(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    if (mantissa == 0) return FloatFromBits(sign);
    exponent = 1;
    while ((mantissa & 1024) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 1023;
  }
  return FloatFromBits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_HALF_H_
