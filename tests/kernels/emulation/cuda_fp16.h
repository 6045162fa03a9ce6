// Stands in for CUDA's header of this name (README.md).
#ifndef PHALANX_TESTS_KERNELS_EMULATION_CUDA_FP16_H_
#define PHALANX_TESTS_KERNELS_EMULATION_CUDA_FP16_H_

#include "kernels/float16.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half value) { return phalanx::kernels::F16ToF32(value.bits); }

#endif  // PHALANX_TESTS_KERNELS_EMULATION_CUDA_FP16_H_
