// What a warp asks for before it needs it.
#ifndef PHALANX_KERNELS_CUDA_PREFETCH_CUH_
#define PHALANX_KERNELS_CUDA_PREFETCH_CUH_

#include <cstdint>

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {

// Has `bytes` from `from` on fetched to the L2 cache; by all lanes of a warp.
__device__ __forceinline__ void PrefetchRun(const uint8_t* from, int64_t bytes, int lane) {
  for (int64_t at = int64_t{lane} * kLineBytes; at < bytes; at += kWarp * kLineBytes) {
    PrefetchLine(from + at);
  }
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_PREFETCH_CUH_
