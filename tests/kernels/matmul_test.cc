// Every device's and path's MatMul against the plain reference, bit by bit (rules R1 and R2); BF16
// on a device that adds in an order of its own, and what a library adds: within an error bound of
// the sum in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/half.h"
#include "kernels/cpu/reference_matmul.h"
#include "kernels/float16.h"
#include "kernels/kernels.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {
namespace {

enum class Values { kOrdinary, kWild };

// Finite bits of `dtype`. Wild values cover denormals, both zeros and magnitudes whose products
// overflow or underflow.
class ValueMaker {
 public:
  ValueMaker(uint64_t seed, Values values) : random_(seed), values_(values) {}

  uint32_t Make(DType dtype) {
    if (values_ == Values::kOrdinary) {
      const float value = static_cast<float>(static_cast<int32_t>(random_() % 2001) - 1000) / 512;
      return Narrow(dtype, value);
    }
    const uint32_t sign = random_() & 1;
    const int mantissa_bits = dtype == DType::kF32 ? 23 : dtype == DType::kBF16 ? 7 : 10;
    const uint32_t most = dtype == DType::kF16 ? 30 : 254;
    uint32_t exponent = 0;
    uint32_t mantissa = random_() & ((1u << mantissa_bits) - 1);
    switch (random_() % 8) {
      case 0:  // zero
        mantissa = 0;
        break;
      case 1:  // denormal
        break;
      case 2:  // the least normal numbers
        exponent = 1 + random_() % 3;
        break;
      case 3:  // products near the least normal number of F32
        exponent = dtype == DType::kF16 ? 1 + random_() % 10 : 60 + random_() % 8;
        break;
      case 4:  // large, but no sum of a few hundred products overflows
        exponent = dtype == DType::kF16 ? most - random_() % 4 : 180 - random_() % 8;
        break;
      default:
        exponent = (dtype == DType::kF16 ? 15 : 127) - 3 + random_() % 6;
    }
    return ((sign << (dtype == DType::kF16 ? 5 : 8) | exponent) << mantissa_bits) | mantissa;
  }

 private:
  static uint32_t Narrow(DType dtype, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == DType::kF32) return bits;
    if (dtype == DType::kBF16) return bits >> 16;
    if (value == 0) return bits >> 16;
    // Truncation to F16; |value| is 0 or within its normal range.
    const uint32_t exponent = (bits >> 23 & 255) - 112;
    return bits >> 31 << 15 | exponent << 10 | (bits >> 13 & 1023);
  }

  std::mt19937_64 random_;
  Values values_;
};

// A row-major matrix of one dtype, with slack between its rows.
struct Matrix {
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  std::vector<char> bytes;

  Matrix(DType type, int64_t r, int64_t c, int64_t slack = 0)
      : dtype(type), rows(r), cols(c), stride(c + slack), bytes(r * (c + slack) * SizeOf(type)) {}

