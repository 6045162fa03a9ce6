// R1 and R2 at sizes where a device changes kernels, tiles and splits: a row's bits are those that
// it has alone, however many rows, columns and leaves a call holds.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

std::string SetName(const testing::TestParamInfo<KernelSet>& info) { return info.param.name; }

class InvarianceTest : public testing::TestWithParam<KernelSet> {
 protected:
  static bool is_small() { return GetParam().size == TestSize::kSmall; }
  template <typename T>
  static std::vector<T> Sized(std::vector<T> few, std::vector<T> all) {
    return is_small() ? std::move(few) : std::move(all);
  }
  std::unique_ptr<Kernels> kernels_ = GetParam().make(2);
};
INSTANTIATE_TEST_SUITE_P(Sets, InvarianceTest, testing::ValuesIn(KernelSets()), SetName);

struct Weight {
  Matrix source;
  WeightSpec spec;
};

// [n, k] of `type`, k in `leaves` leaves of about one size, joined by R2's tree.
std::unique_ptr<Weight> MakeWeight(DType type, int64_t n, int64_t k, int leaves, Random& random) {
  auto weight = std::make_unique<Weight>(Weight{Matrix::Of(type, n, k, random), {}});
  weight->spec.dtype = type;
  weight->spec.rows = {{weight->source.view().data, n, weight->source.view().stride}};
  for (int i = 0; i < leaves; ++i) {
    weight->spec.leaves.push_back({i * k / leaves / 32 * 32, (i + 1) * k / leaves / 32 * 32});
  }
  weight->spec.leaves.back().end = k;
  std::vector<int> program;
  AppendTree(0, leaves, program);
  weight->spec.parts = {program};
  return weight;
}

std::vector<float> Multiply(Kernels& kernels, const PackedWeight& w, TensorView x) {
  std::vector<float> out(x.rows * w.n());
  const TensorView view = {out.data(), DType::kF32, x.rows, w.n(), w.n()};
  kernels.MatMul(x, w, {&view, 1});
  return out;
}

// The first row where `rows` differ from `all` from `first` on, or -1.
int64_t FirstDifference(const std::vector<float>& rows, const std::vector<float>& all,
                        int64_t first, int64_t n) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::memcmp(&rows[i], &all[first * n + i], 4) != 0) return static_cast<int64_t>(i) / n;
  }
  return -1;
}

TEST_P(InvarianceTest, MatMulRowsDoNotDependOnTheNumberOfRowsOrTheirPlace) {
  Random random(31);
  struct Case {
    int64_t n, k;
    int leaves;
  };
  // Chunks that end inside a leaf, leaves of one chunk, one leaf of many, few and many columns.
  const auto cases =
      Sized<Case>({{40, 1280, 1}, {24, 2048, 8}, {17, 96, 2}},
                  {{200, 2560, 1}, {72, 4096, 8}, {300, 1792, 3}, {17, 96, 2}, {520, 1024, 5}});
  std::vector<int64_t> most;
  for (int64_t m = 1; m <= 64; ++m) most.push_back(m);
  const int64_t num_rows = is_small() ? 140 : 300;
  for (const Case& c : cases) {
    for (const DType type : kAllTypes) {
      const auto weight = MakeWeight(type, c.n, c.k, c.leaves, random);
      auto packed = kernels_->Pack(weight->spec);
      ASSERT_TRUE(packed.ok()) << packed.status();
      Matrix x = Matrix::Of(ActivationType(type), num_rows, (*packed)->k(), random);
      const std::string what =
          absl::StrCat(std::string(Name(type)), " ", c.n, " x ", c.k, ", ", c.leaves, " leaves");
      const std::vector<float> all = Multiply(*kernels_, **packed, x.view());
      for (const int64_t m : Sized<int64_t>({1, 2, 8, 9, 16, 17, 31, 33, 64}, most)) {
        const int64_t first = m * 7 % (num_rows - m);
        const auto rows = Multiply(*kernels_, **packed, RowsOf(x.view(), first, m));
        ASSERT_EQ(FirstDifference(rows, all, first, c.n), -1)
            << what << ": rows " << first << " + " << m << " of " << num_rows;
      }
      for (const int64_t m : Sized<int64_t>({65, 129}, {65, 100, 127, 128, 129, 200, 257})) {
        const auto rows = Multiply(*kernels_, **packed, RowsOf(x.view(), num_rows - m, m));
        ASSERT_EQ(FirstDifference(rows, all, num_rows - m, c.n), -1) << what << ": the last " << m;
      }
    }
  }
}

