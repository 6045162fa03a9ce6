// MatMulSiluMul against MatMul and then SiluMul, bit by bit: what a device fuses changes none.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/kernels/ops_testing.h"
#include "tests/kernels/products_testing.h"

namespace phalanx::kernels {
namespace {

struct Leaves {
  std::vector<KLeaf> leaves;
  std::vector<int> program;  // of the only part
};
// One leaf of less than a chunk; eight in R2's tree, of several chunks, less than a group, and
// empty; four in an order of their own.
const std::vector<Leaves> kLeaves = {
    {{{0, 200}}, {0}},
    {{{0, 530},
      {530, 562},
      {562, 562},
      {562, 700},
      {700, 1800},
      {1800, 1824},
      {1824, 1900},
      {1900, 2444}},
     {0, 1, -1, 2, 3, -1, -1, 4, 5, -1, 6, 7, -1, -1, -1}},
    {{{0, 96}, {96, 700}, {700, 732}, {732, 800}}, {3, 1, -1, 0, 2, -1, -1}}};

class GatedMatMul : public ::testing::TestWithParam<KernelSet> {
 protected:
  // `n` gates and ups; out has `cols` columns of them.
  void Check(Kernels& kernels, const Leaves& leaves, WeightFormat format, DType type, int64_t n,
             int64_t cols, const std::vector<int64_t>& heights) {
    Random random(7);
    const int64_t source_k = leaves.leaves.back().end;
    WeightSpec spec;
    spec.dtype = type;
    spec.format = format;
    spec.leaves = leaves.leaves;
    spec.parts = {leaves.program};
    const std::vector<char> source = EncodeAs(type, random.Floats(2 * n * source_k, 0.1f));
    spec.rows = {{source.data(), 2 * n, source_k}};
    const auto weight = kernels.Pack(spec);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const std::vector<float> bias = random.Floats(2 * n);
    for (const int64_t rows : heights) {
      if (!GetParam().Orders(rows)) continue;
      Matrix x = Matrix::Of(ActivationType(type), rows, (*weight)->k(), random);
      Matrix gate_up(DType::kF32, rows, 2 * n);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        Matrix expected(ActivationType(type), rows, cols, 5);
        kernels.MatMul(x.view(), **weight, {gate_up.view()});
        kernels.SiluMul(gate_up.view(), b, n, expected.view());
        Matrix out(ActivationType(type), rows, cols, 5);
        kernels.MatMulSiluMul(x.view(), **weight, gate_up.view(), b, n, out.view());
        EXPECT_EQ(out.Difference(expected), "") << rows << " rows, " << n << " gates";
      }
    }
  }
};

TEST_P(GatedMatMul, HasTheBitsOfItsTwoHalves) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  const std::vector<int64_t> heights =
      Sized<int64_t>({1, 3, 9, 16, 17}, {1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 40});
  for (const Leaves& leaves : kLeaves) {
    for (const WeightFormat format : {WeightFormat::kPlain, WeightFormat::kF8E4M3}) {
      Check(*kernels, leaves, format, DType::kBF16, /*n=*/96, /*cols=*/96, heights);
    }
  }
}

TEST_P(GatedMatMul, TakesWidthsThatFitNoTile) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  for (const auto& [n, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 32}, {16, 16}, {16, 32}, {40, 64}, {200, 200}, {256, 256}}) {
    Check(*kernels, kLeaves[2], WeightFormat::kPlain, DType::kBF16, n, cols, {1, 16});
  }
}

TEST_P(GatedMatMul, TakesOtherTypes) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  for (const DType type : {DType::kF32, DType::kF16}) {
    Check(*kernels, kLeaves[0], WeightFormat::kPlain, type, /*n=*/48, /*cols=*/64, {1, 5});
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, GatedMatMul, ::testing::ValuesIn(MatMulSets()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace phalanx::kernels