  void Set(int64_t row, int64_t col, uint32_t bits) {
    std::memcpy(&bytes[(row * stride + col) * SizeOf(dtype)], &bits, SizeOf(dtype));
  }
  TensorView View() { return {bytes.data(), dtype, rows, cols, stride}; }
  float Value(int64_t row, int64_t col) const {
    const char* at = &bytes[(row * stride + col) * SizeOf(dtype)];
    if (dtype == DType::kF32) {
      float value;
      std::memcpy(&value, at, 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return dtype == DType::kBF16 ? cpu::WidenBf16(bits) : F16ToF32(bits);
  }
};

struct Case {
  DType dtype = DType::kBF16;
  int64_t m = 1;
  std::vector<int64_t> row_blocks = {16};  // rows of each stacked source
  std::vector<KLeaf> leaves = {{0, 32}};
  std::vector<std::vector<int>> parts = {{0}};
  Values values = Values::kOrdinary;
  uint64_t seed = 1;
};

// The inputs of a case and the reference's output.
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c) {
    ValueMaker values(c.seed, c.values);
    int64_t source_cols = 0;
    int64_t k = 0;
    for (const KLeaf& leaf : c.leaves) {
      source_cols = std::max(source_cols, leaf.end);
      k += leaf.padded();
    }
    spec_.dtype = c.dtype;
    spec_.leaves = c.leaves;
    spec_.parts = c.parts;
    for (const int64_t rows : c.row_blocks) {
      Matrix& source = sources_.emplace_back(c.dtype, rows, source_cols, 3);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < source.stride; ++j) {
          if (j < source_cols) source.Set(r, j, values.Make(c.dtype));
        }
      }
      n_ += rows;
    }
    for (Matrix& source : sources_) {
      spec_.rows.push_back({source.bytes.data(), source.rows, source.stride});
    }
    x_ = std::make_unique<Matrix>(ActivationType(c.dtype), c.m, k, 5);
    for (int64_t r = 0; r < c.m; ++r) {
      int64_t column = 0;
      for (const KLeaf& leaf : c.leaves) {
        for (int64_t j = leaf.begin; j < leaf.end; ++j, ++column) {
          x_->Set(r, column, values.Make(x_->dtype));
        }
        column += leaf.padded() - (leaf.end - leaf.begin);
      }
    }
    for (size_t p = 0; p < c.parts.size(); ++p) expected_.emplace_back(DType::kF32, c.m, n_);
    std::vector<TensorView> views;
    for (Matrix& out : expected_) views.push_back(out.View());
    ReferenceMatMul(x_->View(), spec_, views);
  }

  const WeightSpec& spec() const { return spec_; }
  Matrix& x() { return *x_; }
  int64_t n() const { return n_; }

  // Packs and multiplies on `kernels`, one of `set`, and compares all bits, and that nothing beyond
  // n is written.
  void Check(Kernels& kernels, const KernelSet& set) {
    const bool same_bits = HasCpuBits(case_.dtype) && set.Orders(case_.m);
    if (!same_bits) MeasureSums();
    absl::StatusOr<std::unique_ptr<PackedWeight>> weight = kernels.Pack(spec_);
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_EQ((*weight)->n(), n_);
    EXPECT_EQ((*weight)->k(), x_->cols);
    std::vector<Matrix> outs;
    for (size_t p = 0; p < expected_.size(); ++p) {
      Matrix& out = outs.emplace_back(DType::kF32, case_.m, n_, 7);
      std::memset(out.bytes.data(), 0x5A, out.bytes.size());
    }
    std::vector<TensorView> views;
    for (Matrix& out : outs) views.push_back(out.View());
    kernels.MatMul(x_->View(), **weight, views);
    for (size_t p = 0; p < outs.size(); ++p) {
      for (int64_t r = 0; r < case_.m; ++r) {
        const char* got = outs[p].bytes.data() + r * outs[p].stride * 4;
        if (same_bits) {
          ASSERT_EQ(std::memcmp(got, expected_[p].bytes.data() + r * n_ * 4, n_ * 4), 0)
              << "part " << p << ", row " << r;
        } else {
          ASSERT_NO_FATAL_FAILURE(CheckRow(static_cast<int>(p), r, got));
        }
        for (int i = 0; i < 7 * 4; ++i) ASSERT_EQ(got[n_ * 4 + i], 0x5A) << "beyond row " << r;
      }
    }
  }

 private:
  // A sum of products in double, the sum of their magnitudes and of the weights'.
  struct Sum {
    double value = 0;
    double magnitude = 0;
    double weights = 0;
  };

  // Fills sums_[part][row * n + column].
  void MeasureSums() {
    sums_.assign(case_.parts.size(), std::vector<Sum>(case_.m * n_));
    for (size_t part = 0; part < case_.parts.size(); ++part) {
      for (const int leaf : case_.parts[part]) {
        if (leaf < 0) continue;
        int64_t x_column = 0;
        for (int i = 0; i < leaf; ++i) x_column += case_.leaves[i].padded();
        const int64_t begin = case_.leaves[leaf].begin;
        const int64_t size = case_.leaves[leaf].end - begin;
        for (int64_t r = 0; r < case_.m; ++r) {
          int64_t column = 0;
          for (const Matrix& source : sources_) {
            for (int64_t row = 0; row < source.rows; ++row, ++column) {
              Sum& sum = sums_[part][r * n_ + column];
              for (int64_t k = 0; k < size; ++k) {
                const double product =
                    double{x_->Value(r, x_column + k)} * double{source.Value(row, begin + k)};
                sum.value += product;
                sum.magnitude += std::abs(product);
                sum.weights += std::abs(double{source.Value(row, begin + k)});
              }
            }
          }
        }
      }
    }
  }

  // Each addition errs by at most 2^-22 of what is summed (the matrix unit truncates; an IEEE
  // addition errs by 2^-24), and denormals may become zero. BF16 is added by k / 16 instructions
  // and some joins, F32 one by one. F16 is added as two sums, of rows that f16_terms.h rounds.
  void CheckRow(int part, int64_t row, const char* got) const {
    for (int64_t j = 0; j < n_; ++j) {
      float value;
      std::memcpy(&value, got + j * 4, 4);
      const Sum& sum = sums_[part][row * n_ + j];
      const int64_t at_once = case_.dtype == DType::kBF16 ? 16 : 1;
      const double additions = static_cast<double>(x_->cols) / static_cast<double>(at_once) + 16;
      double bound = additions * (0x1p-22 * sum.magnitude + 0x1p-126);
      if (case_.dtype == DType::kF16) {
        double most = 0;
        for (int64_t k = 0; k < x_->cols; ++k) {
          most = std::max(most, std::abs(double{x_->Value(row, k)}));
        }
        bound =
            2 * bound + 0x1p-22 * sum.magnitude + std::max(0x1p-30, 0x1p-49 * most) * sum.weights;
      }
      ASSERT_LE(std::abs(value - sum.value), bound)
          << "part " << part << ", row " << row << ", column " << j << ": " << value << " for "
          << sum.value;
    }
  }

  Case case_;
  WeightSpec spec_;
  std::vector<Matrix> sources_;
  std::unique_ptr<Matrix> x_;
  int64_t n_ = 0;
  std::vector<Matrix> expected_;
  std::vector<std::vector<Sum>> sums_;  // by part, where bits aren't the CPU's
};

