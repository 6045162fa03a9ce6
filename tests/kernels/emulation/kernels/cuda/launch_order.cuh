// In place of the product's header of this name: kernels run one after the other, and each is seen
// to wait for those before it.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_ORDER_CUH_
#define PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_ORDER_CUH_

#include "tests/kernels/emulation/device.h"

namespace phalanx::kernels::cuda {

inline void LetNextStart() {}
inline void WaitForEarlier() { emulation::WaitForTurn(); }
inline void BeginInTurn() { WaitForEarlier(); }

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_ORDER_CUH_
