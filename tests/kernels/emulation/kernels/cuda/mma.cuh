// In place of the product's header of this name: mma.m16n8k16 and asynchronous copies of the
// emulated device.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_
#define PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "kernels/float16.h"
#include "tests/kernels/emulation/device.h"

namespace phalanx::kernels::cuda {

struct alignas(16) Words {
  uint32_t w[4];
};

inline Words LoadWords(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  return *static_cast<const Words*>(from);
}

inline void StoreWords(void* to, const Words& words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) std::abort();
  *static_cast<Words*>(to) = words;
}

struct alignas(8) Codes {
  uint32_t w[2];
};

inline Words LoadWordsApart(const void* from) { return LoadWords(from); }
inline Codes LoadCodes(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 8 != 0) std::abort();
  return *static_cast<const Codes*>(from);
}

inline void StoreCodes(void* to, const Codes& codes) {
  if (reinterpret_cast<uintptr_t>(to) % 8 != 0) std::abort();
  *static_cast<Codes*>(to) = codes;
}

// In double, which keeps BF16's denormals whatever the environment.
inline uint16_t FmaBf16(uint16_t a, uint16_t b, uint16_t c) {
  const auto widened = [](uint16_t bits) {
    const int exponent = bits >> 7 & 0xff, fraction = bits & 0x7f;
    if (exponent == 0xff) return static_cast<double>(Bf16ToF32(bits));
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(0x80 + fraction, exponent - 134);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  };
  // Rounded once: where F32 can't hold the sum, its last bit says that there is more.
  const double sum = widened(a) * widened(b) + widened(c);
  auto nearest = static_cast<float>(sum);
  if (std::isfinite(sum) && static_cast<double>(nearest) != sum) {
    if (std::abs(static_cast<double>(nearest)) > std::abs(sum)) {
      nearest = std::nextafter(nearest, 0.0f);
    }
    nearest = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, nearest) | 1u);
  }
  return F32ToBf16(nearest);
}
inline uint32_t FmaBf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [](uint32_t x, int i) { return static_cast<uint16_t>(x >> 16 * i); };
  return FmaBf16(half(a, 0), half(b, 0), half(c, 0)) |
         static_cast<uint32_t>(FmaBf16(half(a, 1), half(b, 1), half(c, 1))) << 16;
}
inline uint32_t MulBf16x2(uint32_t a, uint32_t b) { return FmaBf16x2(a, b, 0x80008000u); }

inline uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(F32ToBf16(low)) | static_cast<uint32_t>(F32ToBf16(high)) << 16;
}

inline void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  emulation::MmaLane lane = {c, {a0, a1, a2, a3}, {b0, b1}};
  emulation::WarpStep(&lane, [](void* const* lanes) PHALANX_UNSEEN {
    const emulation::MmaLane* all[32];
    for (int i = 0; i < 32; ++i) all[i] = static_cast<const emulation::MmaLane*>(lanes[i]);
    emulation::MultiplyTile(all);
  });
}

inline void CopyAsync(void* shared, const void* from, bool valid) {
  emulation::QueueCopy(shared, from, valid);
}
using SharedAt = uint8_t*;
inline SharedAt AtShared(void* shared) { return static_cast<SharedAt>(shared); }
inline Words LoadShared(SharedAt at) { return LoadWords(at); }
inline uint32_t LoadSharedWord(SharedAt at) {
  if (reinterpret_cast<uintptr_t>(at) % 4 != 0) std::abort();
  return *reinterpret_cast<const uint32_t*>(at);
}
template <typename Value>
Value Kept(Value value) {
  return value;
}
inline void CopyAsyncOfLine(SharedAt shared, const void* from) {
  emulation::QueueCopy(shared, from, /*valid=*/true);
}
inline void CommitCopies() { emulation::CommitQueued(); }
template <int kPending>
void WaitForCopies() {
  emulation::LandAllBut(kPending);
}
// As far off as the real one may be, upwards for even bits and downwards for odd ones.
inline float Exp2Approx(float x) {
  const double exact = std::exp2(static_cast<double>(x));
  const double off = (__builtin_bit_cast(uint32_t, x) & 1u) != 0 ? -0x1p-22 : 0x1p-22;
  const auto y = static_cast<float>(exact * (1 + off));
  return y < std::numeric_limits<float>::min() ? 0.0f : y;
}
inline constexpr int kLineBytes = 128;
inline constexpr int kLineFloats = kLineBytes / 4;
inline void PrefetchLine(const void* from) { emulation::CheckPrefetch(from); }

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_