std::string SetName(const testing::TestParamInfo<KernelSet>& info) { return info.param.name; }

// The tree of R2 over leaves [a, b) as a postfix program.
void AppendTree(int a, int b, std::vector<int>* program) {
  if (b - a == 1) {
    program->push_back(a);
    return;
  }
  int half = 1;
  while (half * 2 < b - a) half *= 2;
  AppendTree(a, a + half, program);
  AppendTree(a + half, b, program);
  program->push_back(-1);
}

constexpr DType kDTypes[] = {DType::kBF16, DType::kF32, DType::kF16};

class MatMulTest : public testing::TestWithParam<KernelSet> {};

TEST_P(MatMulTest, EqualsReferenceForEveryNumberOfRows) {
  std::vector<int64_t> all;
  for (int64_t m = 1; m <= 70; m += m < 34 ? 1 : 9) all.push_back(m);
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const DType dtype : kDTypes) {
    for (const int64_t m : Sized<int64_t>({1, 2, 7, 8, 9, 16, 17, 32, 33, 70}, all)) {
      SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), ", m ", m));
      Problem problem({.dtype = dtype,
                       .m = m,
                       .row_blocks = {100},
                       .leaves = {{0, 320}},
                       .seed = static_cast<uint64_t>(m)});
      problem.Check(*kernels, GetParam());
    }
  }
}

