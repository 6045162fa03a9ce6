// Row-wise ops: every device, path and thread count against the plain reference, by bits.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

constexpr int64_t kWidths[] = {1, 7, 15, 16, 17, 31, 33, 64, 100, 2048, 2051};
constexpr int64_t kHeights[] = {1, 2, 5, 19};

TEST(GatherRows, EqualsReferenceAndZeroesForeignIds) {
  Random random(1);
  for (const DType type : kAllTypes) {
    for (const int64_t width : kWidths) {
      Matrix table = Matrix::Of(type, 10, width, random);
      const std::vector<int32_t> ids = {100, 109, 99, 110, 0, 105, 2147483647, 104};
      Matrix expected(DType::kF32, ids.size(), width);
      reference::GatherRows(table.view(), ids, 100, expected.view());
      EXPECT_EQ(expected.Get(2, 0), 0.0f);
      EXPECT_EQ(expected.Get(3, 0), 0.0f);
      EXPECT_EQ(expected.Get(1, width - 1), table.Get(9, width - 1));
      for (const auto& [name, kernels] : AllKernels()) {
        Matrix out(DType::kF32, ids.size(), width);
        kernels->GatherRows(table.view(), ids, 100, nullptr, out.view());
        EXPECT_EQ(out.Difference(expected), "") << name << " " << Name(type);
      }
    }
  }
}

TEST(GatherRows, FeedsWhatWasChosen) {
  Random random(3);
  Matrix table = Matrix::Of(DType::kBF16, 10, 40, random);
  const std::vector<Choice> chosen = {{107, 1.0f}, {-1, 0.0f}, {103, 2.0f}};
  Matrix expected(DType::kF32, 5, 40);
  reference::GatherRows(table.view(), std::vector<int32_t>{103, 101, 107, 0, 103}, 100,
                        expected.view());
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix out(DType::kF32, 5, 40);
    // The last but one chose nothing: id 0, which isn't in the table.
    const std::vector<int32_t> ids = {-3, 101, -1, -2, -3};
    kernels->GatherRows(table.view(), ids, 100, chosen.data(), out.view());
    EXPECT_EQ(out.Difference(expected), "") << name;
  }
}

TEST(AddResidual, EqualsReference) {
  Random random(2);
  const std::vector<NamedKernels> all = AllKernels();
  for (const int64_t width : kWidths) {
    for (const int64_t height : kHeights) {
      const Matrix x = Matrix::Of(DType::kF32, height, width, random);
      Matrix delta = Matrix::Of(DType::kF32, height, width, random);
      const std::vector<float> bias = random.Floats(width);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        Matrix expected = x;
        reference::AddResidual(expected.view(), delta.view(), b);
        for (const auto& [name, kernels] : all) {
          Matrix out = x;
          kernels->AddResidual(out.view(), delta.view(), b);
          EXPECT_EQ(out.Difference(expected), "") << name;
        }
      }
    }
  }
}

TEST(RmsNorm, EqualsReferenceAlsoFusedWithResidual) {
  Random random(3);
  const std::vector<NamedKernels> all = AllKernels();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t width : kWidths) {
      for (const int64_t height : kHeights) {
        Matrix x = Matrix::Of(DType::kF32, height, width, random, 5.0f);
        Matrix delta = Matrix::Of(DType::kF32, height, width, random);
        const std::vector<float> weight = random.Floats(width);
        const std::vector<float> bias = random.Floats(width);
        Matrix expected(type, height, width), expected_fused(type, height, width);
        reference::RmsNorm(x.view(), weight.data(), 1e-5f, expected.view());
        Matrix expected_x = x;
        reference::AddResidual(expected_x.view(), delta.view(), bias.data());
        reference::RmsNorm(expected_x.view(), weight.data(), 1e-6f, expected_fused.view());
        for (const auto& [name, kernels] : all) {
          Matrix out(type, height, width);
          kernels->RmsNorm(x.view(), weight.data(), 1e-5f, out.view());
          EXPECT_EQ(out.Difference(expected), "") << name;
          Matrix fused(type, height, width), fused_x = x;
          kernels->AddResidualRmsNorm(fused_x.view(), delta.view(), bias.data(), weight.data(),
                                      1e-6f, fused.view());
          EXPECT_EQ(fused.Difference(expected_fused), "") << name;
          EXPECT_EQ(fused_x.Difference(expected_x), "") << name;
        }
      }
    }
  }
}

// Rows that a device may read by several columns at once: as long as a thread's registers hold, and
// longer.
TEST(RmsNorm, EqualsReferenceOnAlignedRows) {
  Random random(33);
  const std::vector<NamedKernels> all = AllKernels();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t width : {4, 64, 1000, 2048, 2052, 4096, 5376, 8192, 8196}) {
      Matrix x(DType::kF32, 2, width, 4), delta(DType::kF32, 2, width, 8);
      for (int64_t i = 0; i < 2 * width; ++i) {
        x.Set(i / width, i % width, random.Normal(5.0f));
        delta.Set(i / width, i % width, random.Normal(1.0f));
      }
      const std::vector<float> weight = random.Floats(width);
      const std::vector<float> bias = random.Floats(width);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        Matrix expected(type, 2, width, 4), expected_x = x;
        reference::AddResidual(expected_x.view(), delta.view(), b);
        reference::RmsNorm(expected_x.view(), weight.data(), 1e-6f, expected.view());
        for (const auto& [name, kernels] : all) {
          Matrix out(type, 2, width, 4), fused_x = x;
          kernels->AddResidualRmsNorm(fused_x.view(), delta.view(), b, weight.data(), 1e-6f,
                                      out.view());
          EXPECT_EQ(out.Difference(expected), "") << name << ", " << width;
          EXPECT_EQ(fused_x.Difference(expected_x), "") << name << ", " << width;
          Matrix plain(type, 2, width, 4);
          kernels->RmsNorm(fused_x.view(), weight.data(), 1e-6f, plain.view());
          EXPECT_EQ(plain.Difference(expected), "") << name << ", " << width;
        }
      }
    }
  }
}

