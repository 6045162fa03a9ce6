// What a GPU's thread computes for one element, compiled for the host, against the CPU's reference
// by bits: the bodies are the same text on both.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/fp_environment.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/scalar_math.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

TEST(LaneMath, ExpAndGumbelAreTheScalarOnes) {
  Random random(41);
  for (int i = 0; i < 100000; ++i) {
    const float x = random.Normal(40.0f);
    ASSERT_EQ(Bits(cuda::Exp(x)), Bits(ExpScalar(x))) << x;
    const GumbelKey key{static_cast<uint64_t>(i) * 7919, static_cast<uint32_t>(i % 97), 1, 0};
    ASSERT_EQ(Bits(cuda::Gumbel(key, i)), Bits(Gumbel(key, i)));
  }
  EXPECT_EQ(cuda::Exp(-kInfinity), 0.0f);
  EXPECT_EQ(cuda::Exp(kInfinity), kInfinity);
}

TEST(LaneMath, ResidualNormAndActivationEqualTheReference) {
  const ScopedFpEnvironment environment;
  Random random(42);
  constexpr int64_t kCols = 203;
  Matrix x = Matrix::Of(DType::kF32, 3, kCols, random, 4.0f);
  Matrix delta = Matrix::Of(DType::kF32, 3, kCols, random);
  const std::vector<float> bias = random.Floats(kCols), weight = random.Floats(kCols);
  Matrix added = x, normed(DType::kBF16, 3, kCols);
  reference::AddResidual(added.view(), delta.view(), bias.data());
  reference::RmsNorm(added.view(), weight.data(), 1e-5f, normed.view());
  for (int64_t row = 0; row < 3; ++row) {
    std::vector<float> values(kCols);
    float lanes[cuda::kSumLanes] = {};
    for (int64_t j = 0; j < kCols; ++j) {
      values[j] = cuda::Residual(x.Get(row, j), delta.Get(row, j), bias.data(), j);
      EXPECT_EQ(Bits(values[j]), Bits(added.Get(row, j)));
      float& lane = lanes[j % cuda::kSumLanes];
      lane = cuda::Fma(values[j], values[j], lane);
    }
    // The exchange of HalveSum: every lane adds its partner's.
    for (int step = cuda::kSumLanes / 2; step > 0; step /= 2) {
      float next[cuda::kSumLanes];
      for (int i = 0; i < cuda::kSumLanes; ++i) next[i] = cuda::Add(lanes[i], lanes[i ^ step]);
      std::memcpy(lanes, next, sizeof lanes);
    }
    for (int i = 1; i < cuda::kSumLanes; ++i) EXPECT_EQ(Bits(lanes[i]), Bits(lanes[0]));
    const float scale = cuda::RmsScale(lanes[0], kCols, 1e-5f);
    for (int64_t j = 0; j < kCols; ++j) {
      uint16_t rounded;
      cuda::Store(&rounded, DType::kBF16, 0, cuda::Normed(values[j], scale, weight[j]));
      EXPECT_EQ(Bits(Bf16ToF32(rounded)), Bits(normed.Get(row, j)));
    }
  }
  Matrix gate_up = Matrix::Of(DType::kF32, 2, 2 * kCols, random, 20.0f), out(DType::kF32, 2, kCols);
  reference::SiluMul(gate_up.view(), nullptr, kCols, out.view());
  for (int64_t j = 0; j < kCols; ++j) {
    EXPECT_EQ(Bits(cuda::SiluTimes(gate_up.Get(1, j), gate_up.Get(1, kCols + j))),
              Bits(out.Get(1, j)));
  }
}

TEST(LaneMath, MergesPartialsAsTheReferenceDoes) {
  const ScopedFpEnvironment environment;
  Random random(43);
  constexpr int64_t kD = 5;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> partials = random.Floats(2 * (2 + kD), 3.0f);
    if (trial % 5 == 1) partials[0] = -kInfinity;
    if (trial % 7 == 1) partials[2 + kD] = -kInfinity;
    std::vector<float> expected(2 + kD);
    reference::MergePartials(partials.data(), 1, kD, 2, std::vector<std::vector<int>>{{0, 1, -1}},
                             expected.data());
    const float* a = partials.data();
    const float* b = a + 2 + kD;
    const cuda::MergeFactors f = cuda::MergeOf(a[0], b[0]);
    EXPECT_EQ(Bits(f.max), Bits(expected[0]));
    for (int64_t i = 1; i < 2 + kD; ++i) {
      EXPECT_EQ(Bits(cuda::Merged(f, a[i], b[i])), Bits(expected[i])) << trial;
    }
  }
}

TEST(LaneMath, SeesTheTokensThatTheCpuSees) {
  for (const int64_t window : {0, 1, 31, 32, 33, 70}) {
    for (int64_t position = 0; position < 200; ++position) {
      for (int64_t block = 0; block < 8; ++block) {
        const cpu::VisibleRange expected(position, block, window);
        const cuda::Visible visible = cuda::VisibleTokens(position, block, window);
        EXPECT_EQ(visible.begin, expected.begin);
        EXPECT_EQ(visible.end, expected.end);
        EXPECT_EQ(visible.empty(), expected.empty());
      }
    }
  }
}

TEST(LaneMath, RotatesAsTheFormulaDoes) {
  float a = 3.0f, b = -2.0f;
  const float cos = std::cos(0.7f), sin = std::sin(0.7f);
  cuda::Rotate(&a, &b, cos, sin);
  EXPECT_EQ(Bits(a), Bits(std::fma(2.0f, sin, 3.0f * cos)));
  EXPECT_EQ(Bits(b), Bits(std::fma(3.0f, sin, -2.0f * cos)));
}

}  // namespace
}  // namespace phalanx::kernels