TEST_P(MatMulTest, EqualsReferenceForOddColumnsAndDepths) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  for (const DType dtype : kDTypes) {
    for (const int64_t n : Sized<int64_t>({1, 17, 64}, {1, 15, 16, 17, 33, 64, 65, 130})) {
      for (const int64_t k : Sized<int64_t>({1, 32, 257}, {1, 31, 32, 33, 63, 257, 600})) {
        for (const int64_t m : {1, 3, 20}) {
          SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), ", m ", m, ", n ", n, ", k ", k));
          Problem problem({.dtype = dtype,
                           .m = m,
                           .row_blocks = {n},
                           .leaves = {{0, k}},
                           .seed = static_cast<uint64_t>(n * 1000 + k)});
          problem.Check(*kernels, GetParam());
        }
      }
    }
  }
}

TEST_P(MatMulTest, EqualsReferenceOnDenormalsZerosAndHugeValues) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const DType dtype : kDTypes) {
    for (const int64_t m : Sized<int64_t>({1, 13, 40}, {1, 2, 5, 8, 13, 40})) {
      for (uint64_t seed = 0; seed < 4; ++seed) {
        SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), ", m ", m, ", seed ", seed));
        Problem problem({.dtype = dtype,
                         .m = m,
                         .row_blocks = {70},
                         .leaves = {{0, 96}},
                         .values = Values::kWild,
                         .seed = seed});
        problem.Check(*kernels, GetParam());
      }
    }
  }
}

TEST_P(MatMulTest, AddsUnevenAndEmptyLeavesByTheirPrograms) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  std::vector<int> tree;
  AppendTree(0, 8, &tree);
  const std::vector<KLeaf> leaves = {{0, 64},    {64, 96},   {96, 96},   {96, 400},
                                     {400, 433}, {433, 465}, {465, 465}, {465, 480}};
  // Whole, in two and three parts, and skewed as no balanced tree is.
  const std::vector<std::vector<std::vector<int>>> all_parts = {
      {tree},
      {{0, 1, -1, 2, 3, -1, -1}, {4, 5, -1, 6, 7, -1, -1}},
      {{0}, {1, 2, 3, 4, 5, 6, -1, -1, -1, -1, -1}, {7}},
      {{0, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1}},
      {{7, 6, 5, -1, -1, 4, 3, -1, 2, 1, -1, -1, 0, -1, -1}},
  };
  for (const DType dtype : kDTypes) {
    for (const auto& parts : all_parts) {
      for (const int64_t m : Sized<int64_t>({4, 35}, {1, 4, 12, 35})) {
        for (const Values values : {Values::kOrdinary, Values::kWild}) {
          SCOPED_TRACE(
              absl::StrCat(std::string(Name(dtype)), ", m ", m, ", ", parts.size(), " parts"));
          Problem problem({.dtype = dtype,
                           .m = m,
                           .row_blocks = {40, 1, 50},
                           .leaves = leaves,
                           .parts = parts,
                           .values = values});
          problem.Check(*kernels, GetParam());
        }
      }
    }
  }
}

// More leaves than a GPU's block has warps: each takes several, empty ones between them.
TEST_P(MatMulTest, AddsAsManyLeavesAsThereMayBe) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const int count : {21, 64}) {
    std::vector<int> tree;
    AppendTree(0, count, &tree);
    std::vector<KLeaf> leaves;
    int64_t end = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t size = i % 5 == 3 ? 0 : i % 3 == 0 ? 40 : 32;
      leaves.push_back({end, end + size});
      end += size;
    }
    for (const DType dtype : kDTypes) {
      for (const int64_t m : {1, 3, 20}) {
        SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), ", m ", m, ", ", count, " leaves"));
        Problem problem(
            {.dtype = dtype, .m = m, .row_blocks = {40}, .leaves = leaves, .parts = {tree}});
        problem.Check(*kernels, GetParam());
      }
    }
  }
}

TEST_P(MatMulTest, TakesLeavesFromTheMiddleOfTheSource) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(1);
  for (const DType dtype : kDTypes) {
    Problem problem({.dtype = dtype,
                     .m = 3,
                     .row_blocks = {48},
                     .leaves = {{37, 100}, {5, 37}, {150, 290}},
                     .parts = {{0, 1, -1, 2, -1}}});
    problem.Check(*kernels, GetParam());
  }
}

