// Which instruction sets this machine and its operating system have.
#ifndef PHALANX_KERNELS_CPU_CPU_FEATURES_H_
#define PHALANX_KERNELS_CPU_CPU_FEATURES_H_

namespace phalanx::kernels::cpu {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA, F16C
  bool avx512 = false;  // AVX-512 F, BW, DQ, VL, and avx2
  bool amx = false;     // AMX-TILE, AMX-BF16, the kernel's leave to use tiles, and avx512
};

// Asked once; the first call requests leave to use AMX tile data for the whole process.
const CpuFeatures& DetectCpuFeatures();

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_CPU_FEATURES_H_
