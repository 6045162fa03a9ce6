// What a warp asks for before it needs it.
#ifndef PHALANX_KERNELS_CUDA_PREFETCH_CUH_
#define PHALANX_KERNELS_CUDA_PREFETCH_CUH_

#include <cstdint>

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {

// Has `bytes` from `from` on fetched to the L2 cache, both multiples of 16, less than 1 MiB; by all
// lanes of a warp.
// On sm_90 and newer as one request, which says how many bytes it is about.
__device__ __forceinline__ void PrefetchRun(const uint8_t* from, int64_t bytes, int lane) {
#if __CUDA_ARCH__ >= 900
  if (lane == 0 && bytes > 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(static_cast<uint32_t>(bytes))
                 : "memory");
  }
#else
  for (int64_t at = int64_t{lane} * kLineBytes; at < bytes; at += kWarp * kLineBytes) {
    PrefetchLine(from + at);
  }
#endif
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_PREFETCH_CUH_
