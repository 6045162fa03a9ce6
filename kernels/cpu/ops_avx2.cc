#if defined(__x86_64__)
#define PHALANX_SIMD_PATH 2
#include "kernels/cpu/ops_impl.inc"

namespace phalanx::kernels::cpu {

extern const OpTable& Avx2Ops();
const OpTable& Avx2Ops() { return kTable; }

}  // namespace phalanx::kernels::cpu
#endif  // x86-64
