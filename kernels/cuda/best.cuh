// The largest value with the lowest id: an order in which it doesn't matter who compares first.
#ifndef PHALANX_KERNELS_CUDA_BEST_CUH_
#define PHALANX_KERNELS_CUDA_BEST_CUH_

#include "kernels/cuda/fragment.h"
#include "kernels/sampling.h"

namespace phalanx::kernels::cuda {

// A Choice as shared memory can hold it: without a constructor.
struct BestSlot {
  int32_t id;
  float value;
};

// Whether `a` goes before `b`. An id of -1 is nobody. No value is NaN.
__device__ inline bool Before(const Choice& a, const Choice& b) {
  if (a.id < 0) return false;
  if (b.id < 0) return true;
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The best of all threads of the block, for every thread. `scratch`: one slot a warp. Begins and
// ends with a barrier. blockDim.x is a multiple of 32.
__device__ inline Choice BestOfBlock(Choice best, BestSlot* scratch) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Choice other;
    other.id = __shfl_xor_sync(0xffffffffu, best.id, step);
    other.value = __shfl_xor_sync(0xffffffffu, best.value, step);
    if (Before(other, best)) best = other;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = {best.id, best.value};
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
    const Choice other = {scratch[warp].id, scratch[warp].value};
    if (Before(other, best)) best = other;
  }
  return best;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_BEST_CUH_