TEST_P(InvarianceTest, MatMulColumnsDoNotDependOnWhichColumnsARankHolds) {
  Random random(32);
  for (const DType type : kAllTypes) {
    const auto weight = MakeWeight(type, 400, 1536, 2, random);
    auto packed = kernels_->Pack(weight->spec);
    ASSERT_TRUE(packed.ok()) << packed.status();
    for (const int64_t m : Sized<int64_t>({1, 9, 40}, {1, 9, 40, 150})) {
      Matrix x = Matrix::Of(ActivationType(type), m, (*packed)->k(), random);
      const std::vector<float> all = Multiply(*kernels_, **packed, x.view());
      using Columns = std::pair<int64_t, int64_t>;
      for (const auto& [first, count] :
           Sized<Columns>({{13, 5}, {37, 100}, {399, 1}},
                          {{0, 400}, {1, 399}, {13, 5}, {130, 128}, {37, 200}, {399, 1}})) {
        WeightSpec some = weight->spec;
        some.rows[0].data = static_cast<const char*>(some.rows[0].data) +
                            first * some.rows[0].stride * SizeOf(type);
        some.rows[0].rows = count;
        auto part = kernels_->Pack(some);
        ASSERT_TRUE(part.ok()) << part.status();
        const std::vector<float> columns = Multiply(*kernels_, **part, x.view());
        for (int64_t r = 0; r < m; ++r) {
          ASSERT_EQ(std::memcmp(&columns[r * count], &all[r * 400 + first], count * 4), 0)
              << Name(type) << ", " << m << " rows, columns " << first << " + " << count;
        }
      }
    }
  }
}

// Each rank has a run of leaves and makes whole subtrees of it; their sums meet in F32.
TEST_P(InvarianceTest, MatMulLeavesOnSeveralRanksGiveTheBitsOfOne) {
  Random random(33);
  for (const DType type : kAllTypes) {
    const auto weight = MakeWeight(type, 150, 8 * 640, 8, random);
    auto whole = kernels_->Pack(weight->spec);
    ASSERT_TRUE(whole.ok()) << whole.status();
    for (const int64_t m : Sized<int64_t>({8, 33}, {1, 8, 33, 140})) {
      Matrix x = Matrix::Of(ActivationType(type), m, (*whole)->k(), random);
      const std::vector<float> expected = Multiply(*kernels_, **whole, x.view());
      // Two ranks of four leaves; and three of three, three and two, whose subtrees are {0, 1},
      // {2}; {3}, {4, 5}; {6, 7}.
      std::vector<std::vector<float>> sums;
      const auto add = [&](int first, int last, std::vector<std::vector<int>> parts) {
        WeightSpec some = weight->spec;
        some.leaves.assign(weight->spec.leaves.begin() + first, weight->spec.leaves.begin() + last);
        some.parts = parts;
        auto packed = kernels_->Pack(some);
        ASSERT_TRUE(packed.ok()) << packed.status();
        TensorView mine = x.view();
        mine.data = static_cast<char*>(mine.data) + first * 640 * SizeOf(mine.dtype);
        mine.cols = (*packed)->k();
        std::vector<TensorView> outs;
        const size_t begin = sums.size();
        for (size_t p = 0; p < parts.size(); ++p) sums.emplace_back(m * 150);
        for (size_t p = 0; p < parts.size(); ++p) {
          outs.push_back({sums[begin + p].data(), DType::kF32, m, 150, 150});
        }
        kernels_->MatMul(mine, **packed, outs);
      };
      const auto plus = [](const std::vector<float>& a, const std::vector<float>& b) {
        std::vector<float> out(a.size());
        for (size_t i = 0; i < a.size(); ++i) out[i] = a[i] + b[i];
        return out;
      };
      const std::string what = absl::StrCat(std::string(Name(type)), ", ", m, " rows");
      add(0, 4, {{0, 1, -1, 2, 3, -1, -1}});
      add(4, 8, {{0, 1, -1, 2, 3, -1, -1}});
      EXPECT_EQ(FirstDifference(plus(sums[0], sums[1]), expected, 0, 150), -1) << what;
      sums.clear();
      add(0, 3, {{0, 1, -1}, {2}});
      add(3, 6, {{0}, {1, 2, -1}});
      add(6, 8, {{0, 1, -1}});
      const auto left = plus(sums[0], plus(sums[1], sums[2]));
      EXPECT_EQ(FirstDifference(plus(left, plus(sums[3], sums[4])), expected, 0, 150), -1) << what;
    }
  }
}

