// One lane, in the vocabulary of vector_math.h: the scalar twins of the CPU's vectors, and what a
// GPU's thread computes with. On a GPU every operation is an intrinsic that rounds once and that
// the compiler never joins to another.
#ifndef PHALANX_KERNELS_CPU_SCALAR_LANE_H_
#define PHALANX_KERNELS_CPU_SCALAR_LANE_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace phalanx::kernels::cpu {
namespace {

struct F32x1 {
  float v;
};
struct I32x1 {
  uint32_t v;
};
struct M1 {
  bool v;
};

template <typename F>
struct VectorTypes;
template <>
struct VectorTypes<F32x1> {
  using Int = I32x1;
};

template <typename V, typename S>
PHALANX_HOST_DEVICE V Splat(S value);
template <>
PHALANX_HOST_DEVICE inline F32x1 Splat<F32x1, float>(float value) {
  return {value};
}
template <>
PHALANX_HOST_DEVICE inline I32x1 Splat<I32x1, int32_t>(int32_t value) {
  return {static_cast<uint32_t>(value)};
}

#if defined(__CUDA_ARCH__)
PHALANX_SHARED F32x1 Add(F32x1 x, F32x1 y) { return {__fadd_rn(x.v, y.v)}; }
PHALANX_SHARED F32x1 Sub(F32x1 x, F32x1 y) { return {__fsub_rn(x.v, y.v)}; }
PHALANX_SHARED F32x1 Mul(F32x1 x, F32x1 y) { return {__fmul_rn(x.v, y.v)}; }
PHALANX_SHARED F32x1 Fma(F32x1 x, F32x1 y, F32x1 z) { return {__fmaf_rn(x.v, y.v, z.v)}; }
#else
PHALANX_SHARED F32x1 Add(F32x1 x, F32x1 y) { return {x.v + y.v}; }
PHALANX_SHARED F32x1 Sub(F32x1 x, F32x1 y) { return {x.v - y.v}; }
PHALANX_SHARED F32x1 Mul(F32x1 x, F32x1 y) { return {x.v * y.v}; }
PHALANX_SHARED F32x1 Fma(F32x1 x, F32x1 y, F32x1 z) { return {__builtin_fmaf(x.v, y.v, z.v)}; }
#endif
PHALANX_SHARED F32x1 Neg(F32x1 x) { return {-x.v}; }
PHALANX_SHARED M1 Greater(F32x1 x, F32x1 y) { return {x.v > y.v}; }
PHALANX_SHARED M1 GreaterEqual(F32x1 x, F32x1 y) { return {x.v >= y.v}; }
PHALANX_SHARED M1 Equal(F32x1 x, F32x1 y) { return {x.v == y.v}; }
PHALANX_SHARED F32x1 Select(M1 m, F32x1 x, F32x1 y) { return m.v ? x : y; }
PHALANX_SHARED I32x1 Add(I32x1 x, I32x1 y) { return {x.v + y.v}; }
PHALANX_SHARED I32x1 Sub(I32x1 x, I32x1 y) { return {x.v - y.v}; }
PHALANX_SHARED I32x1 Xor(I32x1 x, I32x1 y) { return {x.v ^ y.v}; }
template <int kBits>
PHALANX_SHARED I32x1 ShiftLeft(I32x1 x) {
  return {x.v << kBits};
}
template <int kBits>
PHALANX_SHARED I32x1 ShiftRightArithmetic(I32x1 x) {
  return {static_cast<uint32_t>(static_cast<int32_t>(x.v) >> kBits)};
}
PHALANX_SHARED M1 GreaterI(I32x1 x, I32x1 y) {
  return {static_cast<int32_t>(x.v) > static_cast<int32_t>(y.v)};
}
PHALANX_SHARED F32x1 AsFloat(I32x1 x) { return {__builtin_bit_cast(float, x.v)}; }
PHALANX_SHARED I32x1 AsInt(F32x1 x) { return {__builtin_bit_cast(uint32_t, x.v)}; }
PHALANX_SHARED F32x1 ToFloat(I32x1 x) { return {static_cast<float>(static_cast<int32_t>(x.v))}; }
PHALANX_SHARED I32x1 MulHigh(I32x1 x, uint32_t m) {
  return {static_cast<uint32_t>((static_cast<uint64_t>(x.v) * m) >> 32)};
}
PHALANX_SHARED I32x1 MulLow(I32x1 x, uint32_t m) { return {x.v * m}; }

}  // namespace
}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_SCALAR_LANE_H_
