// Weights of FP8: what is kept of a value, and that a product with them is, bit for bit, the
// product with plain weights of the values that are read back, on every device and path.
#include "kernels/fp8_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/kernels/products_testing.h"

namespace phalanx::kernels {
namespace {

using ::testing::HasSubstr;

using Values = std::array<uint16_t, kFp8GroupValues>;

// BF16 of any sign, of magnitudes 2^-20 .. 2^15.
Values Draw(std::mt19937& rng) {
  Values values;
  for (uint16_t& value : values) {
    value = static_cast<uint16_t>((rng() & 0x8000u) | (107 + rng() % 35) << 7 | (rng() & 0x7fu));
  }
  return values;
}

TEST(Fp8Weights, KeepTheNearestCodeUnderTheLeastPowerOfTwoThatHoldsTheGroup) {
  std::mt19937 rng(7);
  for (int i = 0; i < 2000; ++i) {
    const Values values = Draw(rng);
    Fp8Group group;
    ASSERT_TRUE(QuantiseGroup(values.data(), &group));
    const double scale = Bf16ToF32(group.scale);
    EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
    double largest = 0;
    for (const uint16_t value : values) {
      largest = std::max<double>(largest, std::abs(Bf16ToF32(value)));
    }
    EXPECT_LE(largest / scale, 448);
    EXPECT_GT(largest / (scale / 2), 448);
    for (int j = 0; j < kFp8GroupValues; ++j) {
      const double value = Bf16ToF32(values[j]);
      const double kept = Bf16ToF32(Fp8Weight(group, j));
      // Half a unit of the last of four significant bits, or of the least code.
      const double unit =
          std::max(std::exp2(std::floor(std::log2(std::abs(value))) - 3), std::exp2(-9) * scale);
      EXPECT_LE(std::abs(kept - value), unit / 2) << value;
    }
  }
}

// With a scale of BF16 always; with one of F32 unless the product is near the middle of two BF16.
TEST(Fp8Weights, AreTheProductOfCodeAndScaleRoundedOnceToBf16) {
  std::mt19937 rng(8);
  int checked = 0;
  for (int i = 0; i < 40000; ++i) {
    const bool fine = i % 2 == 1;
    Fp8Group group = {};
    group.codes[0] = static_cast<uint8_t>(rng() % 127 + (rng() % 2) * 128);
    const uint32_t bits = (37 + rng() % 97) << 23 | (rng() & (fine ? 0x7fffffu : 0x7f0000u));
    const float scale = __builtin_bit_cast(float, bits);
    group.scale = F32ToBf16(scale);
    group.rest = F32ToBf16(scale - Bf16ToF32(group.scale));
    ASSERT_TRUE(fine || group.rest == 0);
    const double exact = static_cast<double>(E4m3ToF32(group.codes[0])) * scale;
    const uint16_t weight = Fp8Weight(group, 0);
    const double error = std::abs(Bf16ToF32(weight) - exact);
    const double unit = exact == 0 ? 0 : std::exp2(std::floor(std::log2(std::abs(exact))) - 7);
    if (fine) {
      EXPECT_LE(error, unit / 2 + std::abs(exact) * std::exp2(-17));
      continue;
    }
    ++checked;
    EXPECT_LE(error, unit / 2);
    const bool tie = error == unit / 2;
    EXPECT_FALSE(tie && weight % 2 == 1) << exact;
  }
  EXPECT_EQ(checked, 20000);
}

TEST(Fp8Weights, RefuseWhatTheyCantKeep) {
  EXPECT_EQ(Bf16ToF32(0x4760), kMaxFp8Weight);
  for (const int at : {0, 13, 31}) {
    for (const uint16_t bits : {0x4760, 0xc760, 0x0001, 0x8000}) {
      Values values = {};
      values[at] = static_cast<uint16_t>(bits);
      Fp8Group group;
      EXPECT_TRUE(QuantiseGroup(values.data(), &group)) << bits;
    }
    for (const uint16_t bits : {0x4761, 0xc761, 0x7f80, 0xff80, 0x7fc0, 0x7f81}) {
      Values values = {};
      values[at] = static_cast<uint16_t>(bits);
      Fp8Group group;
      EXPECT_FALSE(QuantiseGroup(values.data(), &group)) << bits;
    }
  }
}

class Fp8Products : public ::testing::TestWithParam<KernelSet> {};

TEST_P(Fp8Products, HaveTheBitsOfPlainWeightsOfTheSameValues) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  // Where a library adds the plain ones in an order of its own, profile `exact` of the device.
  const std::unique_ptr<Kernels> exact = KernelSets().front().make(2);
  for (const auto& parts : {ProductShape{}.parts, {{0, 1, -1}, {3, 2, -1}}}) {
    Products fp8(*kernels, {DType::kBF16, parts, WeightFormat::kF8E4M3}, 3);
    Products plain(GetParam().most_ordered_rows < Products::kMostRows ? *exact : *kernels,
                   {DType::kBF16, parts, WeightFormat::kPlain, /*rounded=*/true}, 3);
    for (const int64_t rows :
         Sized<int64_t>({1, 8, 13, 40}, {1, 2, 8, 9, 16, 17, 33, 64, 100, 150})) {
      EXPECT_TRUE(SameBits(fp8.MatMul(rows), plain.MatMul(rows))) << rows << " rows";
    }
    for (const std::vector<int64_t>& counts :
         {std::vector<int64_t>{1, 0, 2}, {5, 1, 11}, {40, 0, 3}}) {
      EXPECT_TRUE(SameBits(fp8.Grouped(counts), plain.Grouped(counts))) << counts[0];
    }
  }
}

TEST_P(Fp8Products, DifferFromThoseOfTheSourcesValues) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  Products fp8(*kernels, {.format = WeightFormat::kF8E4M3});
  Products plain(*kernels, {});
  EXPECT_FALSE(SameBits(fp8.MatMul(1), plain.MatMul(1)));
}

