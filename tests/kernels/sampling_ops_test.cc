// Log-sum-exp leaves and Gumbel sampling: by bits against the reference, and by statistics.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "kernels/scalar_math.h"
#include "tests/kernels/ops_testing.h"

// One lane of Philox, for its published test vectors.
namespace phalanx::kernels::cpu {
namespace {
template <typename V, typename S>
V Splat(S value) {
  return static_cast<V>(value);
}
inline uint32_t MulHigh(uint32_t x, uint32_t m) {
  return static_cast<uint32_t>((uint64_t{x} * m) >> 32);
}
inline uint32_t MulLow(uint32_t x, uint32_t m) { return x * m; }
inline uint32_t Xor(uint32_t x, uint32_t y) { return x ^ y; }
}  // namespace
}  // namespace phalanx::kernels::cpu

#include "kernels/cpu/philox.h"

namespace phalanx::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void ExpectPhilox(const uint32_t (&counter)[4], uint32_t key0, uint32_t key1,
                  const uint32_t (&expected)[4]) {
  const cpu::PhiloxWords<uint32_t> in = {{counter[0], counter[1], counter[2], counter[3]}};
  const cpu::PhiloxWords<uint32_t> out = cpu::Philox4x32(in, key0, key1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(out.word[i], expected[i]) << "word " << i;
}

// The vectors of Random123's kat_vectors for philox4x32-10.
TEST(Philox, GivesThePublishedVectors) {
  ExpectPhilox({0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  ExpectPhilox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff,
               {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  ExpectPhilox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Gumbel, IsTheNoiseOfItsCounterInDouble) {
  double worst = 0;
  float least = kInfinity, most = -kInfinity;
  for (uint32_t i = 0; i < 300000; ++i) {
    const GumbelKey key{0x0123456789abcdefu + i / 1000, i % 77, i % 3, i % 2};
    const cpu::PhiloxWords<uint32_t> counter = {{key.position, key.sample, i, key.purpose}};
    const uint32_t w = cpu::Philox4x32(counter, static_cast<uint32_t>(key.seed),
                                       static_cast<uint32_t>(key.seed >> 32))
                           .word[0];
    const long double u = (static_cast<long double>(w) + 0.5L) / 4294967296.0L;
    // ln(u) as ln1p(u - 1): exact enough near one.
    const auto exact = static_cast<double>(-std::log(-std::log1p(u - 1.0L)));
    const float value = Gumbel(key, i);
    worst = std::max(worst, std::abs(value - exact) / std::max(1.0, std::abs(exact)));
    least = std::min(least, value);
    most = std::max(most, value);
  }
  EXPECT_LT(worst, 4e-7);
  EXPECT_GT(least, -3.14f);
  EXPECT_LT(most, 22.88f);
}

TEST(Gumbel, DependsOnEveryPartOfTheCounter) {
  const GumbelKey key{1, 2, 3, 4};
  const float value = Gumbel(key, 5);
  EXPECT_EQ(Bits(Gumbel(key, 5)), Bits(value));
  EXPECT_NE(Gumbel(key, 6), value);
  EXPECT_NE(Gumbel({9, 2, 3, 4}, 5), value);
  EXPECT_NE(Gumbel({1 + (uint64_t{1} << 32), 2, 3, 4}, 5), value);
  EXPECT_NE(Gumbel({1, 9, 3, 4}, 5), value);
  EXPECT_NE(Gumbel({1, 2, 9, 4}, 5), value);
  EXPECT_NE(Gumbel({1, 2, 3, 9}, 5), value);
}

TEST(LogSumExpLeaves, EqualsReference) {
  Random random(11);
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix logits = Matrix::Of(DType::kF32, 3, 5003, random, 8.0f);
    logits.Set(0, 100, kNan);
    for (int64_t j = 700; j < 800; ++j) logits.Set(1, j, -kInfinity);
    logits.Set(2, 4990, kInfinity);
    const std::vector<std::pair<int64_t, int64_t>> leaves = {
        {0, 32}, {32, 33}, {33, 33}, {33, 700}, {700, 800}, {800, 4096}, {4096, 5003}};
    std::vector<MaxSum> expected(3 * leaves.size()), out(3 * leaves.size());
    reference::LogSumExpLeaves(logits.view(), leaves, absl::MakeSpan(expected));
    kernels->LogSumExpLeaves(logits.view(), leaves, absl::MakeSpan(out));
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(Bits(out[i].max), Bits(expected[i].max)) << name << " " << i;
      if (std::isnan(expected[i].sum)) {
        EXPECT_TRUE(std::isnan(out[i].sum)) << name << " " << i;
      } else {
        EXPECT_EQ(Bits(out[i].sum), Bits(expected[i].sum)) << name << " " << i;
      }
    }
    EXPECT_EQ(out[2].max, -kInfinity) << "an empty leaf";
    EXPECT_EQ(out[2].sum, 0.0f);
    EXPECT_EQ(out[leaves.size() + 4].max, -kInfinity) << "a leaf of -inf";
    EXPECT_EQ(out[leaves.size() + 4].sum, 0.0f);
    double exact = 0;
    for (int64_t j = 4096; j < 5003; ++j) exact += std::exp(double{logits.Get(0, j)} - out[6].max);
    EXPECT_NEAR(out[6].sum / exact, 1.0, 1e-6);
  }
}

TensorView RowOf(const std::vector<float>& logits) {
  const auto n = static_cast<int64_t>(logits.size());
  return {const_cast<float*>(logits.data()), DType::kF32, 1, n, n};
}

Choice ChooseOne(Kernels& kernels, const std::vector<float>& logits, const ChoiceRow& row) {
  Choice choice;
  kernels.ChooseRows(RowOf(logits), {&row, 1}, &choice);
  return choice;
}

void ExpectSameChoice(const std::vector<NamedKernels>& all, const std::vector<float>& logits,
                      const ChoiceRow& row) {
  const Choice expected = reference::ChooseRow(RowOf(logits), row);
  for (const auto& [name, kernels] : all) {
    const Choice choice = ChooseOne(*kernels, logits, row);
    const std::string what = name + ", " + std::to_string(logits.size()) + " logits, temperature " +
                             std::to_string(row.temperature) + ", top_k " +
                             std::to_string(row.top_k) + ", top_p " + std::to_string(row.top_p) +
                             ", min_p " + std::to_string(row.min_p);
    EXPECT_EQ(choice.id, expected.id) << what;
    EXPECT_EQ(Bits(choice.value), Bits(expected.value)) << what;
  }
}

TEST(ChooseRows, EqualsReference) {
  Random random(12);
  const std::vector<NamedKernels> all = AllKernels();
  for (const int64_t n : {1, 5, 16, 17, 333, 8191, 8192, 8193, 30001}) {
    const std::vector<float> logits = random.Floats(n, 3.0f);
    for (uint32_t position = 0; position < 5; ++position) {
      ChoiceRow row;
      row.key = {77, position, 2, 0};
      ExpectSameChoice(all, logits, row);
      row.temperature = 0.8f;
      ExpectSameChoice(all, logits, row);
    }
  }
}

// Rows with ties, NaN and infinities in them, and every mixture of cuts.
TEST(ChooseRows, CutsAsTheReferenceDoes) {
  Random random(14);
  const std::vector<NamedKernels> all = AllKernels();
  for (const int64_t n : Sized<int64_t>({1, 40, 777, 3001}, {1, 2, 40, 777, 5000, 32001})) {
    for (int turn = 0; turn < 24; ++turn) {
      std::vector<float> logits = random.Floats(n, turn % 3 == 0 ? 0.5f : 4.0f);
      for (float& x : logits) {
        if (turn % 4 == 1) x = std::round(x);
        if (turn % 4 == 2) x = -std::abs(x);
        if (turn % 6 == 3 && random.Below(5) == 0) x = kNan;
        if (turn % 6 == 4 && random.Below(3) == 0) x = -kInfinity;
        if (turn % 12 == 5) x = random.Below(2) == 0 ? 0.0f : -0.0f;
        if (turn % 12 == 7) x = random.Below(2) == 0 ? 1e-40f : 0.0f;
      }
      ChoiceRow row;
      row.temperature = turn % 5 == 0 ? 1.0f : 0.3f + 0.2f * static_cast<float>(turn % 7);
      if (random.Below(2) == 0) row.top_k = static_cast<int32_t>(1 + random.Below(n + 3));
      if (random.Below(2) == 0) row.top_p = 0.0313f + 0.1171f * static_cast<float>(turn % 9);
      if (random.Below(3) == 0) row.min_p = 0.0137f + 0.1931f * static_cast<float>(turn % 5);
      for (uint32_t sample = 0; sample < 4; ++sample) {
        row.key = {1234, static_cast<uint32_t>(turn), sample, 0};
        ExpectSameChoice(all, logits, row);
      }
    }
  }
}

// Shares of nearly 2^32 units each, many of which are added in one place.
TEST(ChooseRows, CutsManySmallSharesAsTheReferenceDoes) {
  Random random(15);
  const std::vector<NamedKernels> all = AllKernels();
  std::vector<float> logits = random.Floats(9001, 0.01f);
  logits[4321] = 5.6f;
  for (const int32_t top_k : {0, 8999}) {
    for (uint32_t position = 0; position < 12; ++position) {
      ChoiceRow row;
      row.temperature = 1.0f;
      row.top_k = top_k;
      row.top_p = 0.6f;
      row.key = {4, position, 0, 0};
      ExpectSameChoice(all, logits, row);
    }
  }
}

// More rows than are cut side by side, of lengths that several blocks share.
TEST(ChooseRows, CutsEachOfManyRowsAsTheReferenceDoes) {
  Random random(16);
  constexpr int64_t kRows = 70, kColumns = 5000;
  const std::vector<float> logits = random.Floats(kRows * kColumns, 2.0f);
  const TensorView view = {const_cast<float*>(logits.data()), DType::kF32, kRows, kColumns,
                           kColumns};
  std::vector<ChoiceRow> rows(kRows);
  for (int64_t i = 0; i < kRows; ++i) {
    rows[i].row = kRows - 1 - i;
    rows[i].temperature = 0.7f;
    if (i % 2 == 0) rows[i].top_k = static_cast<int32_t>(1 + i);
    if (i % 3 != 0) rows[i].top_p = 0.05f + 0.012f * static_cast<float>(i);
    if (i % 7 == 0) rows[i].min_p = 0.01f;
    rows[i].key = {8, static_cast<uint32_t>(i), 0, 0};
  }
  for (const auto& [name, kernels] : AllKernels()) {
    std::vector<Choice> out(kRows);
    kernels->ChooseRows(view, rows, out.data());
    for (int64_t i = 0; i < kRows; ++i) {
      const Choice expected = reference::ChooseRow(view, rows[i]);
      EXPECT_EQ(out[i].id, expected.id) << name << ", row " << i;
      EXPECT_EQ(Bits(out[i].value), Bits(expected.value)) << name << ", row " << i;
    }
  }
}

// All that may be chosen is chosen by some key, and nothing else.
TEST(ChooseRows, ACutLeavesTheFirstOfTheOrder) {
  constexpr int kDraws = 96;
  struct Case {
    int32_t top_k;
    float top_p;
    float min_p;
    std::vector<int32_t> left;
  };
  // In order: 5, 2, 4, 9, then the rest tie. Weights at temperature 2, of the best: 1, 0.368,
  // 0.368, 0.135, six times 0.050; together 2.17.
  const std::vector<float> logits = {0, 0, 4, 0, 4, 6, 0, 0, 0, 2};
  const std::vector<Case> cases = {
      {1, 1.0f, 0.0f, {5}},     {2, 1.0f, 0.0f, {2, 5}},        {6, 1.0f, 0.0f, {0, 1, 2, 4, 5, 9}},
      {0, 0.40f, 0.0f, {5}},    {0, 0.60f, 0.0f, {2, 5}},       {0, 0.875f, 0.0f, {0, 2, 4, 5, 9}},
      {3, 0.60f, 0.0f, {2, 5}},  // 1.368 of 1.736
      {3, 0.50f, 0.0f, {5}},    {0, 1.0f, 0.30f, {2, 4, 5}},    {2, 1.0f, 0.30f, {2, 5}},
      {7, 1.0f, 0.99f, {5}},    {0, 0.95f, 0.1f, {2, 4, 5, 9}},
  };
  for (const auto& [name, kernels] : AllKernels()) {
    for (const Case& c : cases) {
      std::vector<ChoiceRow> rows(kDraws);
      for (int i = 0; i < kDraws; ++i) {
        rows[i] = {0, 2.0f, c.top_k, c.top_p, c.min_p, {99, static_cast<uint32_t>(i), 0, 0}};
      }
      std::vector<Choice> out(kDraws);
      kernels->ChooseRows(RowOf(logits), rows, out.data());
      std::set<int32_t> seen;
      for (const Choice& choice : out) seen.insert(choice.id);
      EXPECT_EQ(seen, std::set<int32_t>(c.left.begin(), c.left.end()))
          << name << ", top_k " << c.top_k << ", top_p " << c.top_p << ", min_p " << c.min_p;
    }
  }
}

TEST(ChooseRows, TiesGoToTheLowerIdAndNanNeverWins) {
  const std::vector<NamedKernels> all = AllKernels();
  // All equal: noise decides, NaN still never wins.
  std::vector<float> equal(20000, 1.0f);
  equal[0] = equal[777] = kNan;
  for (uint32_t position = 0; position < 20; ++position) {
    ChoiceRow row;
    row.temperature = 50;
    row.key = {5, position, 0, 0};
    ExpectSameChoice(all, equal, row);
  }
  for (const auto& [name, kernels] : all) {
    std::vector<float> logits(20000, 1.0f);
    const ChoiceRow greedy;
    EXPECT_EQ(ChooseOne(*kernels, logits, greedy).id, 0) << name;
    logits[0] = kNan;
    EXPECT_EQ(ChooseOne(*kernels, logits, greedy).id, 1) << name;
    logits[19999] = 2.0f;
    logits[123] = 2.0f;
    logits[122] = -kNan;
    EXPECT_EQ(ChooseOne(*kernels, logits, greedy).id, 123) << name;
    ChoiceRow drawn;
    drawn.temperature = 1;
    ChoiceRow cut = drawn;
    cut.top_p = 0.5f;
    cut.top_k = 3;
    cut.min_p = 0.2f;
    const std::vector<float> nothing(100, -kInfinity), nans(33, kNan);
    for (const ChoiceRow& row : {greedy, drawn, cut}) {
      EXPECT_EQ(ChooseOne(*kernels, nothing, row).id, -1) << name;
      EXPECT_EQ(ChooseOne(*kernels, nans, row).id, -1) << name;
    }
  }
}

TEST(ChooseRows, EqualsRowByRow) {
  Random random(13);
  for (const int64_t cols : {1, 33, 5000}) {
    Matrix logits = Matrix::Of(DType::kF32, 5, cols, random, 3.0f);
    std::vector<ChoiceRow> rows;
    for (const int64_t row : {4, 0, 2, 2, 2, 3, 3}) {
      const auto i = static_cast<uint32_t>(rows.size());
      ChoiceRow& choice = rows.emplace_back();
      choice.row = row;
      choice.temperature = i % 3 == 0 ? 0.0f : 0.8f;
      if (i == 2 || i == 5) choice.top_p = 0.7f;
      if (i >= 3) choice.top_k = 4;
      choice.key = {9, 40 + i, i % 2, 0};
    }
    for (const auto& [name, kernels] : AllKernels()) {
      std::vector<Choice> out(rows.size());
      kernels->ChooseRows(logits.view(), rows, out.data());
      for (size_t i = 0; i < rows.size(); ++i) {
        const Choice expected = reference::ChooseRow(logits.view(), rows[i]);
        EXPECT_EQ(out[i].id, expected.id) << name << ", request " << i << " of " << cols;
        EXPECT_EQ(Bits(out[i].value), Bits(expected.value)) << name << ", request " << i;
      }
      kernels->ChooseRows(logits.view(), {}, nullptr);
    }
  }
}

TEST(EditLogits, EqualsReferenceAndLeavesTheRest) {
  Random random(15);
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix out = Matrix::Of(DType::kF32, 3, 700, random, 3.0f);
    Matrix expected = out;
    std::vector<LogitEdit> edits;
    for (int32_t i = 0; i < 400; ++i) {
      LogitEdit& edit = edits.emplace_back();
      edit.row = i % 2 == 0 ? 0 : 2;
      edit.id = i;
      if (i % 3 == 0) edit.bias = random.Normal(5);
      if (i % 5 < 2) edit.repetition = 0.4f + 0.3f * static_cast<float>(i % 7);
      if (i % 4 == 1) edit.frequency = random.Normal();
      if (i % 4 == 2) edit.presence = random.Normal();
      edit.suppressed = i % 11 == 0;
    }
    reference::EditLogits(expected.view(), edits);
    kernels->EditLogits(out.view(), edits);
    EXPECT_EQ(out.Difference(expected), "") << name;
    EXPECT_EQ(out.Get(0, 0), -kInfinity) << name;
  }
}

// Chi-square of the drawn ids against softmax(logits / T), for fixed seeds.
TEST(ChooseRows, DrawsFromTheSoftmax) {
  const auto kernels = CreateCpuKernels({});
  ASSERT_TRUE(kernels.ok());
  constexpr int kIds = 24, kDraws = 60000;
  constexpr float kTemperature = 0.7f;
  std::vector<float> logits(kIds);
  for (int i = 0; i < kIds; ++i) logits[i] = 1.5f * std::sin(2.3f * static_cast<float>(i));
  double total = 0;
  std::vector<double> probability(kIds);
  for (int i = 0; i < kIds; ++i) total += probability[i] = std::exp(logits[i] / kTemperature);
  for (const uint64_t seed : {uint64_t{1}, uint64_t{42}, uint64_t{0xfeedfacecafebeef}}) {
    std::vector<int> counts(kIds, 0);
    int repeats = 0, previous = -1;
    double repeat_probability = 0;
    for (int i = 0; i < kIds; ++i) repeat_probability += std::pow(probability[i] / total, 2);
    for (uint32_t position = 0; position < kDraws; ++position) {
      ChoiceRow row;
      row.temperature = kTemperature;
      row.key = {seed, position, 0, 0};
      const int id = ChooseOne(**kernels, logits, row).id;
      ++counts[id];
      repeats += id == previous ? 1 : 0;
      previous = id;
    }
    double chi_square = 0;
    for (int i = 0; i < kIds; ++i) {
      const double expected = kDraws * probability[i] / total;
      chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    // 23 degrees of freedom: 99.9% lie below 49.7.
    EXPECT_LT(chi_square, 49.7) << "seed " << seed;
    EXPECT_GT(chi_square, 7.5) << "seed " << seed << ": too even to be random";
    // Neighbouring positions are independent: repeats within four standard deviations.
    const double deviation = std::sqrt(kDraws * repeat_probability * (1.0 - repeat_probability));
    EXPECT_NEAR(repeats, kDraws * repeat_probability, 4.0 * deviation) << "seed " << seed;
  }
}

}  // namespace
}  // namespace phalanx::kernels
