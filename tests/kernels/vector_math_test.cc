// exp, log, halves and rotary tables against long double.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/fp_environment.h"
#include "kernels/rope.h"
#include "kernels/scalar_math.h"

namespace phalanx::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The distance in units of the last place of the F32 nearest to `exact`.
double UlpError(float value, long double exact) {
  const float near = static_cast<float>(exact);
  const float next = std::nextafter(std::abs(near), kInfinity);
  const long double ulp = static_cast<long double>(next) - std::abs(near);
  return static_cast<double>(std::abs(static_cast<long double>(value) - exact) / ulp);
}

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

TEST(Exp, IsWithinOneUlp) {
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> wide(-87.33f, 88.72f), narrow(-1.0f, 1.0f);
  double worst = 0;
  for (int i = 0; i < 2000000; ++i) {
    const float x = i % 2 == 0 ? wide(engine) : narrow(engine);
    worst = std::max(worst, UlpError(ExpScalar(x), std::exp(static_cast<long double>(x))));
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 1.0);
}

TEST(Exp, HasExactSpecialValues) {
  EXPECT_EQ(Bits(ExpScalar(0.0f)), Bits(1.0f));
  EXPECT_EQ(Bits(ExpScalar(-0.0f)), Bits(1.0f));
  EXPECT_EQ(Bits(ExpScalar(-kInfinity)), Bits(0.0f));
  EXPECT_EQ(ExpScalar(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(ExpScalar(kNan)));
  EXPECT_EQ(Bits(ExpScalar(-87.5f)), Bits(0.0f));
  EXPECT_EQ(Bits(ExpScalar(-1e30f)), Bits(0.0f));
  EXPECT_EQ(ExpScalar(89.0f), kInfinity);
  EXPECT_EQ(ExpScalar(1e30f), kInfinity);
  // No result between zero and the smallest normal, none lost above it.
  float x = -87.3f;
  while (ExpScalar(x) != 0.0f) {
    EXPECT_GE(ExpScalar(x), std::numeric_limits<float>::min());
    x = std::nextafter(x, -kInfinity);
  }
  EXPECT_LT(std::exp(static_cast<double>(x)), 1.0001 * std::numeric_limits<float>::min());
  x = 88.7f;
  while (ExpScalar(x) != kInfinity) x = std::nextafter(x, kInfinity);
  EXPECT_GT(x, 88.7228f);
}

TEST(Log, IsWithinOneUlp) {
  std::mt19937 engine(2);
  std::uniform_int_distribution<uint32_t> normal(0x00800000u, 0x7f7fffffu);
  std::uniform_real_distribution<float> near_one(0.5f, 2.0f);
  double worst = 0;
  for (int i = 0; i < 2000000; ++i) {
    const uint32_t bits = normal(engine);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    if (i % 2 == 0) x = near_one(engine);
    worst = std::max(worst, UlpError(LogScalar(x), std::log(static_cast<long double>(x))));
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 1.0);
}

TEST(Log, HasExactSpecialValues) {
  EXPECT_EQ(Bits(LogScalar(1.0f)), Bits(0.0f));
  EXPECT_EQ(LogScalar(0.0f), -kInfinity);
  EXPECT_EQ(LogScalar(-0.0f), -kInfinity);
  EXPECT_EQ(LogScalar(std::numeric_limits<float>::denorm_min()), -kInfinity);
  EXPECT_EQ(LogScalar(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(LogScalar(-1.0f)));
  EXPECT_TRUE(std::isnan(LogScalar(-kInfinity)));
  EXPECT_TRUE(std::isnan(LogScalar(kNan)));
}

TEST(ScalarMath, DoesNotDependOnFlushToZero) {
  std::mt19937 engine(3);
  std::uniform_int_distribution<uint32_t> any;
  for (int i = 0; i < 1000000; ++i) {
    const uint32_t bits = any(engine);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    const uint32_t e = Bits(ExpScalar(x)), l = Bits(LogScalar(x));
    const uint32_t g = Bits(Gumbel({bits, 1, 2, 3}, bits));
    const ScopedFpEnvironment environment;
    ASSERT_EQ(Bits(ExpScalar(x)), e) << x;
    // A denormal is below the smallest normal either way.
    ASSERT_EQ(Bits(LogScalar(x)), l) << x;
    ASSERT_EQ(Bits(Gumbel({bits, 1, 2, 3}, bits)), g);
  }
}

TEST(Halves, RoundTripEveryF16AndRoundToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = F16ToF32(static_cast<uint16_t>(bits));
    const bool nan = (bits & 0x7c00u) == 0x7c00u && (bits & 0x3ffu) != 0;
    EXPECT_EQ(std::isnan(value), nan);
    EXPECT_EQ(F32ToF16(value), nan ? bits | 0x200u : bits);
    const bool nan_bf16 = (bits & 0x7f80u) == 0x7f80u && (bits & 0x7fu) != 0;
    EXPECT_EQ(F32ToBf16(Bf16ToF32(static_cast<uint16_t>(bits))), nan_bf16 ? bits | 0x40u : bits);
  }
  // Half way between two neighbours: to the even one. A little more: up.
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const double low = F16ToF32(static_cast<uint16_t>(bits));
    const double high = F16ToF32(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);
    EXPECT_EQ(F32ToF16(middle), bits + (bits & 1u)) << bits;
    EXPECT_EQ(F32ToF16(std::nextafter(middle, kInfinity)), bits + 1);
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), bits);
  }
  EXPECT_EQ(F32ToF16(65519.9f), 0x7bffu);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00u);
  EXPECT_EQ(F32ToBf16(1.00390625f), 0x3f80u);  // 1 + 2^-8: a tie
  EXPECT_EQ(F32ToBf16(1.01171875f), 0x3f82u);  // 1 + 3 * 2^-8: a tie
}

