// Profile `fast` beside `exact` on one device, by bits: what no library computes is the same,
// though weights lie in another layout.
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
