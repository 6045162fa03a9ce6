// (max, sum of exp(x - max)) of a row by one thread block.
#ifndef PHALANX_KERNELS_CUDA_LOG_SUM_EXP_CUH_
#define PHALANX_KERNELS_CUDA_LOG_SUM_EXP_CUH_

#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/sampling.h"

namespace phalanx::kernels::cuda {

// Runs body(value) for this thread's of x[0 .. n), and a few times with -inf: values are asked for
// together, for a block hasn't the threads to hide a cache's latency for each.
template <typename Body>
__device__ __forceinline__ void ForEachOf(const float* x, int64_t n, const Body& body) {
  constexpr int kTogether = 8;
#pragma unroll 1
  for (int64_t begin = threadIdx.x; begin < n; begin += kTogether * int64_t{blockDim.x}) {
    float values[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t j = begin + i * int64_t{blockDim.x};
      values[i] = j < n ? x[j] : kNegativeInfinity;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) body(values[i]);
  }
}

// The largest of the block's values that are no NaN, for every thread; -inf where there is none.
// `scratch`: a float a warp. Ends with a barrier. (Of two zeros either sign may win.)
__device__ inline float MaxOfBlock(float max, float* scratch) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    max = Max(__shfl_xor_sync(0xffffffffu, max, step), max);
  }
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = max;
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
    max = Max(scratch[warp], max);
  }
  __syncthreads();
  return max;
}

struct LogSumExpMemory {
  float tile[kSumTile];
  float warps[kWarp];
  float sum;
};

__device__ inline MaxSum LogSumExp(const float* x, int64_t n, LogSumExpMemory* memory) {
  float max = kNegativeInfinity;
  ForEachOf(x, n, [&](float value) { max = Max(value, max); });
  max = MaxOfBlock(max, memory->warps);
  if (max == kNegativeInfinity) return {max, 0.0f};
  const float sum = OrderedSum<false>(
      n, [&](int64_t j) { return Exp(Sub(x[j], max)); }, memory->tile, &memory->sum);
  return {max, sum};
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LOG_SUM_EXP_CUH_
