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

// `sum` with this lane's of `count` columns of shared memory; by the block's first kSumLanes
// threads. For each column that is added one is asked for that comes later: an addition waits for
// the one before it alone.
template <bool kSquare>
__device__ __forceinline__ float AddToLane(float sum, const float* columns, int count) {
  constexpr int kAhead = 16;
  const float* from = columns + threadIdx.x;
  int left = (count - static_cast<int>(threadIdx.x) + kSumLanes - 1) / kSumLanes;
  const auto add = [&](float value) { sum = kSquare ? Fma(value, value, sum) : Add(sum, value); };
  if (left >= kAhead) {
    float next[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) next[i] = from[i * kSumLanes];
    from += kAhead * kSumLanes;
    left -= kAhead;
#pragma unroll 1
    for (; left >= kAhead; left -= kAhead, from += kAhead * kSumLanes) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float now = next[i];
        next[i] = from[i * kSumLanes];
        add(now);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) add(next[i]);
  }
  if (left > 0) {
    float rest[kAhead - 1];
#pragma unroll
    for (int i = 0; i < kAhead - 1; ++i) rest[i] = i < left ? from[i * kSumLanes] : 0.0f;
#pragma unroll
    for (int i = 0; i < kAhead - 1; ++i) {
      if (i < left) add(rest[i]);
    }
  }
  return sum;
}

// sum over n columns of fma(value, value, .) or of value, as `kSquare` says; `value(j)` is computed
// by all threads of the block, for some columns more than once, `tile` is kSumTile floats of shared
// memory. Every thread gets the sum. Begins and ends with a barrier.
template <bool kSquare, typename Value>
__device__ float OrderedSum(int64_t n, const Value& value, float* tile, float* result) {
  constexpr int kTogether = 4;
  float sum = 0.0f;
  for (int64_t begin = 0; begin < n; begin += kSumTile) {
    const int count = static_cast<int>(n - begin < kSumTile ? n - begin : kSumTile);
    __syncthreads();
    const auto threads = static_cast<int>(blockDim.x);
#pragma unroll 1
    for (int first = threadIdx.x; first < count; first += kTogether * threads) {
      float values[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int j = first + i * threads;
        values[i] = value(begin + (j < count ? j : first));
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i * threads < count) tile[first + i * threads] = values[i];
      }
    }
    __syncthreads();
    if (threadIdx.x < kSumLanes) sum = AddToLane<kSquare>(sum, tile, count);
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