TEST(DoubleMath, AgreesWithLongDouble) {
  std::mt19937_64 engine(4);
  std::uniform_real_distribution<double> angle(-8388608.0, 8388608.0), small(-4.0, 4.0);
  std::uniform_real_distribution<double> exponent(-700.0, 700.0);
  for (int i = 0; i < 500000; ++i) {
    // An F32 angle, as the tables use; the worst cancellations are near multiples of pi / 2.
    double x = static_cast<float>(i % 2 == 0 ? angle(engine) : small(engine));
    if (i % 4 == 3) x = static_cast<float>(std::floor(angle(engine)) * 0.5 * 1.5707963267948966);
    double sine, cosine;
    SinCos(x, &sine, &cosine);
    ASSERT_NEAR(sine, static_cast<double>(std::sin(static_cast<long double>(x))), 1e-15) << x;
    ASSERT_NEAR(cosine, static_cast<double>(std::cos(static_cast<long double>(x))), 1e-15) << x;
    const double y = exponent(engine);
    const double e = static_cast<double>(std::exp(static_cast<long double>(y)));
    ASSERT_NEAR(ExpDouble(y) / e, 1.0, 3e-16) << y;
    const double l = static_cast<double>(std::log(static_cast<long double>(e)));
    ASSERT_NEAR(LogDouble(e), l, 3e-16 * std::abs(l)) << e;
  }
  EXPECT_EQ(LogDouble(1.0), 0.0);
  EXPECT_EQ(ExpDouble(0.0), 1.0);
  EXPECT_NEAR(PowDouble(500000.0, 0.984375) / std::pow(500000.0, 0.984375), 1.0, 1e-14);
}

TEST(RopeTables, HoldCosAndSinOfF32Angles) {
  std::vector<float> inv_freq;
  for (int i = 0; i < 32; ++i) {
    inv_freq.push_back(static_cast<float>(PowDouble(500000.0, -i / 32.0)));
  }
  constexpr float kFactor = 1.25f;
  const RopeTables tables = BuildRopeTables(inv_freq, 20000, kFactor);
  ASSERT_EQ(tables.cos.size(), 20000u * 32u);
  for (int64_t p = 0; p < 20000; p += 37) {
    for (int64_t i = 0; i < 32; ++i) {
      const float angle = static_cast<float>(p) * inv_freq[i];
      const auto exact = static_cast<long double>(angle);
      EXPECT_NEAR(tables.cos[p * 32 + i], static_cast<double>(std::cos(exact)) * kFactor, 1.2e-7);
      EXPECT_NEAR(tables.sin[p * 32 + i], static_cast<double>(std::sin(exact)) * kFactor, 1.2e-7);
    }
  }
  EXPECT_EQ(tables.cos[0], kFactor);
  EXPECT_EQ(tables.sin[0], 0.0f);
}

}  // namespace
}  // namespace phalanx::kernels
