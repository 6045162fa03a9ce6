// Philox-4x32-10: random numbers from a counter and a key (Salmon, Moraes, Dror and Shaw, "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011).
//
// Written over a type U of unsigned 32-bit lanes with MulHigh(U, uint32_t), MulLow(U, uint32_t) and
// Xor(U, U) in scope before this header, and Splat<U, int32_t>. The scalar and the vectors run the
// same steps.
#ifndef PHALANX_KERNELS_CPU_PHILOX_H_
#define PHALANX_KERNELS_CPU_PHILOX_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace phalanx::kernels::cpu {
namespace {

template <typename U>
struct PhiloxWords {
  U word[4];
};

template <typename U>
PHALANX_SHARED PhiloxWords<U> Philox4x32(PhiloxWords<U> counter, uint32_t key_low,
                                         uint32_t key_high) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  U c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const U high0 = MulHigh(c0, kMultiplier0), low0 = MulLow(c0, kMultiplier0);
    const U high1 = MulHigh(c2, kMultiplier1), low1 = MulLow(c2, kMultiplier1);
    c0 = Xor(Xor(high1, c1), Splat<U, int32_t>(static_cast<int32_t>(key_low)));
    c1 = low1;
    c2 = Xor(Xor(high0, c3), Splat<U, int32_t>(static_cast<int32_t>(key_high)));
    c3 = low0;
    key_low += kWeyl0;
    key_high += kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace
}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_PHILOX_H_