TEST(RmsNorm, IsCloseToTheFormulaInDouble) {
  Random random(4);
  Matrix x = Matrix::Of(DType::kF32, 3, 1000, random, 3.0f);
  const std::vector<float> weight = random.Floats(1000);
  Matrix out(DType::kF32, 3, 1000);
  reference::RmsNorm(x.view(), weight.data(), 1e-5f, out.view());
  for (int64_t i = 0; i < 3; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < 1000; ++j) squares += double{x.Get(i, j)} * x.Get(i, j);
    const double scale = 1.0 / std::sqrt(squares / 1000 + 1e-5);
    for (int64_t j = 0; j < 1000; ++j) {
      EXPECT_NEAR(out.Get(i, j), x.Get(i, j) * scale * weight[j], 2e-6);
    }
  }
}

TEST(SiluMul, EqualsReferenceAndZeroesPadding) {
  Random random(5);
  const std::vector<NamedKernels> all = AllKernels();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t n : kWidths) {
      for (const int64_t height : kHeights) {
        Matrix gate_up = Matrix::Of(DType::kF32, height, 2 * n, random, 20.0f);
        gate_up.Set(0, 0, -1000.0f);
        gate_up.Set(height - 1, n - 1, 1000.0f);
        const std::vector<float> bias = random.Floats(2 * n);
        const int64_t padded = RoundUp(n, kDotGroup);
        for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
          Matrix expected(type, height, padded);
          reference::SiluMul(gate_up.view(), b, n, expected.view());
          for (int64_t j = n; j < padded; ++j) EXPECT_EQ(expected.Get(0, j), 0.0f);
          for (const auto& [name, kernels] : all) {
            Matrix out(type, height, padded);
            kernels->SiluMul(gate_up.view(), b, n, out.view());
            EXPECT_EQ(out.Difference(expected), "") << name;
          }
        }
      }
    }
  }
}

// Rows that a device may take four columns of at once, where there are many.
TEST(SiluMul, EqualsReferenceOnAlignedRows) {
  Random random(35);
  const std::vector<NamedKernels> all = AllKernels();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t n : {4, 64, 100, 1028}) {
      for (const int64_t height : {16, 17, 40}) {
        Matrix gate_up(DType::kF32, height, 2 * n, 4);
        for (int64_t i = 0; i < height * 2 * n; ++i) {
          gate_up.Set(i / (2 * n), i % (2 * n), random.Normal(20.0f));
        }
        const std::vector<float> bias = random.Floats(2 * n);
        const int64_t padded = RoundUp(n, kDotGroup);
        for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
          Matrix expected(type, height, padded, 8);
          reference::SiluMul(gate_up.view(), b, n, expected.view());
          for (const auto& [name, kernels] : all) {
            Matrix out(type, height, padded, 8);
            kernels->SiluMul(gate_up.view(), b, n, out.view());
            EXPECT_EQ(out.Difference(expected), "") << name << ", " << n << " x " << height;
          }
        }
      }
    }
  }
}

TEST(SiluMul, IsCloseToTheFormulaInDouble) {
  Random random(6);
  Matrix gate_up = Matrix::Of(DType::kF32, 4, 600, random, 10.0f);
  Matrix out(DType::kF32, 4, 320);
  reference::SiluMul(gate_up.view(), nullptr, 300, out.view());
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 300; ++j) {
      const double g = gate_up.Get(i, j);
      const double expected = g / (1.0 + std::exp(-g)) * gate_up.Get(i, 300 + j);
      EXPECT_NEAR(out.Get(i, j), expected, 1e-6 * std::abs(expected) + 1e-30);
    }
  }
}

TEST(RowOps, DoNotDependOnNeighbouringRows) {
  Random random(7);
  constexpr int64_t kWidth = 77;
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix x = Matrix::Of(DType::kF32, 9, kWidth, random);
    const std::vector<float> weight = random.Floats(kWidth);
    Matrix together(DType::kBF16, 9, kWidth);
    kernels->RmsNorm(x.view(), weight.data(), 1e-5f, together.view());
    for (int64_t row = 0; row < 9; ++row) {
      Matrix alone(DType::kBF16, 1, kWidth);
      TensorView one = x.view();
      one.data = one.f32() + row * one.stride;
      one.rows = 1;
      kernels->RmsNorm(one, weight.data(), 1e-5f, alone.view());
      for (int64_t j = 0; j < kWidth; ++j) {
        EXPECT_EQ(alone.Get(0, j), together.Get(row, j)) << name;
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
