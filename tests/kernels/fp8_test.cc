// E4M3 and its scales against the specifications' definitions, in double.
#include "kernels/fp8.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/fp_environment.h"
#include "kernels/float16.h"

namespace phalanx::kernels {
namespace {

// The format's definition. NaN for NaN's codes.
double ValueOf(int code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if (exponent == 15 && fraction == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code >= 128 ? -magnitude : magnitude;
}

// Round to nearest, ties to the even code, saturating: by looking at all values.
int NearestCode(double x) {
  int best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code < 127; ++code) {
    const double d = std::abs(std::abs(x) - ValueOf(code));
    if (d < distance || (d == distance && code % 2 == 0)) {
      best = code;
      distance = d;
    }
  }
  return best + (std::signbit(x) ? 128 : 0);
}

constexpr uint8_t kOne = 127;  // 2^0

TEST(E4m3, ReadsAll256Codes) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4m3ToF32(static_cast<uint8_t>(code));
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    EXPECT_EQ(static_cast<double>(value), ValueOf(code)) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    EXPECT_EQ(Bf16ToF32(F32ToBf16(value)), value) << "not exact in BF16: " << code;
    EXPECT_EQ(F32ToE4m3(value, kOne), code);
  }
  EXPECT_EQ(E4m3ToF32(0x7e), 448.0f);
  EXPECT_EQ(E4m3ToF32(0x01), std::ldexp(1.0f, -9));
}

TEST(E4m3, RoundsToNearestEvenBetweenAllNeighbours) {
  for (int code = 0; code < 126; ++code) {
    const double middle = (ValueOf(code) + ValueOf(code + 1)) / 2;
    const auto half = static_cast<float>(middle);
    ASSERT_EQ(static_cast<double>(half), middle);
    for (const float x : {std::nextafter(half, 0.0f), half, std::nextafter(half, 1000.0f)}) {
      EXPECT_EQ(F32ToE4m3(x, kOne), NearestCode(x)) << x;
      EXPECT_EQ(F32ToE4m3(-x, kOne), NearestCode(-x)) << -x;
    }
  }
}

TEST(E4m3, RoundsTheQuotientOfAnyNumberAndScale) {
  std::mt19937 rng(3);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<uint32_t>(rng());
    const float x = __builtin_bit_cast(float, bits);
    if (!std::isfinite(x) || std::fpclassify(x) == FP_SUBNORMAL) continue;
    const auto scale = static_cast<uint8_t>(10 + rng() % 237);
    EXPECT_EQ(F32ToE4m3(x, scale), NearestCode(std::ldexp(static_cast<double>(x), 127 - scale)))
        << x << " scale " << int{scale};
  }
}

TEST(E4m3, SaturatesAndCountsDenormalNumbersAsZero) {
  EXPECT_EQ(F32ToE4m3(463.9f, kOne), 0x7e);
  EXPECT_EQ(F32ToE4m3(464.0f, kOne), 0x7e);
  EXPECT_EQ(F32ToE4m3(1e30f, kOne), 0x7e);
  EXPECT_EQ(F32ToE4m3(-1e30f, kOne), 0xfe);
  EXPECT_EQ(F32ToE4m3(std::numeric_limits<float>::max(), 246), 0x7e);
  const float denormal = std::nextafter(std::numeric_limits<float>::min(), 0.0f);
  EXPECT_EQ(F32ToE4m3(denormal, 10), 0x00);
  EXPECT_EQ(F32ToE4m3(-denormal, 10), 0x80);
  EXPECT_EQ(F32ToE4m3(std::numeric_limits<float>::min(), 10), 0x01);
  EXPECT_EQ(F32ToE4m3(0.0f, 10), 0x00);
  EXPECT_EQ(F32ToE4m3(-0.0f, 10), 0x80);
}

uint8_t ScaleOf(float largest) { return E4m3Scale(__builtin_bit_cast(uint32_t, largest)); }

TEST(E4m3Scale, IsTheSmallestPowerOfTwoThatHoldsTheLargestMagnitude) {
  std::vector<float> cases = {448.0f,
                              std::nextafter(448.0f, 500.0f),
                              1.0f,
                              1.75f,
                              std::nextafter(1.75f, 2.0f),
                              3.5f,
                              1e-20f,
                              1e20f};
  std::mt19937 rng(4);
  std::uniform_real_distribution<float> exponent(-100.0f, 100.0f);
  for (int i = 0; i < 1000; ++i) cases.push_back(std::exp2(exponent(rng)));
  for (const float x : cases) {
    const uint8_t scale = ScaleOf(x);
    EXPECT_LE(x / std::ldexp(1.0, scale - 127), 448.0) << x;
    EXPECT_GT(x / std::ldexp(1.0, scale - 128), 448.0) << x;
    EXPECT_EQ(static_cast<double>(E8m0ToF32(scale)), std::ldexp(1.0, scale - 127));
    EXPECT_EQ(static_cast<double>(E8m0Inverse(scale)), std::ldexp(1.0, 127 - scale));
  }
}

TEST(E4m3Scale, KeepsEveryValueZeroOrANormalNumberAndNoFaultHidden) {
  EXPECT_EQ(ScaleOf(0.0f), 10);
  EXPECT_EQ(ScaleOf(1e-40f), 10);
  EXPECT_EQ(ScaleOf(std::numeric_limits<float>::max()), 246);
  // The same with denormals flushed, as where kernels run.
  const ScopedFpEnvironment environment;
  for (const uint8_t scale : {uint8_t{10}, uint8_t{246}}) {
    for (int code = 1; code < 127; ++code) {
      const float value = E4m3ToF32(static_cast<uint8_t>(code)) * E8m0ToF32(scale);
      EXPECT_TRUE(std::isnormal(value)) << code << " at " << int{scale};
      EXPECT_EQ(std::ldexp(ValueOf(code), scale - 127), static_cast<double>(value));
    }
  }
  for (const float fault :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(ScaleOf(fault), kE8m0Nan);
  }
  EXPECT_TRUE(std::isnan(E8m0ToF32(kE8m0Nan)));
  EXPECT_EQ(F32ToE4m3(1.0f, kE8m0Nan), kE4m3Nan);
}

TEST(E8m0, ReadsAll256Codes) {
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(static_cast<double>(E8m0ToF32(static_cast<uint8_t>(code))),
              std::ldexp(1.0, code - 127));
  }
  EXPECT_TRUE(std::isnan(E8m0ToF32(255)));
}

}  // namespace
}  // namespace phalanx::kernels
