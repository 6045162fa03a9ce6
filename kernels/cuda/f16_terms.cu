#include "kernels/cuda/f16_terms.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/largest.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr float kScale = 1.0f / kHighTermFactor;
constexpr float kLowScale = kHighTermFactor / kLowTermFactor;
// Rows whose largest value is below 2^kMostExponent have the factor 1.
constexpr int kMostExponent = 20;

__device__ __forceinline__ float PowerOfTwo(int exponent) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(127 + exponent) << 23);
}

// A block a row.
__global__ void __launch_bounds__(kThreads) SplitToF16Kernel(TensorView x, F16Terms terms) {
  BeginInTurn();
  __shared__ uint32_t largest[kWarps];
  const float* const from = static_cast<const float*>(x.data) + blockIdx.x * x.stride;
  const uint32_t most = LargestMagnitude(from, x.cols, largest);
  // What the largest is below. Infinite and NaN, too: they stay so.
  const int exponent = static_cast<int>(most >> 23) - 126;
  const int down = exponent > kMostExponent ? exponent - kMostExponent : 0;
  if (threadIdx.x == 0) terms.row_factors[blockIdx.x] = PowerOfTwo(down);
  const float scale = kScale * PowerOfTwo(-down);
  const int64_t to = blockIdx.x * terms.stride;
  for (int64_t j = threadIdx.x; j < x.cols; j += kThreads) {
    const float value = Mul(from[j], scale);
    const uint16_t high = F32ToF16(value);
    terms.high[to + j] = high;
    terms.low[to + j] = F32ToF16(Mul(Sub(value, F16ToF32(high)), kLowScale));
  }
}

// A block a row.
__global__ void __launch_bounds__(kThreads) ScaleRowsKernel(TensorView out, const float* factors) {
  BeginInTurn();
  const float factor = factors[blockIdx.x];
  if (factor == 1.0f) return;
  float* const to = static_cast<float*>(out.data) + blockIdx.x * out.stride;
  for (int64_t j = threadIdx.x; j < out.cols; j += kThreads) to[j] = Mul(to[j], factor);
}

dim3 BlockARow(int64_t rows) { return dim3(static_cast<unsigned>(rows)); }

// A row's elements, so that each row of terms is aligned to 16 bytes.
int64_t Stride(int64_t cols) { return (cols + 7) / 8 * 8; }

}  // namespace

int64_t F16TermsBytes(int64_t rows, int64_t cols) {
  return rows * (Stride(cols) * 2 * 2 + static_cast<int64_t>(sizeof(float)));
}

F16Terms F16TermsIn(void* memory, int64_t rows, int64_t cols) {
  F16Terms terms;
  terms.stride = Stride(cols);
  terms.high = static_cast<uint16_t*>(memory);
  terms.low = terms.high + rows * terms.stride;
  terms.row_factors = reinterpret_cast<float*>(terms.low + rows * terms.stride);
  return terms;
}

cudaError_t SplitToF16(TensorView x, const F16Terms& terms, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  return Launch(SplitToF16Kernel, BlockARow(x.rows), kThreads, 0, stream, x, terms);
}

cudaError_t ScaleRows(TensorView out, const float* row_factors, cudaStream_t stream) {
  if (out.rows == 0) return cudaSuccess;
  return Launch(ScaleRowsKernel, BlockARow(out.rows), kThreads, 0, stream, out, row_factors);
}

}  // namespace phalanx::kernels::cuda
