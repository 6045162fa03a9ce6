#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/scalar_math.h"

namespace phalanx::sampling {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::unique_ptr<kernels::Kernels> MakeKernels(int threads, kernels::CpuPath path) {
  kernels::CpuOptions options;
  options.threads = threads;
  options.path = path;
  return *kernels::CreateCpuKernels(options);
}

std::unique_ptr<kernels::Kernels> MakeKernels() {
  return MakeKernels(1, kernels::AvailableCpuPaths().back());
}

// One choice from a row of the host's.
struct SampleRequest {
  const SamplingParams* params = nullptr;
  std::vector<int32_t> suppressed;
  std::vector<int32_t> history;
  int32_t prompt_length = 0;
  int32_t position = 1;
  uint32_t sample_index = 0;
};

scheduler::SequenceStep StepOf(const SampleRequest& request) {
  scheduler::SequenceStep step;
  step.token_ids = {0};
  step.start = request.position - 1;
  step.sampling = *request.params;
  step.samples = {{0, request.sample_index}};
  step.suppressed = request.suppressed;
  step.history = request.history;
  step.prompt_length = request.prompt_length;
  return step;
}

// All slots of one step, with the ids that were chosen filled in.
std::vector<scheduler::SampleResult> SampleStep(Sampler& sampler, const std::vector<float>& row,
                                                const scheduler::SequenceStep& step) {
  std::vector<float> logits = row;  // which may be changed
  const auto n = static_cast<int64_t>(row.size());
  scheduler::SequenceResult result;
  std::vector<kernels::Choice> choices(step.samples.size());
  sampler.SampleRows({logits.data(), kernels::DType::kF32, 1, n, n}, {{&step, -1, &result}},
                     choices.data());
  for (size_t i = 0; i < choices.size(); ++i) {
    if (step.sampling.logprobs >= 0) {
      EXPECT_EQ(result.samples[i].token.id, choices[i].id);
    }
    result.samples[i].token.id = choices[i].id;
  }
  return result.samples;
}

scheduler::TokenLogprobs Choose(Sampler& sampler, const std::vector<float>& row,
                                const SampleRequest& request) {
  return SampleStep(sampler, row, StepOf(request))[0].token;
}

// The allowed ids in order, by a full sort and the text of the rules.
std::vector<int32_t> AllowedIds(const std::vector<float>& row, const SamplingParams& p) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < static_cast<int32_t>(row.size()); ++i) {
    if (row[i] > -kInf) ids.push_back(i);
  }
  std::sort(ids.begin(), ids.end(),
            [&](int32_t a, int32_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
  if (p.top_k > 0 && static_cast<int64_t>(ids.size()) > p.top_k) ids.resize(p.top_k);
  const auto share = [&](int32_t id) {
    return std::exp((static_cast<double>(row[id]) - row[ids[0]]) / p.temperature);
  };
  double total = 0;
  for (const int32_t id : ids) total += share(id);
  double sum = 0;
  size_t kept = 0;
  while (kept < ids.size() && (kept == 0 || sum < p.top_p * total)) sum += share(ids[kept++]);
  if (p.top_p >= 1) kept = ids.size();
  while (kept > 1 && share(ids[kept - 1]) < p.min_p) --kept;
  ids.resize(kept);
  return ids;
}

int32_t OracleChoice(std::vector<float> row, const SamplingParams& p, const SampleRequest& r) {
  std::map<int32_t, int> seen;
  for (size_t i = 0; i < r.history.size(); ++i) {
    seen[r.history[i]] += static_cast<int32_t>(i) >= r.prompt_length;
  }
  for (const auto& [id, bias] : p.logit_bias) row[id] += bias;
  for (const auto& [id, count] : seen) {
    if (!p.has_penalties()) break;
    if (p.repetition_penalty != 1) {
      row[id] = row[id] > 0 ? row[id] / p.repetition_penalty : row[id] * p.repetition_penalty;
    }
    if (count > 0) {
      row[id] -= static_cast<float>(count) * p.frequency_penalty;
      row[id] -= p.presence_penalty;
    }
  }
  for (const int32_t id : r.suppressed) row[id] = -kInf;
  int32_t best = -1;
  float best_value = -kInf;
  for (const int32_t id : AllowedIds(row, p)) {
    const kernels::GumbelKey key{p.seed, static_cast<uint32_t>(r.position), r.sample_index, 0};
    const float value = row[id] / p.temperature + kernels::Gumbel(key, id);
    if (value > best_value || (value == best_value && id < best)) {
      best = id;
      best_value = value;
    }
  }
  return best;
}

std::vector<float> RandomRow(std::mt19937& rng, int64_t size, float spread, bool ties) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(size);
  for (float& x : row) {
    x = normal(rng);
    if (ties) x = std::round(x);
  }
  return row;
}

