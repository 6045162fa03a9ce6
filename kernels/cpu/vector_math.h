// exp, log and Gumbel noise over any lane type: sixteen lanes of one instruction set (simd.h) or a
// plain float (scalar_lane.h), on a GPU, too. The order of operations written here is the
// definition; a lane's bits depend on nothing else, not on flush-to-zero either.
//
// Expects in scope, before inclusion: VectorTypes<F>::Int, Splat, Add, Sub, Mul, Fma, Neg, Greater,
// GreaterEqual, Equal, Select, the integer operations of simd.h, AsInt, AsFloat, ToFloat.
// Coefficients: Moshier, Cephes mathematical library (expf.c, logf.c).
#ifndef PHALANX_KERNELS_CPU_VECTOR_MATH_H_
#define PHALANX_KERNELS_CPU_VECTOR_MATH_H_

#include <cstdint>
#include <limits>

#include "kernels/cpu/philox.h"
#include "kernels/host_device.h"
#include "kernels/sampling.h"

namespace phalanx::kernels::cpu {
namespace {

// Out here because device code can't call numeric_limits' functions.
struct MathLimits {
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  static constexpr float kSmallestNormal = std::numeric_limits<float>::min();
};

// e^x = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 in two parts (the first has
// trailing zeros, so n * high is exact).
template <typename F>
PHALANX_SHARED F Exp(F x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F shifted = Fma(x, Splat<F, float>(1.44269504088896341f), Splat<F, float>(kRound));
  const F n = Sub(shifted, Splat<F, float>(kRound));
  F r = Fma(n, Splat<F, float>(-0.693359375f), x);
  r = Fma(n, Splat<F, float>(2.12194440e-4f), r);
  F p = Splat<F, float>(1.9875691500e-4f);
  p = Fma(p, r, Splat<F, float>(1.3981999507e-3f));
  p = Fma(p, r, Splat<F, float>(8.3334519073e-3f));
  p = Fma(p, r, Splat<F, float>(4.1665795894e-2f));
  p = Fma(p, r, Splat<F, float>(1.6666665459e-1f));
  p = Fma(p, r, Splat<F, float>(5.0000001201e-1f));
  const F y = Add(Fma(p, Mul(r, r), r), Splat<F, float>(1.0f));
  // Between the bounds the result is normal, so n can be added to the exponent's bits.
  const F scaled = AsFloat(Add(AsInt(y), ShiftLeft<23>(AsInt(shifted))));
  F result = Select(Greater(Splat<F, float>(kLowest), x), Splat<F, float>(0.0f), scaled);
  result =
      Select(Greater(x, Splat<F, float>(kHighest)), Splat<F, float>(MathLimits::kInfinity), result);
  return Select(Equal(x, x), result, x);
}

// ln(1 + f) + e * ln 2, for 1 + f in [sqrt(1/2), sqrt(2)].
template <typename F>
PHALANX_SHARED F LogReduced(F f, F e) {
  const F z = Mul(f, f);
  F p = Splat<F, float>(7.0376836292e-2f);
  p = Fma(p, f, Splat<F, float>(-1.1514610310e-1f));
  p = Fma(p, f, Splat<F, float>(1.1676998740e-1f));
  p = Fma(p, f, Splat<F, float>(-1.2420140846e-1f));
  p = Fma(p, f, Splat<F, float>(1.4249322787e-1f));
  p = Fma(p, f, Splat<F, float>(-1.6668057665e-1f));
  p = Fma(p, f, Splat<F, float>(2.0000714765e-1f));
  p = Fma(p, f, Splat<F, float>(-2.4999993993e-1f));
  p = Fma(p, f, Splat<F, float>(3.3333331174e-1f));
  F y = Mul(Mul(p, f), z);
  y = Fma(e, Splat<F, float>(-2.12194440e-4f), y);
  y = Fma(z, Splat<F, float>(-0.5f), y);
  return Fma(e, Splat<F, float>(0.693359375f), Add(f, y));
}

// ln(x) for normal x > 0; anything else is garbage.
template <typename F>
PHALANX_SHARED F LogPositive(F x) {
  using I = typename VectorTypes<F>::Int;
  const I bits = AsInt(x);
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  const I e = ShiftRightArithmetic<23>(Sub(bits, Splat<I, int32_t>(0x3f3504f3)));
  const F m = AsFloat(Sub(bits, ShiftLeft<23>(e)));
  return LogReduced(Sub(m, Splat<F, float>(1.0f)), ToFloat(e));
}

template <typename F>
PHALANX_SHARED F Log(F x) {
  F result = LogPositive(x);
  result = Select(Greater(Splat<F, float>(MathLimits::kSmallestNormal), x),
                  Splat<F, float>(-MathLimits::kInfinity), result);
  result = Select(GreaterEqual(Splat<F, float>(-MathLimits::kSmallestNormal), x),
                  Splat<F, float>(MathLimits::kNan), result);
  result = Select(Equal(x, Splat<F, float>(MathLimits::kInfinity)), x, result);
  return Select(Equal(x, x), result, x);
}

// -ln(-ln(u)), u = (w + 0.5) / 2^32. For u >= 1/2 the inner logarithm is ln(1 - q) of q = 1 - u,
// so that u near 1 keeps its precision. Both u and q are h * 2^-32 with 0.5 <= h <= 2^31.
template <typename F, typename I>
PHALANX_SHARED F GumbelFromWord(I w) {
  const auto upper = GreaterI(Splat<I, int32_t>(0), w);  // w >= 2^31
  const I folded = Xor(w, ShiftRightArithmetic<31>(w));  // w, or 2^32 - 1 - w
  const F h = Mul(Add(ToFloat(folded), Splat<F, float>(0.5f)), Splat<F, float>(0x1p-32f));
  // Lower half: ln(h). Upper half: ln(1 - h), as 2^-1 * (1 + (1 - 2h)) where 1 - h < sqrt(1/2).
  const I bits = AsInt(h);
  const I e_low = ShiftRightArithmetic<23>(Sub(bits, Splat<I, int32_t>(0x3f3504f3)));
  const F f_low = Sub(AsFloat(Sub(bits, ShiftLeft<23>(e_low))), Splat<F, float>(1.0f));
  const auto halved = Greater(h, Splat<F, float>(0.29289322f));
  const F f_high = Select(halved, Fma(h, Splat<F, float>(-2.0f), Splat<F, float>(1.0f)), Neg(h));
  const F e_high = Select(halved, Splat<F, float>(-1.0f), Splat<F, float>(0.0f));
  const F inner = LogReduced(Select(upper, f_high, f_low), Select(upper, e_high, ToFloat(e_low)));
  return Neg(LogPositive(Neg(inner)));
}

template <typename F>
PHALANX_SHARED F GumbelNoise(const GumbelKey& key, typename VectorTypes<F>::Int token_id) {
  using I = typename VectorTypes<F>::Int;
  const PhiloxWords<I> counter = {{Splat<I, int32_t>(static_cast<int32_t>(key.position)),
                                   Splat<I, int32_t>(static_cast<int32_t>(key.sample)), token_id,
                                   Splat<I, int32_t>(static_cast<int32_t>(key.purpose))}};
  const PhiloxWords<I> random =
      Philox4x32(counter, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
  return GumbelFromWord<F, I>(random.word[0]);
}

}  // namespace
}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_VECTOR_MATH_H_