TEST_P(Fp8Products, PackingNamesAValueThatCantBeKept) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  constexpr int64_t kRows = 40, kCols = 100;
  for (const uint16_t bits : {0x7fc0, 0xff80, 0x4761}) {
    std::vector<uint16_t> source(kRows * kCols, 0x3f80);
    source[17 * kCols + 71] = static_cast<uint16_t>(bits);
    source[29 * kCols + 3] = static_cast<uint16_t>(bits);
    WeightSpec spec;
    spec.format = WeightFormat::kF8E4M3;
    spec.rows = {{source.data(), kRows, kCols}};
    spec.leaves = {{0, 64}, {64, 100}};
    spec.parts = {{0, 1, -1}};
    const auto packed = kernels->Pack(spec);
    ASSERT_EQ(packed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(packed.status().message()),
                HasSubstr("the weight holds a NaN, an infinity or a magnitude above 57344 at row "
                          "17, column 71"));
  }
}

// Codes and scales as checkpoints hold them: for the whole matrix, a row, or a block.
TEST_P(Fp8Products, ReadCodesWithScalesOfEveryGranularity) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  const std::unique_ptr<Kernels> exact = KernelSets().front().make(2);
  constexpr int64_t kRows = 70, kFirst = 40, kCols = 200, kK = 224;
  constexpr int64_t kMostRows = 150;
  std::mt19937 rng(10);
  std::vector<uint8_t> codes(kRows * kCols);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(rng() % 127 + rng() % 2 * 128);
  std::vector<uint16_t> x(kMostRows * kK);
  for (int64_t i = 0; i < kMostRows; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      x[i * kK + j] = static_cast<uint16_t>(0x3f00 + rng() % 256 + rng() % 2 * 0x8000);
    }
  }
  // Of a few rows and of many, and the first of them in a group.
  const std::vector<int64_t> row_counts = Sized<int64_t>({3, 13, 40}, {1, 3, 13, 33, 64, 150});
  const auto products = [&](Kernels& on, const WeightSpec& weight) {
    auto packed = on.Pack(weight);
    EXPECT_TRUE(packed.ok()) << packed.status();
    auto in = on.Allocate(static_cast<int64_t>(x.size()) * 2);
    auto out = on.Allocate(kMostRows * kRows * 4);
    EXPECT_TRUE(in.ok() && out.ok());
    on.CopyIn(in->data(), x.data(), static_cast<int64_t>(x.size()) * 2);
    std::vector<float> all;
    const auto add = [&](int64_t m) {
      std::vector<float> result(m * kRows);
      on.CopyOut(result.data(), out->data(), m * kRows * 4);
      all.insert(all.end(), result.begin(), result.end());
    };
    for (const int64_t m : row_counts) {
      const TensorView rows = {in->data(), DType::kBF16, m, kK, kK};
      const TensorView y = {out->data(), DType::kF32, m, kRows, kRows};
      on.MatMul(rows, **packed, {&y, 1});
      add(m);
      const ExpertRows group = {packed->get(), 0, m};
      on.GroupedMatMul(rows, {&group, 1}, {&y, 1});
      add(m);
    }
    return all;
  };
  struct Block {
    int64_t rows, columns;
  };
  struct Case {
    Block block;
    WeightFormat format;
  };
  std::vector<Case> cases;
  for (const Block& block : {Block{kRows, kCols}, {1, kCols}, {48, 64}, {32, 96}, {1, 32}}) {
    cases.push_back({block, WeightFormat::kF8E4M3});
    cases.push_back({block, WeightFormat::kF8E4M3Fine});
  }
  for (const auto& [block, format] : cases) {
    const int64_t across = (kCols + block.columns - 1) / block.columns;
    std::vector<float> scales((kRows + block.rows - 1) / block.rows * across);
    for (float& scale : scales) {
      const uint32_t bits = 0x3a000000u + rng() % 0x2000000u;
      scale = __builtin_bit_cast(float, format == WeightFormat::kF8E4M3 ? bits & ~0xffffu : bits);
    }
    // Rows from kFirst on, stacked on those before.
    const CodeScales of = {scales.data(), block.rows, block.columns, across};
    WeightSpec spec;
    spec.format = format;
    spec.rows = {{codes.data() + kFirst * kCols, kRows - kFirst, kCols, of, kFirst},
                 {codes.data(), kFirst, kCols, of, 0}};
    spec.leaves = {{0, 96}, {96, 200}};
    spec.parts = {{0, 1, -1}};
    std::vector<uint16_t> values(kRows * kCols);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        const int64_t row = (i + kFirst) % kRows;
        const float scale = scales[row / block.rows * across + j / block.columns];
        Fp8Group group = {};
        group.codes[0] = codes[row * kCols + j];
        group.scale = F32ToBf16(scale);
        group.rest = F32ToBf16(scale - Bf16ToF32(group.scale));
        values[i * kCols + j] = Fp8Weight(group, 0);
      }
    }
    WeightSpec plain = spec;
    plain.format = WeightFormat::kPlain;
    plain.rows = {{values.data(), kRows, kCols}};
    EXPECT_TRUE(SameBits(products(*kernels, spec), products(*exact, plain)))
        << block.rows << " x " << block.columns << (format == WeightFormat::kF8E4M3 ? "" : " fine");
    const uint8_t sound = codes[50 * kCols + 7];
    codes[50 * kCols + 7] = 0xff;
    EXPECT_THAT(std::string(kernels->Pack(spec).status().message()),
                HasSubstr("NaN or an infinity at row 10, column 7 of stacked matrix 0"));
    codes[50 * kCols + 7] = sound;
  }
}

TEST_P(Fp8Products, PackedMemoryIsWhatItSays) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  std::mt19937 rng(9);
  std::vector<uint16_t> source;
  for (int i = 0; i < 20; ++i) {
    for (const uint16_t value : Draw(rng)) source.push_back(value);
  }
  WeightSpec spec;
  spec.format = WeightFormat::kF8E4M3;
  spec.rows = {{source.data(), 20, 32}};
  spec.leaves = {{0, 32}};
  spec.parts = {{0}};
  auto first = kernels->Pack(spec);
  ASSERT_TRUE(first.ok()) << first.status();
  const int64_t bytes = kernels->PackedBytes(spec);
  EXPECT_EQ((*first)->bytes(), bytes);
  // A CPU keeps BF16; a GPU a byte a value and two a group.
  EXPECT_THAT(bytes, ::testing::AnyOf(32 * 32 * 2, 32 * 32 + 32 * 2));
  EXPECT_EQ((*first)->dtype(), DType::kBF16);
}

INSTANTIATE_TEST_SUITE_P(Sets, Fp8Products, ::testing::ValuesIn(MatMulSets()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Fp8Products);

}  // namespace
}  // namespace phalanx::kernels
