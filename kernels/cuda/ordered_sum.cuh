// The op set's ordered sum of a row by one thread block: 16 lanes over rising columns, then
// halving. The first 16 threads of the block are the lanes.
#ifndef PHALANX_KERNELS_CUDA_ORDERED_SUM_CUH_
#define PHALANX_KERNELS_CUDA_ORDERED_SUM_CUH_

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/lane_math.h"

namespace phalanx::kernels::cuda {

// Columns that pass through shared memory at once.
inline constexpr int kSumTile = 4096;

// Adds lanes j + (j + 8), then + 4, + 2, + 1, over the 16 lower lanes of a warp. Addition commutes,
// so the exchange gives every lane the same bits. All 32 lanes of the warp must be here.
__device__ inline float HalveSum(float lane_sum) {
  for (int step = kSumLanes / 2; step > 0; step /= 2) {
    lane_sum = Add(lane_sum, __shfl_xor_sync(0xffffffffu, lane_sum, step));
  }
  return lane_sum;
}

// sum over n columns of fma(value, value, .) or of value, as `kSquare` says; `value(j)` is computed
// by all threads of the block, `tile` is kSumTile floats of shared memory. Every thread gets the
// sum. Begins and ends with a barrier.
template <bool kSquare, typename Value>
__device__ float OrderedSum(int64_t n, const Value& value, float* tile, float* result) {
  float sum = 0.0f;
  for (int64_t begin = 0; begin < n; begin += kSumTile) {
    const int count = static_cast<int>(n - begin < kSumTile ? n - begin : kSumTile);
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += blockDim.x) tile[j] = value(begin + j);
    __syncthreads();
    if (threadIdx.x < kSumLanes) {
#pragma unroll 8
      for (int j = threadIdx.x; j < count; j += kSumLanes) {
        sum = kSquare ? Fma(tile[j], tile[j], sum) : Add(sum, tile[j]);
      }
    }
  }
  if (threadIdx.x < kWarp) {
    sum = HalveSum(sum);
    if (threadIdx.x == 0) *result = sum;
  }
  __syncthreads();
  return *result;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ORDERED_SUM_CUH_