TEST_P(MatMulTest, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3, 7}) {
    const std::unique_ptr<Kernels> kernels = GetParam().make(threads);
    for (const DType dtype : kDTypes) {
      for (const int64_t m : {1, 9, 70}) {
        SCOPED_TRACE(absl::StrCat(threads, " threads, ", std::string(Name(dtype)), ", m ", m));
        std::vector<int> tree;
        AppendTree(0, 3, &tree);
        Problem problem({.dtype = dtype,
                         .m = m,
                         .row_blocks = {300},
                         .leaves = {{0, 96}, {96, 160}, {160, 256}},
                         .parts = {tree}});
        problem.Check(*kernels, GetParam());
      }
    }
  }
}

TEST_P(MatMulTest, CrossesTheLimitOfRowsHeldAtOnce) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const int64_t m : {511, 513, 530}) {
    Problem problem({.m = m, .row_blocks = {17}, .leaves = {{0, 40}}});
    problem.Check(*kernels, GetParam());
  }
}

// A row's bits don't depend on the rows beside it.
TEST_P(MatMulTest, RowsAreIndependent) {
  // Of products that a library adds, those that it leaves alone.
  const int64_t rows = std::min<int64_t>(41, GetParam().most_ordered_rows);
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const DType dtype : kDTypes) {
    Problem problem({.dtype = dtype,
                     .m = rows,
                     .row_blocks = {90},
                     .leaves = {{0, 288}},
                     .values = Values::kWild});
    absl::StatusOr<std::unique_ptr<PackedWeight>> weight = kernels->Pack(problem.spec());
    ASSERT_TRUE(weight.ok()) << weight.status();
    problem.Check(*kernels, GetParam());
    Matrix whole(DType::kF32, rows, problem.n());
    kernels->MatMul(problem.x().View(), **weight, {whole.View()});
    const char* expected = whole.bytes.data();
    for (const int64_t count : {1, 2, 5, 8, 17, 40}) {
      for (const int64_t first : {0, 1, 24}) {
        if (first + count > rows) continue;
        TensorView x = problem.x().View();
        x.data = static_cast<char*>(x.data) + first * x.stride * SizeOf(x.dtype);
        x.rows = count;
        Matrix out(DType::kF32, count, problem.n());
        kernels->MatMul(x, **weight, {out.View()});
        EXPECT_EQ(
            std::memcmp(out.bytes.data(), expected + first * problem.n() * 4, out.bytes.size()), 0)
            << std::string(Name(dtype)) << " rows " << first << " + " << count;
      }
    }
  }
}

// A column's bits don't depend on which columns a rank holds.
TEST_P(MatMulTest, ColumnsAreIndependent) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  for (const DType dtype : kDTypes) {
    for (const int64_t m : {1, 6, 23}) {
      if (!GetParam().Orders(m)) continue;
      Problem problem({.dtype = dtype,
                       .m = m,
                       .row_blocks = {150},
                       .leaves = {{0, 96}, {96, 201}},
                       .parts = {{0, 1, -1}},
                       .values = Values::kWild});
      problem.Check(*kernels, GetParam());
      absl::StatusOr<std::unique_ptr<PackedWeight>> all = kernels->Pack(problem.spec());
      ASSERT_TRUE(all.ok()) << all.status();
      Matrix whole(DType::kF32, m, 150);
      kernels->MatMul(problem.x().View(), **all, {whole.View()});
      for (const auto& [first, count] :
           std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {149, 1}, {7, 64}, {33, 100}}) {
        WeightSpec spec = problem.spec();
        spec.rows[0].data = static_cast<const char*>(spec.rows[0].data) +
                            first * spec.rows[0].stride * SizeOf(dtype);
        spec.rows[0].rows = count;
        absl::StatusOr<std::unique_ptr<PackedWeight>> weight = kernels->Pack(spec);
        ASSERT_TRUE(weight.ok()) << weight.status();
        Matrix out(DType::kF32, m, count);
        kernels->MatMul(problem.x().View(), **weight, {out.View()});
        for (int64_t r = 0; r < m; ++r) {
          EXPECT_EQ(std::memcmp(out.bytes.data() + r * count * 4,
                                whole.bytes.data() + (r * 150 + first) * 4, count * 4),
                    0)
              << std::string(Name(dtype)) << " columns " << first << " + " << count;
        }
      }
    }
  }
}