TEST(Sampler, GreedyTakesTheLowestIdOfTheBest) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 100, 8);
  std::vector<float> row(100, -1.0f);
  row[70] = row[33] = row[90] = 2.5f;
  SamplingParams p;
  p.temperature = 0;
  SampleRequest r;
  r.params = &p;
  EXPECT_EQ(Choose(sampler, row, r).id, 33);
  r.suppressed = {33, 90};
  EXPECT_EQ(Choose(sampler, row, r).id, 70);
}

TEST(Sampler, FindsNothingInARowWithoutNumbers) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 40, 8);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), -kInf}) {
    for (const float temperature : {0.0f, 1.0f}) {
      for (const float top_p : {1.0f, 0.5f}) {
        for (const float min_p : {0.0f, 0.1f}) {
          SamplingParams p;
          p.temperature = temperature;
          p.top_p = top_p;
          p.min_p = min_p;
          SampleRequest r;
          r.params = &p;
          EXPECT_EQ(Choose(sampler, std::vector<float>(40, value), r).id, -1);
        }
      }
    }
  }
}

TEST(Sampler, EqualsAFullSortWithTheRulesOnRandomRows) {
  auto kernels = MakeKernels();
  std::mt19937 rng(1);
  const auto random = [&](int n) { return static_cast<int>(rng() % n); };
  for (const int64_t vocab : {1, 31, 257, 3000}) {
    Sampler sampler(kernels.get(), vocab, 8);
    for (int i = 0; i < 600; ++i) {
      const std::vector<float> row =
          RandomRow(rng, vocab, random(3) == 0 ? 0.3f : 4.0f, random(2) == 0);
      SamplingParams p;
      p.temperature = random(2) == 0 ? 1.0f : 0.3f + 0.2f * static_cast<float>(random(8));
      if (random(2) == 0) p.top_k = 1 + random(60);
      if (random(2) == 0) p.top_p = 0.0313f + 0.1171f * static_cast<float>(random(8));
      if (random(3) == 0) p.min_p = 0.0137f + 0.1931f * static_cast<float>(random(4));
      if (random(4) == 0) p.repetition_penalty = 1.3f;
      if (random(4) == 0) p.frequency_penalty = 0.7f;
      if (random(4) == 0) p.presence_penalty = -0.4f;
      if (random(4) == 0) p.logit_bias = {{random(vocab), 3.5f}};
      p.seed = rng();
      std::vector<int32_t> history;
      history.reserve(20);
      for (int j = 0; j < 20; ++j) history.push_back(random(vocab));
      std::vector<int32_t> suppressed;
      if (vocab > 2 && random(3) == 0) suppressed = {random(vocab), random(vocab)};
      SampleRequest r;
      r.params = &p;
      r.history = history;
      r.prompt_length = random(21);
      r.suppressed = suppressed;
      r.position = 1 + random(1000);
      r.sample_index = random(4);
      ASSERT_EQ(Choose(sampler, row, r).id, OracleChoice(row, p, r))
          << "vocab " << vocab << " turn " << i << " k " << p.top_k << " p " << p.top_p << " min "
          << p.min_p;
    }
  }
}

// 100,000 draws from 8 ids; each share within five standard deviations.
TEST(Sampler, SamplesFollowTheSoftmax) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 8, 8);
  const std::vector<float> row = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, -2.0f, 1.5f, 0.1f};
  SamplingParams p;
  p.temperature = 1.3f;
  double total = 0;
  for (const float x : row) total += std::exp(x / p.temperature);
  constexpr int kDraws = 100000;
  std::vector<int> counts(8);
  SampleRequest r;
  r.params = &p;
  for (int i = 0; i < kDraws; ++i) {
    p.seed = i / 100;
    r.position = i % 100;
    ++counts[Choose(sampler, row, r).id];
  }
  for (int i = 0; i < 8; ++i) {
    const double share = std::exp(row[i] / p.temperature) / total;
    EXPECT_NEAR(counts[i], share * kDraws, 5 * std::sqrt(share * (1 - share) * kDraws)) << i;
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 300, 8);
  std::mt19937 rng(3);
  const std::vector<float> row = RandomRow(rng, 300, 3, false);
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x));
  SamplingParams p;
  p.temperature = 0;
  p.logprobs = 4;
  p.logit_bias = {{17, 100.0f}};
  SampleRequest r;
  r.params = &p;
  const scheduler::TokenLogprobs got = Choose(sampler, row, r);
  EXPECT_EQ(got.id, 17);
  EXPECT_NEAR(got.logprob, row[17] - std::log(sum), 1e-5);
  const std::vector<int32_t> best = AllowedIds(row, SamplingParams());
  ASSERT_EQ(got.top.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(got.top[i].id, best[i]);
    EXPECT_NEAR(got.top[i].logprob, row[best[i]] - std::log(sum), 1e-5);
  }
  p.logprobs = -1;
  EXPECT_TRUE(Choose(sampler, row, r).top.empty());
  EXPECT_EQ(Choose(sampler, row, r).logprob, 0);
  EXPECT_EQ(sampler.Logprobs(row, 17, 4), got);
}

