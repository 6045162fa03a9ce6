// Partial softmaxes merged by a postfix program. A thread runs the program for its own columns; the
// maxima and the factors are the same for all threads of a unit, and each computes them itself.
#include <cstddef>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"

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

// grid: rows, heads.
__global__ void __launch_bounds__(kThreads)
    MergeAttentionKernel(const float* partials, int64_t num_heads, int64_t d, int num_in,
                         DeviceProgram program, const int32_t* out_column, TensorView out) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, memory);
  const Stack stack = {memory + threadIdx.x};
  const int64_t unit = blockIdx.x * num_heads + blockIdx.y;
  const int64_t width = 2 + d;
  const int64_t to = blockIdx.x * out.stride + out_column[blockIdx.y];
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
  const size_t shared = StackBytes(program);
  const dim3 grid(static_cast<unsigned>(out.rows), static_cast<unsigned>(num_heads));
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
