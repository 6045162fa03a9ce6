// Log-sum-exp leaves and Gumbel sampling: by bits against the reference, and by statistics.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
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

void ExpectSameChoice(Kernels& kernels, const std::string& name, const std::vector<float>& logits,
                      float temperature, float threshold, const GumbelKey& key) {
  const Choice expected = reference::GumbelArgmax(logits, 1000, temperature, threshold, key);
  const Choice choice = kernels.GumbelArgmax(logits, 1000, temperature, threshold, key);
  EXPECT_EQ(choice.id, expected.id) << name;
  EXPECT_EQ(Bits(choice.value), Bits(expected.value)) << name;
}

TEST(GumbelArgmax, EqualsReference) {
  Random random(12);
  const std::vector<NamedKernels> all = AllKernels();
  for (const int64_t n : {1, 5, 16, 17, 333, 8191, 8192, 8193, 30001}) {
    std::vector<float> logits = random.Floats(n, 3.0f);
    for (const auto& [name, kernels] : all) {
      for (uint32_t position = 0; position < 5; ++position) {
        const GumbelKey key{77, position, 2, 0};
        ExpectSameChoice(*kernels, name, logits, 0.0f, -kInfinity, key);
        ExpectSameChoice(*kernels, name, logits, 0.8f, -kInfinity, key);
        ExpectSameChoice(*kernels, name, logits, 1.7f, 2.0f, key);
      }
    }
  }
}

TEST(GumbelArgmax, TiesGoToTheLowerIdAndNanNeverWins) {
  for (const auto& [name, kernels] : AllKernels()) {
    std::vector<float> logits(20000, 1.0f);
    EXPECT_EQ(kernels->GumbelArgmax(logits, 7, 0.0f, -kInfinity, {}).id, 7) << name;
    logits[0] = kNan;
    EXPECT_EQ(kernels->GumbelArgmax(logits, 7, 0.0f, -kInfinity, {}).id, 8) << name;
    logits[19999] = 2.0f;
    logits[123] = 2.0f;
    logits[122] = -kNan;
    EXPECT_EQ(kernels->GumbelArgmax(logits, 7, 0.0f, -kInfinity, {}).id, 130) << name;
    // All equal: noise decides, NaN still never wins.
    for (uint32_t position = 0; position < 20; ++position) {
      const GumbelKey key{5, position, 0, 0};
      ExpectSameChoice(*kernels, name, logits, 50.0f, -kInfinity, key);
    }
    const std::vector<float> nothing(100, -kInfinity), nans(33, kNan);
    EXPECT_EQ(kernels->GumbelArgmax(nothing, 0, 0.0f, -kInfinity, {}).id, -1) << name;
    EXPECT_EQ(kernels->GumbelArgmax(nans, 0, 1.0f, -kInfinity, {}).id, -1) << name;
    EXPECT_EQ(kernels->GumbelArgmax({}, 0, 1.0f, -kInfinity, {}).id, -1) << name;
  }
}

TEST(GumbelArgmax, ShardsGiveTheWholeRowsChoice) {
  Random random(13);
  const auto kernels = KernelSets().back().make(1);
  const std::vector<float> logits = random.Floats(1003);
  for (uint32_t position = 0; position < 50; ++position) {
    const GumbelKey key{3, position, 0, 0};
    const Choice whole = kernels->GumbelArgmax(logits, 0, 1.0f, -kInfinity, key);
    Choice best{-1, -kInfinity};
    for (const auto& [begin, end] :
         {std::pair{0, 320}, std::pair{320, 672}, std::pair{672, 1003}}) {
      const absl::Span<const float> shard(logits.data() + begin, end - begin);
      const Choice choice = kernels->GumbelArgmax(shard, begin, 1.0f, -kInfinity, key);
      if (choice.value > best.value) best = choice;
    }
    EXPECT_EQ(best.id, whole.id);
    EXPECT_EQ(Bits(best.value), Bits(whole.value));
  }
}

// Chi-square of the drawn ids against softmax(logits / T), for fixed seeds.
TEST(GumbelArgmaxRows, EqualsRowByRow) {
  Random random(13);
  for (const int64_t cols : {1, 33, 5000}) {
    Matrix logits = Matrix::Of(DType::kF32, 5, cols, random, 3.0f);
    std::vector<GumbelRow> rows;
    for (const int64_t row : {4, 0, 2, 2, 2, 3}) {
      const auto i = static_cast<uint32_t>(rows.size());
      rows.push_back({row, i % 3 == 0 ? 0.0f : 0.8f, i == 4 ? 1e9f : -2.0f, {9, 40 + i, i % 2, 0}});
    }
    for (const auto& [name, kernels] : AllKernels()) {
      std::vector<Choice> out(rows.size());
      kernels->GumbelArgmaxRows(logits.view(), rows, absl::MakeSpan(out));
      for (size_t i = 0; i < rows.size(); ++i) {
        const GumbelRow& r = rows[i];
        const Choice expected = reference::GumbelArgmax(
            {logits.view().f32() + r.row * logits.view().stride, static_cast<size_t>(cols)}, 0,
            r.temperature, r.threshold, r.key);
        EXPECT_EQ(out[i].id, expected.id) << name << ", request " << i << " of " << cols;
        EXPECT_EQ(Bits(out[i].value), Bits(expected.value)) << name << ", request " << i;
      }
      EXPECT_EQ(out[4].id, -1) << name;
      kernels->GumbelArgmaxRows(logits.view(), {}, {});
    }
  }
}

TEST(GumbelArgmax, DrawsFromTheSoftmax) {
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
      const GumbelKey key{seed, position, 0, 0};
      const int id = (*kernels)->GumbelArgmax(logits, 0, kTemperature, -kInfinity, key).id;
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
