// The largest magnitude of a row by one thread block.
#ifndef PHALANX_KERNELS_CUDA_LARGEST_CUH_
#define PHALANX_KERNELS_CUDA_LARGEST_CUH_

#include <cstdint>

#include "kernels/cuda/fragment.h"

namespace phalanx::kernels::cuda {

// The bits of a value without its sign: magnitudes have the order of their bits, infinity and NaN
// above all.
__device__ __forceinline__ uint32_t MagnitudeOf(float value) {
  return __builtin_bit_cast(uint32_t, value) & 0x7fffffffu;
}

// The largest of what the block's threads, kWarps warps, bring; all of them call it and get it; one
// barrier. `of_warp`: shared memory.
template <int kWarps>
__device__ __forceinline__ uint32_t LargestOfBlock(uint32_t most, uint32_t (&of_warp)[kWarps]) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, most, step);
    most = other > most ? other : most;
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = most;
  __syncthreads();
  for (const uint32_t other : of_warp) most = other > most ? other : most;
  return most;
}

// The largest magnitude of x[0 .. n); as above.
template <int kWarps>
__device__ __forceinline__ uint32_t LargestMagnitude(const float* x, int64_t n,
                                                     uint32_t (&of_warp)[kWarps]) {
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < n; i += kWarps * kWarp) {
    const uint32_t magnitude = MagnitudeOf(x[i]);
    most = magnitude > most ? magnitude : most;
  }
  return LargestOfBlock(most, of_warp);
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LARGEST_CUH_