TEST(Sampler, TopLogprobsBreakTiesByIdAndEndWithTheVocabulary) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 5, 8);
  const scheduler::TokenLogprobs got = sampler.Logprobs({{1, 2, 1, 2, 1}}, 0, 9);
  std::vector<int32_t> ids;
  for (const scheduler::RankedToken& t : got.top) ids.push_back(t.id);
  EXPECT_THAT(ids, ElementsAre(1, 3, 0, 2, 4));
  EXPECT_TRUE(sampler.Logprobs({{1, 2, 1, 2, 1}}, 0, 0).top.empty());
  // Logits that differ, logprobs that are the same number.
  const scheduler::TokenLogprobs close = sampler.Logprobs({{-1e-9f, -5, 0, 1e-9f, -5}}, 0, 4);
  ids.clear();
  for (const scheduler::RankedToken& t : close.top) {
    ids.push_back(t.id);
    if (t.id != 1) {
      EXPECT_EQ(t.logprob, close.logprob);
    }
  }
  EXPECT_THAT(ids, ElementsAre(0, 2, 3, 1));
  const scheduler::TokenLogprobs first = sampler.Logprobs({{-1e-9f, -5, 0, 1e-9f, -5}}, 0, 1);
  ASSERT_EQ(first.top.size(), 1u);
  EXPECT_EQ(first.top[0].id, 0);
}

TEST(Sampler, TopKKeepsTheLowestIdsAmongTies) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 64, 8);
  const std::vector<float> row(64, 1.0f);
  SamplingParams p;
  p.top_k = 3;
  SampleRequest r;
  r.params = &p;
  std::vector<int> counts(64);
  for (int i = 0; i < 300; ++i) {
    r.position = i;
    ++counts[Choose(sampler, row, r).id];
  }
  EXPECT_GT(counts[0], 50);
  EXPECT_GT(counts[1], 50);
  EXPECT_EQ(counts[0] + counts[1] + counts[2], 300);
}

// Every CPU path and number of threads: the same bits.
TEST(Sampler, TheMachineDoesNotChangeAnAnswer) {
  std::mt19937 rng(5);
  const int64_t vocab = 5003;
  const std::vector<float> row = RandomRow(rng, vocab, 2, false);
  std::vector<scheduler::TokenLogprobs> expected;
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    for (const int threads : {1, 3}) {
      auto kernels = MakeKernels(threads, path);
      Sampler sampler(kernels.get(), vocab, 8);
      std::vector<scheduler::TokenLogprobs> got;
      for (int i = 0; i < 40; ++i) {
        SamplingParams p;
        p.temperature = i % 4 == 0 ? 0.0f : 0.8f;
        p.top_p = i % 4 == 1 ? 0.9f : 1.0f;
        p.min_p = i % 4 == 2 ? 0.02f : 0.0f;
        p.logprobs = 5;
        p.seed = i;
        SampleRequest r;
        r.params = &p;
        r.position = i;
        got.push_back(Choose(sampler, row, r));
      }
      if (expected.empty()) expected = got;
      EXPECT_EQ(got, expected) << kernels->Describe();
    }
  }
}

TEST(Sampler, AStepGivesEachSlotItsOwnToken) {
  auto kernels = MakeKernels();
  Sampler sampler(kernels.get(), 200, 8);
  std::mt19937 rng(9);
  const std::vector<float> row = RandomRow(rng, 200, 1, false);
  scheduler::SequenceStep step;
  step.token_ids = {1, 2, 3};
  step.start = 10;
  step.sampling.seed = 4;
  for (uint32_t i = 0; i < 16; ++i) step.samples.push_back({100 + i, i});
  const std::vector<scheduler::SampleResult> got = SampleStep(sampler, row, step);
  ASSERT_EQ(got.size(), 16u);
  std::map<int32_t, int> different;
  for (uint32_t i = 0; i < 16; ++i) {
    SampleRequest r;
    r.params = &step.sampling;
    r.position = 13;
    r.sample_index = i;
    EXPECT_EQ(got[i].sequence_id, 100 + i);
    EXPECT_EQ(got[i].token, Choose(sampler, row, r));
    ++different[got[i].token.id];
  }
  EXPECT_GT(different.size(), 8u);
}

