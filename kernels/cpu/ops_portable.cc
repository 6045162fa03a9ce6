#define PHALANX_SIMD_PATH 0
#include "kernels/cpu/ops_impl.inc"

namespace phalanx::kernels::cpu {

extern const OpTable& PortableOps();
const OpTable& PortableOps() { return kTable; }

}  // namespace phalanx::kernels::cpu
