// The largest magnitude of a row by one thread block.
#ifndef PHALANX_KERNELS_CUDA_LARGEST_CUH_
#define PHALANX_KERNELS_CUDA_LARGEST_CUH_

#include <cstdint>

#include "kernels/cuda/fragment.h"

namespace phalanx::kernels::cuda {

// The bits, without a sign, of the largest of x[0 .. n): magnitudes have the order of their bits,
// infinity and NaN above all. All threads of the block, kWarps warps, call it and get it; one
// barrier. `of_warp`: shared memory.
template <int kWarps>
__device__ __forceinline__ uint32_t LargestMagnitude(const float* x, int64_t n,
                                                     uint32_t (&of_warp)[kWarps]) {
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < n; i += kWarps * kWarp) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, most, step);
    most = other > most ? other : most;
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = most;
  __syncthreads();
  for (const uint32_t other : of_warp) most = other > most ? other : most;
  return most;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LARGEST_CUH_