// A CPU that says its memory is the device's own, and counts the bytes that leave it.
class FarKernels : public kernels::CpuKernels {
 public:
  FarKernels() : kernels::CpuKernels(kernels::CpuOptions{}) {}
  bool host_accessible() const override { return false; }
  void CopyOut(void* host, const void* device, int64_t bytes) override {
    copied += bytes;
    kernels::CpuKernels::CopyOut(host, device, bytes);
  }
  int64_t copied = 0;
};

TEST(Sampler, RowsTogetherGiveWhatEachGivesAlone) {
  constexpr int64_t kVocab = 777;
  constexpr int64_t kStride = kVocab + 3;
  constexpr int kRows = 32;
  const auto is_target = [](int i) { return i % 8 >= 6; };
  std::mt19937 rng(21);
  std::vector<float> logits;
  std::vector<scheduler::SequenceStep> steps(kRows);
  int64_t bytes_that_leave = 0;
  int64_t slots = 0;
  for (int i = 0; i < kRows; ++i) {
    const std::vector<float> row = RandomRow(rng, kVocab, 1, i % 5 == 0);
    logits.insert(logits.end(), row.begin(), row.end());
    logits.resize((i + 1) * kStride, NAN);
    scheduler::SequenceStep& step = steps[i];
    step.sequence_id = i;
    step.token_ids.assign(1 + i % 3, 7);
    step.start = 5 * i;
    step.sampling.seed = 100 + i;
    step.sampling.temperature = i % 4 == 0 ? 0.0f : 0.9f;
    for (uint32_t slot = 0; slot < 1 + i % 2u; ++slot) step.samples.push_back({1000u + i, slot});
    switch (i % 8) {
      case 1:
        step.sampling.logprobs = 3;
        bytes_that_leave += kVocab * 4;
        if (i % 3 == 0) step.sampling.logit_bias = {{9, 4.0f}};
        break;
      case 2:
        step.sampling.top_p = 0.8f;
        break;
      case 3:
        step.suppressed = {3, 5};
        break;
      case 4:  // greedy: a cut changes nothing
        step.sampling.top_k = 4;
        break;
      case 5:
        step.sampling.logit_bias = {{9, 4.0f}};
        break;
      case 6:  // it and the next one leave together
        step.sampling.prompt_logprobs = 2;
        bytes_that_leave += (kStride + kVocab) * 4;
        break;
      case 7:
        step.sampling.prompt_logprobs = 2;
        break;
      default:
        break;
    }
    if (!is_target(i)) slots += static_cast<int64_t>(step.samples.size());
  }
  auto near = MakeKernels();
  FarKernels far;
  Sampler alone(near.get(), kVocab, 8);
  for (kernels::Kernels* kernels : {near.get(), static_cast<kernels::Kernels*>(&far)}) {
    Sampler together(kernels, kVocab, 8);
    std::vector<scheduler::SequenceResult> results(kRows);
    std::vector<LogitUse> uses;
    uses.reserve(kRows);
    for (int i = 0; i < kRows; ++i)
      uses.push_back({&steps[i], is_target(i) ? 11 : -1, &results[i]});
    std::vector<float> edited = logits;
    std::vector<kernels::Choice> choices(slots);
    together.SampleRows({edited.data(), kernels::DType::kF32, kRows, kVocab, kStride}, uses,
                        choices.data());
    const kernels::Choice* choice = choices.data();
    for (int i = 0; i < kRows; ++i) {
      for (scheduler::SampleResult& sample : results[i].samples) {
        const bool is_known = steps[i].sampling.logprobs >= 0;
        EXPECT_EQ(sample.token.id, is_known ? choice->id : -1);
        sample.token.id = (choice++)->id;
      }
      const auto begin = logits.begin() + i * kStride;
      const std::vector<float> row(begin, begin + kVocab);
      scheduler::SequenceResult expected;
      if (uses[i].target >= 0) {
        expected.prompt_logprobs = {alone.Logprobs(row, 11, 2)};
      } else {
        expected.samples = SampleStep(alone, row, steps[i]);
      }
      EXPECT_EQ(results[i], expected) << "row " << i;
    }
  }
  // Rows whose logprobs are wanted, and what was chosen.
  EXPECT_EQ(far.copied, bytes_that_leave + slots * static_cast<int64_t>(sizeof(kernels::Choice)));
}

}  // namespace
}  // namespace phalanx::sampling
