// In place of the product's header of this name: mma.m16n8k16 and asynchronous copies of the
// emulated device.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_
#define PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_

#include <cstdint>
#include <cstdlib>

#include "tests/kernels/emulation/device.h"

namespace phalanx::kernels::cuda {

struct alignas(16) Words {
  uint32_t w[4];
};

inline Words LoadWords(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  return *static_cast<const Words*>(from);
}

inline void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  emulation::MmaLane lane = {c, {a0, a1, a2, a3}, {b0, b1}};
  emulation::WarpStep(&lane, [](void* const* lanes) {
    const emulation::MmaLane* all[32];
    for (int i = 0; i < 32; ++i) all[i] = static_cast<const emulation::MmaLane*>(lanes[i]);
    emulation::MultiplyTile(all);
  });
}

inline void CopyAsync(void* shared, const void* from, bool valid) {
  emulation::QueueCopy(shared, from, valid);
}
inline void CopyAsyncOfLine(void* shared, const void* from) {
  emulation::QueueCopy(shared, from, /*valid=*/true);
}
inline void CommitCopies() { emulation::CommitQueued(); }
template <int kPending>
void WaitForCopies() {
  emulation::LandAllBut(kPending);
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_TESTS_KERNELS_EMULATION_MMA_CUH_
