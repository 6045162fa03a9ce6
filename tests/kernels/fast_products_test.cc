// Profile `fast` beside `exact` on one device, by bits: what no library computes is the same,
// though weights lie in another layout.
#include <cmath>

#include "gtest/gtest.h"
#include "tests/kernels/fast_testing.h"
#include "tests/kernels/products_testing.h"

namespace phalanx::kernels {
namespace {

using FastProducts = FastBesideExact;

TEST_F(FastProducts, OfFewRowsHaveExactsBits) {
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    Products expected(*exact_, {type});
    Products got(*fast_, {type});
    for (const int64_t rows : {int64_t{1}, int64_t{2}, int64_t{8}, int64_t{9}, most_rows_}) {
      EXPECT_TRUE(SameBits(expected.MatMul(rows), got.MatMul(rows))) << Name(type) << " " << rows;
    }
  }
}

TEST_F(FastProducts, OfGroupsHaveExactsBits) {
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    Products expected(*exact_, {type}, 3);
    Products got(*fast_, {type}, 3);
    // The kernels of up to 8, 16, 32, 64 and 128 rows a block.
    for (const std::vector<int64_t>& counts : std::vector<std::vector<int64_t>>{
             {1, 0, 7}, {9, 16, 2}, {17, 0, 30}, {60, 33, 1}, {0, 140, 10}}) {
      EXPECT_TRUE(SameBits(expected.Grouped(counts), got.Grouped(counts)))
          << Name(type) << " " << counts[0] << ", " << counts[1];
    }
  }
}

TEST_F(FastProducts, OfGatesAreTheTwoOpsInOne) {
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    Products exact(*exact_, {type});
    Products fast(*fast_, {type});
    for (const int64_t rows : {int64_t{1}, most_rows_, most_rows_ + 1, int64_t{150}}) {
      const std::vector<float> expected = exact.Gated(rows, /*fused=*/false);
      EXPECT_TRUE(SameBits(expected, exact.Gated(rows, /*fused=*/true)))
          << Name(type) << " " << rows;
      const std::vector<float> apart = fast.Gated(rows, /*fused=*/false);
      const std::vector<float> fused = fast.Gated(rows, /*fused=*/true);
      if (type != DType::kBF16 || rows <= most_rows_) {
        EXPECT_TRUE(SameBits(apart, fused)) << Name(type) << " " << rows;
        continue;
      }
      // The library's gates and ups are rounded to BF16 before their biases are added.
      const std::vector<float> products = exact.MatMul(rows);
      const std::vector<float> bias = exact.Bias();
      constexpr int64_t kN = Products::kN / 2;
      for (int64_t i = 0; i < rows * kN; ++i) {
        const float* const row = &products[i / kN * 2 * kN];
        const int64_t j = i % kN;
        const float gate = row[j] + bias[j];
        const float up = row[kN + j] + bias[kN + j];
        // No derivative of silu exceeds 1.1.
        const float bound = 0x1p-8f * (1.1f * std::abs(row[j] * up) + std::abs(gate * row[kN + j]));
        ASSERT_NEAR(fused[i], expected[i], bound + 1e-3f) << rows << " rows, " << i;
      }
    }
  }
}

TEST_F(FastProducts, WhoseLeavesAreApartHaveExactsBits) {
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    const ProductShape apart = {type, {{0, 3, -1}, {1, 2, -1}}};
    Products expected(*exact_, apart);
    Products got(*fast_, apart);
    EXPECT_TRUE(SameBits(expected.MatMul(90), got.MatMul(90))) << Name(type);
  }
}

}  // namespace
}  // namespace phalanx::kernels