TEST_P(MatMulTest, RandomShapesEqualReference) {
  std::mt19937_64 random(20240229);
  const auto up_to = [&](int64_t most) { return static_cast<int64_t>(random() % (most + 1)); };
  const std::unique_ptr<Kernels> kernels = GetParam().make(3);
  for (int trial = 0; trial < (kTestSize == TestSize::kSmall ? 20 : 60); ++trial) {
    Case c;
    c.dtype = kDTypes[random() % 3];
    c.m = 1 + up_to(trial % 3 == 0 ? 60 : 10);
    c.row_blocks.clear();
    for (int64_t i = 0; i <= up_to(2); ++i) c.row_blocks.push_back(1 + up_to(120));
    c.leaves.clear();
    int64_t at = up_to(20);
    const int leaves = 1 + static_cast<int>(up_to(5));
    for (int i = 0; i < leaves; ++i) {
      const int64_t length = up_to(3) == 0 ? 0 : up_to(150);
      c.leaves.push_back({at, at + length});
      at += length;
    }
    const int cut = 1 + static_cast<int>(up_to(leaves - 1));
    c.parts.assign(1, {});
    AppendTree(0, cut, &c.parts[0]);
    if (cut < leaves) {
      c.parts.emplace_back();
      AppendTree(cut, leaves, &c.parts[1]);
    }
    c.values = random() % 2 == 0 ? Values::kOrdinary : Values::kWild;
    c.seed = random();
    SCOPED_TRACE(absl::StrCat("trial ", trial, ", ", std::string(Name(c.dtype)), ", m ", c.m));
    Problem problem(c);
    problem.Check(*kernels, GetParam());
  }
}

TEST_P(MatMulTest, RefusesNanAndInfinityNamingRowAndColumn) {
  const std::unique_ptr<Kernels> kernels = GetParam().make(2);
  struct Bits {
    DType dtype;
    uint32_t bits;
  };
  for (const Bits& bad :
       {Bits{DType::kBF16, 0x7FC0}, Bits{DType::kBF16, 0xFF80}, Bits{DType::kF16, 0xFC00},
        Bits{DType::kF16, 0x7E00}, Bits{DType::kF32, 0x7F800000}, Bits{DType::kF32, 0xFFC00001}}) {
    Matrix source(bad.dtype, 70, 100);
    source.Set(57, 98, bad.bits);
    source.Set(33, 41, bad.bits);
    source.Set(33, 77, bad.bits);
    const WeightSpec spec = {bad.dtype, {{source.bytes.data(), 70, 100}}, {{0, 100}}, {{0}}};
    const absl::Status status = kernels->Pack(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), "row 33, column 41;")) << status;
    // Outside the leaves nothing is read.
    const WeightSpec beside = {bad.dtype, {{source.bytes.data(), 70, 100}}, {{0, 40}}, {{0}}};
    EXPECT_TRUE(kernels->Pack(beside).ok());
    const WeightSpec stacked = {bad.dtype,
                                {{source.bytes.data(), 20, 100}, {source.bytes.data(), 50, 100}},
                                {{0, 100}},
                                {{0}}};
    EXPECT_TRUE(absl::StrContains(kernels->Pack(stacked).status().message(),
                                  "row 33, column 41 of stacked matrix 1;"));
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, MatMulTest, testing::ValuesIn(MatMulSets()), SetName);

TEST(HalfTest, WidensEveryF16Exactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int mantissa = static_cast<int>(bits & 1023);
    if (exponent == 31) continue;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const auto expected = static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
    const float got = cpu::WidenF16(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::memcmp(&got, &expected, 4), 0) << bits;
  }
}

}  // namespace
}  // namespace phalanx::kernels
