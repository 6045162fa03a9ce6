// F32 arithmetic of one thread: every function rounds once and is never joined to another, on a CPU
// and on a GPU alike (files here are compiled with --fmad=false, --ftz=true, IEEE division and
// square root), so that the same text gives the same bits on both.
#ifndef PHALANX_KERNELS_CUDA_LANE_MATH_H_
#define PHALANX_KERNELS_CUDA_LANE_MATH_H_

#include <cstdint>
#include <limits>

#include "kernels/cpu/scalar_lane.h"
#include "kernels/float16.h"
#include "kernels/host_device.h"
#include "kernels/tensor.h"
// What the formulas are written in comes first.
#include "kernels/cpu/vector_math.h"

namespace phalanx::kernels::cuda {

inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
// Lanes of the ordered sums of the op set: lane j takes columns j, j + 16, ...
inline constexpr int kSumLanes = 16;

PHALANX_SHARED float Add(float x, float y) { return cpu::Add(cpu::F32x1{x}, cpu::F32x1{y}).v; }
PHALANX_SHARED float Sub(float x, float y) { return cpu::Sub(cpu::F32x1{x}, cpu::F32x1{y}).v; }
PHALANX_SHARED float Mul(float x, float y) { return cpu::Mul(cpu::F32x1{x}, cpu::F32x1{y}).v; }
PHALANX_SHARED float Fma(float x, float y, float z) {
  return cpu::Fma(cpu::F32x1{x}, cpu::F32x1{y}, cpu::F32x1{z}).v;
}
PHALANX_SHARED float Div(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(x, y);
#else
  return x / y;
#endif
}
PHALANX_SHARED float Sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
// The answer of x86 for zeros and NaN: y where they are equal or not ordered.
PHALANX_SHARED float Max(float x, float y) { return x > y ? x : y; }
PHALANX_SHARED float Exp(float x) { return cpu::Exp(cpu::F32x1{x}).v; }
PHALANX_SHARED float Gumbel(const GumbelKey& key, uint32_t token_id) {
  return cpu::GumbelNoise<cpu::F32x1>(key, cpu::I32x1{token_id}).v;
}

PHALANX_SHARED float Load(const void* data, DType type, int64_t index) {
  if (type == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}
// Rounded to nearest even.
PHALANX_SHARED void Store(void* data, DType type, int64_t index, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = type == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
  }
}

// One element of AddResidual, of SiluMul without bias and of RmsNorm.
PHALANX_SHARED float Residual(float x, float delta, const float* bias, int64_t column) {
  return Add(x, bias != nullptr ? Add(delta, bias[column]) : delta);
}
PHALANX_SHARED float SiluTimes(float gate, float up) {
  return Mul(Div(gate, Add(1.0f, Exp(-gate))), up);
}
// 1 / sqrt(mean of squares + eps).
PHALANX_SHARED float RmsScale(float sum_of_squares, int64_t n, float eps) {
  return Div(1.0f, Sqrt(Add(Div(sum_of_squares, static_cast<float>(n)), eps)));
}
PHALANX_SHARED float Normed(float x, float scale, float weight) {
  return Mul(Mul(x, scale), weight);
}
// A pair of rotary columns.
PHALANX_SHARED void Rotate(float* x0, float* x1, float cos, float sin) {
  const float a = *x0;
  const float b = *x1;
  *x0 = Fma(-b, sin, Mul(a, cos));
  *x1 = Fma(a, sin, Mul(b, cos));
}
PHALANX_SHARED float SharedExpertGate(float logit) { return Div(1.0f, Add(1.0f, Exp(-logit))); }

// Tokens [begin, end) of a KV block, as offsets 0 .. 32, that a query sees: causal, inside the
// window (0: none). Empty when begin >= end.
struct Visible {
  int begin;
  int end;
  PHALANX_HOST_DEVICE bool empty() const { return begin >= end; }
  PHALANX_HOST_DEVICE bool sees(int token) const { return token >= begin && token < end; }
};
PHALANX_SHARED Visible VisibleTokens(int64_t position, int64_t block, int64_t window) {
  const int64_t first = block * 32;
  const int64_t low = window > 0 ? position - window + 1 - first : 0;
  const int64_t high = position + 1 - first;
  return {static_cast<int>(low < 0    ? 0
                           : low > 32 ? 32
                                      : low),
          static_cast<int>(high < 0    ? 0
                           : high > 32 ? 32
                                       : high)};
}

// How two partial softmaxes meet: `left` and `right` are the factors of the sums and values. An
// empty side (max -inf) leaves the other as it is.
struct MergeFactors {
  float max;
  float left;
  float right;
  bool take_left;
  bool take_right;
};
PHALANX_SHARED MergeFactors MergeOf(float left_max, float right_max) {
  MergeFactors f = {left_max, 1.0f, 1.0f, false, false};
  if (left_max == kNegativeInfinity) {
    f.max = right_max;
    f.take_right = true;
  } else if (right_max == kNegativeInfinity) {
    f.take_left = true;
  } else {
    f.max = Max(left_max, right_max);
    f.left = Exp(Sub(left_max, f.max));
    f.right = Exp(Sub(right_max, f.max));
  }
  return f;
}
PHALANX_SHARED float Merged(const MergeFactors& f, float left, float right) {
  if (f.take_right) return right;
  if (f.take_left) return left;
  return Fma(left, f.left, Mul(right, f.right));
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LANE_MATH_H_
