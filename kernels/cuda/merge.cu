// Partial softmaxes merged by a postfix program. A thread runs the program for its own columns; the
// maxima and the factors are the same for all threads of a unit, and each computes them itself.
#include <cstddef>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// One level of a thread's stack, in shared memory: [depth][3][threads].
struct Stack {
  float* memory;  // this thread's first
  __device__ float& max(int level) const { return memory[(3 * level) * kThreads]; }
  __device__ float& sum(int level) const { return memory[(3 * level + 1) * kThreads]; }
  __device__ float& value(int level) const { return memory[(3 * level + 2) * kThreads]; }
};

// Leaves max, sum and column `column` (from 0) of the merged values on level 0.
__device__ void RunProgram(const float* partials, int64_t width, int64_t column,
                           const DeviceProgram& program, const Stack& stack) {
  int depth = 0;
  for (int i = 0; i < program.steps; ++i) {
    const int code = program.codes[i];
    if (code >= 0) {
      const float* from = partials + code * width;
      stack.max(depth) = from[0];
      stack.sum(depth) = from[1];
      stack.value(depth) = from[2 + column];
      ++depth;
      continue;
    }
    --depth;
    const MergeFactors f = MergeOf(stack.max(depth - 1), stack.max(depth));
    stack.sum(depth - 1) = Merged(f, stack.sum(depth - 1), stack.sum(depth));
    stack.value(depth - 1) = Merged(f, stack.value(depth - 1), stack.value(depth));
    stack.max(depth - 1) = f.max;
  }
}

// As MergeOf, without a branch and with one exponential: that of the larger's distance to itself is
// 1, or no number.
__device__ __forceinline__ MergeFactors StraightMergeOf(float left_max, float right_max) {
  MergeFactors f;
  f.take_right = left_max == kNegativeInfinity;
  f.take_left = !f.take_right && right_max == kNegativeInfinity;
  const bool left_is_larger = left_max > right_max;
  const float larger = left_is_larger ? left_max : right_max;
  const float smaller = left_is_larger ? right_max : left_max;
  const float of_larger = Add(1.0f, Sub(larger, larger));
  const float of_smaller = Exp(Sub(smaller, larger));
  f.max = f.take_right ? right_max : f.take_left ? left_max : larger;
  f.left = left_is_larger ? of_larger : of_smaller;
  f.right = left_is_larger ? of_smaller : of_larger;
  return f;
}

__device__ __forceinline__ int64_t ColumnOf(const int32_t* out_column, int64_t d) {
  return out_column != nullptr ? out_column[blockIdx.y] : blockIdx.y * d;
}

// Columns of a thread of the below.
constexpr int kTreeColumns = 2;
constexpr int kTreeThreads = 128;

// R2's tree over kIn stripes, for heads of at most kTreeColumns columns a thread. The partials come
// all at once: a program would have to be read before it says what to read next. Lane k of each
// warp has operand k's maximum and sum, so merges of one level are made side by side, and every
// thread gets their factors from there. grid: rows, heads; dynamic shared memory: a unit's
// partials.
template <int kIn>
__global__ void __launch_bounds__(kTreeThreads)
    MergeTreeKernel(const float* partials, int64_t num_heads, int d, const int32_t* out_column,
                    TensorView out) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, unit);
  const int width = 2 + d;
  const float* from = partials + (blockIdx.x * num_heads + blockIdx.y) * kIn * width;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < kIn * width;
       i += static_cast<int>(blockDim.x) * 4) {
    CopyAsync(unit + i, from + i, /*valid=*/true);
  }
  CommitCopies();
  const int64_t to = blockIdx.x * out.stride + ColumnOf(out_column, d);
  WaitForCopies<0>();
  __syncthreads();

  constexpr unsigned kAllLanes = 0xffffffffu;
  const int operand = static_cast<int>(threadIdx.x) % kIn;
  float max = unit[operand * width];
  float sum = unit[operand * width + 1];
  float values[kIn][kTreeColumns];
#pragma unroll
  for (int k = 0; k < kIn; ++k) {
#pragma unroll
    for (int c = 0; c < kTreeColumns; ++c) {
      const auto i = static_cast<int>(c * blockDim.x + threadIdx.x);
      values[k][c] = i < d ? unit[k * width + 2 + i] : 0.0f;
    }
  }