// Rows of one sequence, in one call and one by one, for group sizes and head widths that change
// tiles; contexts of several rounds of every stripe. The last row among others, too: a call that
// fills the device may have another kernel than one that doesn't.
TEST_P(InvarianceTest, AttentionOfARowIsTheSameInPrefillAndDecode) {
  struct Case {
    int64_t heads, kv_heads, dim, window;
  };
  for (const Case& c : {Case{8, 2, 64, 0}, Case{4, 4, 128, 0}, Case{16, 1, 80, 0},
                        Case{5, 1, 256, 0}, Case{8, 2, 64, 500}}) {
    for (const DType type : kAllTypes) {
      Shape shape;
      shape.type = type;
      shape.heads = c.heads;
      shape.kv_heads = c.kv_heads;
      shape.dim = c.dim;
      shape.window = c.window;
      const bool small = is_small();
      if (small && type != DType::kBF16 && c.dim != 64) continue;
      // Several rounds of eight blocks of every stripe.
      const int64_t num_tokens = small ? 650 : 2400;
      if (small) shape.stripes = 2;
      const Layer layer(shape);
      const int64_t last = small ? 35 : 70;
      const int64_t num_blocks = (num_tokens + 31) / 32;
      const std::vector<int32_t> table = ShuffledBlocks(num_blocks, 3);
      Cache cache(*kernels_, layer.kv(), num_blocks);
      Random random(34);
      Matrix qkv = Matrix::Of(DType::kF32, num_tokens, layer.Cols(), random);
      std::vector<int32_t> positions, slots;
      for (int32_t p = 0; p < num_tokens; ++p) {
        positions.push_back(p);
        slots.push_back(table[p / 32] * 32 + p % 32);
      }
      const int64_t q_cols = shape.heads * RoundUp(shape.dim, kDotGroup);
      Matrix q(Activation(shape), num_tokens, q_cols);
      kernels_->QkvToCache(layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view()));
      const auto attend = [&](int64_t first, int64_t count) {
        Matrix out(Activation(shape), count, layer.OutCols(), 0);
        const std::vector<AttentionSequence> sequences = {{0, count, first, table.data()}};
        kernels_->Attention(
            layer.Attention(RowsOf(q.view(), first, count), cache.view(), sequences, out.view()));
        return out;
      };
      const int64_t first = num_tokens - last;
      const Matrix together = attend(first, last);
      for (const int64_t count : Sized<int64_t>({1, 6, 33}, {1, 2, 3, 5, 8, 33})) {
        for (int64_t at = 0; at + count <= last; at += count == 1 && last > 35 ? 3 : 29) {
          const Matrix some = attend(first + at, count);
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t j = 0; j < layer.OutCols(); ++j) {
              ASSERT_EQ(some.Get(r, j), together.Get(at + r, j))
                  << Describe(shape) << ", " << count << " rows at " << first + at << ", row " << r
                  << ", column " << j;
            }
          }
        }
      }
      const int64_t copies = small ? 3 : 40;
      Matrix same_q(Activation(shape), copies, q_cols);
      std::vector<AttentionSequence> sequences;
      for (int64_t s = 0; s < copies; ++s) {
        for (int64_t j = 0; j < q_cols; ++j) same_q.Set(s, j, q.Get(num_tokens - 1, j));
        sequences.push_back({s, 1, num_tokens - 1, table.data()});
      }
      Matrix out(Activation(shape), copies, layer.OutCols(), 0);
      kernels_->Attention(layer.Attention(same_q.view(), cache.view(), sequences, out.view()));
      for (int64_t s = 0; s < copies; ++s) {
        for (int64_t j = 0; j < layer.OutCols(); ++j) {
          ASSERT_EQ(out.Get(s, j), together.Get(last - 1, j))
              << Describe(shape) << ", " << s << " of " << copies << ", column " << j;
        }
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
