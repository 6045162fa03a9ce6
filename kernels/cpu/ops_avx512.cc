#if defined(__x86_64__)
#define PHALANX_SIMD_PATH 3
#include "kernels/cpu/ops_impl.inc"

namespace phalanx::kernels::cpu {

extern const OpTable& Avx512Ops();
const OpTable& Avx512Ops() { return kTable; }

}  // namespace phalanx::kernels::cpu
#endif  // x86-64