#pragma unroll
  for (int step = 1; step < kIn; step *= 2) {
    const float other_max = __shfl_xor_sync(kAllLanes, max, step);
    const float other_sum = __shfl_xor_sync(kAllLanes, sum, step);
    const bool is_right = (operand & step) != 0;
    const MergeFactors own =
        StraightMergeOf(is_right ? other_max : max, is_right ? max : other_max);
    max = own.max;
    sum = Merged(own, is_right ? other_sum : sum, is_right ? sum : other_sum);
    const uint32_t take_left = __ballot_sync(kAllLanes, own.take_left);
    const uint32_t take_right = __ballot_sync(kAllLanes, own.take_right);
#pragma unroll
    for (int k = 0; k < kIn; k += 2 * step) {
      const MergeFactors f = {0.0f, __shfl_sync(kAllLanes, own.left, k),
                              __shfl_sync(kAllLanes, own.right, k), (take_left >> k & 1) != 0,
                              (take_right >> k & 1) != 0};
#pragma unroll
      for (int c = 0; c < kTreeColumns; ++c) {
        values[k][c] = Merged(f, values[k][c], values[k + step][c]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kTreeColumns; ++c) {
    const auto i = static_cast<int>(c * blockDim.x + threadIdx.x);
    if (i < d) Store(out.data, out.dtype, to + i, Div(values[0][c], sum));
  }
}

// grid: rows, heads.
__global__ void __launch_bounds__(kThreads)
    MergeAttentionKernel(const float* partials, int64_t num_heads, int64_t d, int num_in,
                         DeviceProgram program, const int32_t* out_column, TensorView out) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, memory);
  const Stack stack = {memory + threadIdx.x};
  const int64_t unit = blockIdx.x * num_heads + blockIdx.y;
  const int64_t width = 2 + d;
  const int64_t to = blockIdx.x * out.stride + ColumnOf(out_column, d);
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    RunProgram(partials + unit * num_in * width, width, i, program, stack);
    Store(out.data, out.dtype, to + i, Div(stack.value(0), stack.sum(0)));
  }
}

// grid: units.
__global__ void __launch_bounds__(kThreads)
    MergePartialsKernel(const float* partials, int64_t d, int num_in, DeviceProgram program,
                        int index, int num_programs, float* out) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, memory);
  const Stack stack = {memory + threadIdx.x};
  const int64_t unit = blockIdx.x;
  const int64_t width = 2 + d;
  float* to = out + (unit * num_programs + index) * width;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    RunProgram(partials + unit * num_in * width, width, i, program, stack);
    to[2 + i] = stack.value(0);
    if (i == 0) {
      to[0] = stack.max(0);
      to[1] = stack.sum(0);
    }
  }
}

size_t StackBytes(const DeviceProgram& program) {
  return sizeof(float) * 3 * kThreads * program.depth;
}

}  // namespace

cudaError_t MergeAttention(const float* partials, int64_t num_heads, int64_t head_dim, int num_in,
                           DeviceProgram program, const int32_t* out_column, TensorView out,
                           cudaStream_t stream) {
  if (out.rows == 0 || num_heads == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(out.rows), static_cast<unsigned>(num_heads));
  constexpr int kTree = 8;  // stripes where nobody says otherwise
  if (program.tree == kTree && head_dim <= kTreeColumns * kTreeThreads &&
      reinterpret_cast<uintptr_t>(partials) % 16 == 0) {
    constexpr int kColumns = kTreeColumns * kWarp;
    const auto d = static_cast<int>(head_dim);
    return Launch(MergeTreeKernel<kTree>, grid, (d + kColumns - 1) / kColumns * kWarp,
                  sizeof(float) * kTree * (2 + d), stream, partials, num_heads, d, out_column, out);
  }
  const size_t shared = StackBytes(program);
  return Launch(MergeAttentionKernel, grid, kThreads, shared, stream, partials, num_heads, head_dim,
                num_in, program, out_column, out);
}

cudaError_t MergePartials(const float* partials, int64_t count, int64_t head_dim, int num_in,
                          DeviceProgram program, int index, int num_programs, float* out,
                          cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const size_t shared = StackBytes(program);
  return Launch(MergePartialsKernel, dim3(static_cast<unsigned>(count)), kThreads, shared, stream,
                partials, head_dim, num_in, program, index, num_programs, out);
}

}  // namespace phalanx::kernels::cuda
