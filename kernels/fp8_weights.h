// Weights in FP8 E4M3: the codes of kernels/fp8.h, and a scale for each row and dot group of 32
// values of k (the block of the OCP Microscaling Formats Specification). A weight's value is code *
// scale as BF16; none is NaN, infinite or a denormal.
//
// What is quantised here gets powers of two for scales (E4m3Scale), with which the product is
// exact. Those of checkpoints are BF16, or F32: then the scale is split into the nearest BF16 and
// the BF16 nearest to the rest, and the value is fma(code, scale, code * rest), each operation
// rounded once to BF16, to nearest even. That is code * scale rounded once, unless it lies within
// 2^-17 of a tie.
#ifndef PHALANX_KERNELS_FP8_WEIGHTS_H_
#define PHALANX_KERNELS_FP8_WEIGHTS_H_

#include <cstdint>

#include "kernels/float16.h"
#include "kernels/fp8.h"
#include "kernels/host_device.h"

namespace phalanx::kernels {

// Values that share a scale: kDotGroup of kernels/kernels.h.
inline constexpr int kFp8GroupValues = 32;
// Bounds of a checkpoint's scales that aren't 0. Within them scale * 2^120, the factor that GPUs
// want (kernels/cuda/fp8.cuh), and the rest's are BF16, too, and no product is a denormal.
inline constexpr float kLeastFp8Scale = 0x1p-90f;
inline constexpr float kMostFp8Scale = 0x1p7f;
// The largest magnitude: 448 * 2^7.
inline constexpr float kMaxFp8Weight = 57344.0f;

struct Fp8Group {
  uint8_t codes[kFp8GroupValues];
  uint16_t scale;     // BF16
  uint16_t rest = 0;  // BF16: of a scale in F32 what `scale` leaves
};

// Whether a value can be kept: its magnitude is at most kMaxFp8Weight.
PHALANX_SHARED bool IsFp8Weight(uint16_t bf16) {
  return (bf16 & 0x7fffu) <= 0x4760u;  // 57344 in BF16
}

// Quantises 32 values of BF16. Returns false, and leaves `group` undefined, if one of them can't be
// kept.
bool QuantiseGroup(const uint16_t* values, Fp8Group* group);

// The value of the group's element i, whose code isn't NaN, as BF16.
PHALANX_SHARED uint16_t Fp8Weight(const Fp8Group& group, int i) {
  const float code = E4m3ToF32(group.codes[i]);
  // Products of four significant bits and eight are exact in F32. Their sum need not be, but rounds
  // to the BF16 that it would be rounded to at once, for every code and scale.
  const float rest = Bf16ToF32(F32ToBf16(code * Bf16ToF32(group.rest)));
  return F32ToBf16(code * Bf16ToF32(group.scale) + rest);
}

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_FP8_WEIGHTS_H_
