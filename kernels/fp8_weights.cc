#include "kernels/fp8_weights.h"

#include <algorithm>

namespace phalanx::kernels {

bool QuantiseGroup(const uint16_t* values, Fp8Group* group) {
  uint32_t largest = 0;
  for (int i = 0; i < kFp8GroupValues; ++i) {
    if (!IsFp8Weight(values[i])) return false;
    largest = std::max(largest, static_cast<uint32_t>(values[i] & 0x7fffu) << 16);
  }
  const uint8_t scale = E4m3Scale(largest);
  for (int i = 0; i < kFp8GroupValues; ++i) {
    group->codes[i] = F32ToE4m3(Bf16ToF32(values[i]), scale);
  }
  group->scale = static_cast<uint16_t>(scale << 7);  // both have eight bits of exponent
  group->rest = 0;
  return true;
}

}  // namespace phalanx::kernels
