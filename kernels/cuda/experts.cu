#include "kernels/cuda/best.cuh"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/log_sum_exp.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kRouteThreads = 128;
constexpr int kCombineThreads = 128;
// Below every probability: a logit that is no number, and one that has been taken.
constexpr float kFaulty = -1.0f;
constexpr float kTaken = -2.0f;
constexpr uint32_t kQuietNan = 0x7fc00000u;

// One row a block.
__global__ void __launch_bounds__(kRouteThreads)
    RouteKernel(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                float* weights) {
  __shared__ LogSumExpMemory memory;
  __shared__ BestSlot best_of_warp[kRouteThreads / kWarp];
  __shared__ float p[kMaxRouterWidth];
  const int64_t row = blockIdx.x;
  const int64_t n = logits.cols;
  const float* x = static_cast<const float*>(logits.data) + row * logits.stride;
  const MaxSum total = LogSumExp(x, n, &memory);
  const bool sound = total.sum > 0.0f;
  for (int64_t j = threadIdx.x; j < n; j += kRouteThreads) {
    const float value = Div(Exp(Sub(x[j], total.max)), sound ? total.sum : 1.0f);
    p[j] = value == value ? value : kFaulty;
  }
  float chosen = 0.0f;
  for (int64_t k = 0; k < top_k; ++k) {
    // Each thread reads only columns that it wrote.
    Choice best;
    for (int64_t j = threadIdx.x; j < n; j += kRouteThreads) {
      const Choice here = {static_cast<int32_t>(j), p[j]};
      if (here.value != kTaken && Before(here, best)) best = here;
    }
    best = BestOfBlock(best, best_of_warp);
    if (best.id % kRouteThreads == static_cast<int>(threadIdx.x)) p[best.id] = kTaken;
    chosen = k == 0 ? best.value : Add(chosen, best.value);
    if (threadIdx.x == 0) {
      experts[row * top_k + k] = best.id;
      weights[row * top_k + k] = best.value;
    }
  }
  if (threadIdx.x != 0) return;
  for (int64_t k = 0; k < top_k; ++k) {
    float& weight = weights[row * top_k + k];
    if (!sound) {
      weight = __builtin_bit_cast(float, kQuietNan);
    } else if (normalise) {
      weight = Div(weight, chosen);
    }
  }
}

// Column blockIdx.y * kCombineThreads + threadIdx.x of row blockIdx.x.
__global__ void __launch_bounds__(kCombineThreads) CombineKernel(const CombineParams p) {
  PHALANX_DYNAMIC_SHARED(float, stack_memory);
  // [depth][threads]: a thread's stack is its own column.
  float* stack = stack_memory + threadIdx.x;
  const int64_t row = blockIdx.x;
  const int64_t j = int64_t{blockIdx.y} * kCombineThreads + threadIdx.x;
  if (j >= p.hidden) return;
  float sum = 0.0f;
  for (int64_t k = 0; k < p.top_k; ++k) {
    const int64_t slot = row * p.top_k + k;
    const float* const* parts = p.parts + slot * p.num_parts;
    int depth = 0;
    for (int i = 0; i < p.steps; ++i) {
      const int code = p.program[i];
      if (code >= 0) {
        stack[depth++ * kCombineThreads] = parts[code][j];
      } else {
        --depth;
        stack[(depth - 1) * kCombineThreads] =
            Add(stack[(depth - 1) * kCombineThreads], stack[depth * kCombineThreads]);
      }
    }
    sum = k == 0 ? Mul(p.weights[slot], stack[0]) : Fma(p.weights[slot], stack[0], sum);
  }
  if (p.shared.data != nullptr) {
    const float shared = static_cast<const float*>(p.shared.data)[row * p.shared.stride + j];
    sum = p.shared_gate_logit != nullptr
              ? Fma(SharedExpertGate(p.shared_gate_logit[row]), shared, sum)
              : Add(sum, shared);
  }
  static_cast<float*>(p.out.data)[row * p.out.stride + j] = sum;
}

}  // namespace

cudaError_t RouteTopK(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                      float* weights, cudaStream_t stream) {
  if (logits.rows == 0) return cudaSuccess;
  return Launch(RouteKernel, dim3(static_cast<unsigned>(logits.rows)), kRouteThreads, 0, stream,
                logits, top_k, normalise, experts, weights);
}

cudaError_t CombineExperts(const CombineParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.hidden == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(params.rows),
                  static_cast<unsigned>((params.hidden + kCombineThreads - 1) / kCombineThreads));
  // At most 64 levels: 32 KiB.
  const size_t shared = params.depth * kCombineThreads * sizeof(float);
  return Launch(CombineKernel, grid, kCombineThreads, shared, stream, params);
}

}  // namespace phalanx::kernels::cuda
