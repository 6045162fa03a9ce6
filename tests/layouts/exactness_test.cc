// The promise (section 1 of the design) as one matrix: whatever the threads, neighbours, chunking,
// preemption, prefix hits, samples, kernel path and tp, the same token ids and the same logprob
// bits. Every axis value is run by itself against the reference (one rank, one thread, alone), then
// a seeded sample of the cross product. The other axes of the layout: layouts_test.cc.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/layouts/engine_cell.h"

namespace phalanx::testing {
namespace {

constexpr char kDemoBf16[] = "launcher/demo-model";
constexpr char kMistralF32[] = "tests/goldens/models/mistral-full";
constexpr char kMistralF16[] = "tests/goldens/models/mistral-full-f16";
constexpr int kSampleCells = 40;

EngineCells& Cells() {
  static auto* const cells = new EngineCells();
  return *cells;
}

void Check(const Cell& cell) {
  Answer found;
  const std::string wrong = Cells().Check(cell, &found);
  EXPECT_EQ(wrong, "") << cell.Name();
  std::printf("  %-100s preemptions %d, cached %d: %s\n", cell.Name().c_str(),
              static_cast<int>(found.usage.preemptions),
              static_cast<int>(found.usage.cached_tokens), wrong.empty() ? "equal" : "DIFFERENT");
  std::fflush(stdout);
}

const std::vector<int>& Tps() {
  static const std::vector<int> tps = {1, 2, 3, 4, 5, 7, 8};
  return tps;
}

TEST(Exactness, EachAxisByItselfChangesNoBit) {
  std::vector<Cell> cells;
  const auto add = [&](const auto& change) {
    Cell cell;
    cell.model = kDemoBf16;
    change(cell);
    cells.push_back(cell);
  };
  for (const int tp : Tps()) add([&](Cell& c) { c.layout.tp = tp; });
  for (const int64_t chunk : {1, 7, 64}) {
    add([&](Cell& c) { c.chunk = chunk, c.prompt_logprobs = true; });
  }
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    for (const char* const model : {kDemoBf16, kMistralF32, kMistralF16}) {
      add([&](Cell& c) { c.path = path, c.model = model; });
    }
  }
  for (const Sampling sampling : {Sampling::kGreedy, Sampling::kSeeded, Sampling::kStopped}) {
    add([&](Cell& c) { c.sampling = sampling, c.threads = 2; });
    add([&](Cell& c) { c.sampling = sampling, c.crowd = true; });
    add([&](Cell& c) { c.sampling = sampling, c.tight = true; });
    add([&](Cell& c) { c.sampling = sampling, c.prefix = true; });
    add([&](Cell& c) { c.sampling = sampling, c.n = 4, c.layout.tp = 2; });
  }
  for (const Cell& cell : cells) Check(cell);
}

TEST(Exactness, ASeededSampleOfTheCrossProductChangesNoBit) {
  std::mt19937 rng(2026);
  const auto pick = [&](const auto& values) { return values[rng() % values.size()]; };
  for (int i = 0; i < kSampleCells; ++i) {
    Cell cell;
    cell.model = pick(std::vector<std::string>{kDemoBf16, kMistralF32, kMistralF16});
    cell.sampling =
        pick(std::vector<Sampling>{Sampling::kGreedy, Sampling::kSeeded, Sampling::kStopped});
    cell.layout.tp = Tps()[i % Tps().size()];
    cell.threads = pick(std::vector<int>{1, 2});
    cell.chunk = pick(std::vector<int64_t>{1, 7, 64});
    cell.crowd = pick(std::vector<int>{0, 1}) != 0;
    cell.tight = pick(std::vector<int>{0, 1}) != 0;
    cell.prefix = pick(std::vector<int>{0, 1}) != 0;
    cell.n = pick(std::vector<int>{1, 4});
    // Rows that a prefix hit saves have no logprobs, so asking for them forgoes the hit.
    cell.prompt_logprobs = !cell.prefix && rng() % 2 == 0;
    cell.path = pick(kernels::AvailableCpuPaths());
    Check(cell);
  }
}

TEST(Exactness, TheFirstOfFourSamplesIsTheOnlySampleOfOne) {
  Cell four;
  four.model = kDemoBf16;
  four.sampling = Sampling::kSeeded;
  four.n = 4;
  Cell one = four;
  one.n = 1;
  const Answer& a = Cells().Reference(one);
  const Answer& b = Cells().Reference(four);
  ASSERT_TRUE(a.status.ok() && b.status.ok()) << a.status << b.status;
  EXPECT_EQ(Difference(a.samples[0].tokens, b.samples[0].tokens), "");
  EXPECT_NE(Difference(b.samples[0].tokens, b.samples[1].tokens), "");
}

TEST(Exactness, StopStringsEndTheReferenceEarly) {
  Cell stopped;
  stopped.model = kDemoBf16;
  stopped.sampling = Sampling::kStopped;
  const Answer& answer = Cells().Reference(stopped);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.samples[0].finish, coordinator::FinishReason::kStop);
  EXPECT_LT(answer.samples[0].tokens.size(), static_cast<size_t>(EngineCells::kNewTokens));
  EXPECT_GT(answer.samples[0].tokens.size(), 0u);
}

}  // namespace
}  // namespace phalanx::testing
