// Pipeline parallelism under a virtual clock: what p stages cost in slots, and that the scheduler
// leaves none of them idle.
#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"
#include "tests/testing/pipeline_simulation.h"

namespace phalanx::scheduler {
namespace {

using testing::CheckPipelineTrace;
using testing::PipelineEvent;
using testing::PipelineSimulation;

SchedulerOptions Options(int64_t plans, int64_t num_blocks = 300) {
  SchedulerOptions o;
  o.max_batch_tokens = 64;
  o.max_batch_sequences = 64;
  o.max_plans_in_flight = plans;
  o.num_blocks = num_blocks;
  o.block_tokens = 16;
  o.max_context = 20000;
  o.prefix_reuse = false;
  return o;
}

RequestSpec MakeSpec(uint64_t id, int64_t prompt, int64_t max_tokens) {
  RequestSpec r;
  r.request_id = id;
  for (int64_t i = 0; i < prompt; ++i) {
    r.prompt.push_back(static_cast<int32_t>((id * 7 + static_cast<uint64_t>(i) * i) % kVocab));
  }
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  return r;
}

// Every request of `specs` gave what it gives alone, and the trace is one of a pipeline.
void ExpectSound(const PipelineSimulation& pipeline, const std::vector<RequestSpec>& specs,
                 const SchedulerOptions& options) {
  EXPECT_EQ(CheckPipelineTrace(pipeline.trace(), pipeline.stages(), options.max_plans_in_flight),
            "");
  std::map<uint64_t, std::vector<SampleTrace>> got;
  for (const auto& [time, output] : pipeline.outputs()) {
    for (const SampleToken& token : output.tokens) {
      std::vector<SampleTrace>& samples = got[output.request_id];
      samples.resize(std::max<size_t>(samples.size(), token.sample_index + 1));
      samples[token.sample_index].tokens.push_back(token.token);
      samples[token.sample_index].finish = token.finish;
    }
  }
  for (const RequestSpec& spec : specs) {
    EXPECT_EQ(got[spec.request_id], Alone(spec, options)) << "request " << spec.request_id;
  }
}

TEST(PipelineClock, MPlansThroughPEqualStagesTakeMPlusPMinus1Slots) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 20; ++m) {
      SCOPED_TRACE(::testing::Message() << m << " plans, " << p << " stages");
      const SchedulerOptions o = Options(p);
      PipelineSimulation pipeline(o, p);
      std::vector<RequestSpec> specs;
      for (int i = 0; i < m; ++i) {
        specs.push_back(MakeSpec(i + 1, o.max_batch_tokens, 1));
        pipeline.AddAt(0, specs.back());
      }
      ASSERT_EQ(pipeline.Run(), "");
      ASSERT_EQ(pipeline.plans().size(), static_cast<size_t>(m));
      ASSERT_LE(pipeline.now(), m + p - 1);
      ExpectSound(pipeline, specs, o);
    }
  }
}

TEST(PipelineClock, TheChunksOfOnePromptFollowEachOtherWithoutAGap) {
  for (int p = 1; p <= 8; ++p) {
    for (const int m : {1, 2, 3, 7, 16, 33}) {
      SCOPED_TRACE(::testing::Message() << m << " chunks, " << p << " stages");
      SchedulerOptions o = Options(p);
      PipelineSimulation pipeline(o, p);
      const RequestSpec spec = MakeSpec(1, o.max_batch_tokens * m, 3);
      pipeline.AddAt(0, spec);
      ASSERT_EQ(pipeline.Run(), "");
      // The first token comes with the last chunk, the other two one by one.
      ASSERT_EQ(pipeline.plans().size(), static_cast<size_t>(m) + 2);
      ASSERT_EQ(pipeline.outputs()[1].time, m + p - 1);
      ASSERT_EQ(pipeline.now(), m + p - 1 + 2 * p);
      ASSERT_EQ(testing::StagesBusyAtOnce(pipeline.trace()), std::min(m, p));
      ExpectSound(pipeline, {spec}, o);
    }
  }
}

TEST(PipelineClock, SteadyDecodeLeavesNoStageIdle) {
  for (int p = 1; p <= 8; ++p) {
    for (const int sequences : {p, p + 1, 2 * p - 1, 2 * p, 3 * p + 2, 29}) {
      SCOPED_TRACE(::testing::Message() << sequences << " sequences, " << p << " stages");
      const SchedulerOptions o = Options(p);
      PipelineSimulation pipeline(o, p);
      std::vector<RequestSpec> specs;
      for (int i = 0; i < sequences; ++i) {
        specs.push_back(MakeSpec(i + 1, 1 + i % 5, 40));
        pipeline.AddAt(0, specs.back());
      }
      ASSERT_EQ(pipeline.Run(), "");
      // Prompts come back after a few slots; from then on until the first one ends:
      int64_t first_end = pipeline.now();
      for (const auto& [time, output] : pipeline.outputs()) {
        if (output.done) first_end = std::min(first_end, time);
      }
      const int64_t warm = 4 * p;
      ASSERT_GT(first_end - p, warm + 20);
      for (int stage = 0; stage < p; ++stage) {
        // What enters in the last round before the first end fills the later stages after it.
        ASSERT_EQ(pipeline.IdleSlots(stage, warm, first_end), 0)
            << "stage " << stage << "\n"
            << testing::ToString(pipeline.trace());
      }
      // Plans differ by one sequence at most.
      std::vector<size_t> sizes;
      for (const PipelineEvent& e : pipeline.trace()) {
        if (e.stage == 0 && e.begin >= warm && e.end <= first_end) {
          sizes.push_back(pipeline.plans()[e.plan - 1].sequences.size());
        }
      }
      const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
      ASSERT_LE(*most - *least, 1u);
      ExpectSound(pipeline, specs, o);
    }
  }
}

TEST(PipelineClock, NoStageIsIdleWhileRequestsComeAndGo) {
  for (int p = 2; p <= 6; ++p) {
    for (uint32_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(::testing::Message() << p << " stages, seed " << seed);
      std::mt19937 rng(seed);
      const auto random = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(rng);
      };
      const SchedulerOptions o = Options(p);
      PipelineSimulation pipeline(o, p);
      std::vector<RequestSpec> specs;
      const auto next = [&] {
        specs.push_back(MakeSpec(specs.size() + 1, random(1, 40), random(1, 30)));
        return specs.back();
      };
      // Somebody comes whenever somebody goes.
      int64_t last_arrival = 0;
      pipeline.OnOutput([&](const PipelineSimulation::TimedOutput& o) {
        if (!o.output.done || specs.size() >= 150) return;
        last_arrival = o.time;
        pipeline.AddAt(o.time, next());
      });
      const int sequences = random(p, 4 * p);
      for (int i = 0; i < sequences; ++i) pipeline.AddAt(random(0, 3), next());
      ASSERT_EQ(pipeline.Run(), "");
      for (int stage = 0; stage < p; ++stage) {
        ASSERT_EQ(pipeline.IdleSlots(stage, 8 * p, last_arrival), 0) << "stage " << stage;
      }
      ExpectSound(pipeline, specs, o);
    }
  }
}

TEST(PipelineClock, NoStageIsIdleWhileRequestsLeaveOneByOneAndTwoForEachPlanAreLeft) {
  for (int p = 2; p <= 6; ++p) {
    SCOPED_TRACE(::testing::Message() << p << " stages");
    const SchedulerOptions o = Options(p);
    PipelineSimulation pipeline(o, p);
    const int sequences = 6 * p + 1;
    std::vector<RequestSpec> specs;
    for (int i = 0; i < sequences; ++i) {
      // In an order that would empty some plans long before others.
      specs.push_back(MakeSpec(i + 1, 3, 20 + 3 * (i * 5 % sequences)));
      pipeline.AddAt(0, specs.back());
    }
    int left = sequences;
    int64_t until = 0;
    pipeline.OnOutput([&](const PipelineSimulation::TimedOutput& o) {
      if (o.output.done && --left == 2 * p) until = o.time;
    });
    ASSERT_EQ(pipeline.Run(), "");
    ASSERT_GT(until, 40 * p);
    for (int stage = 0; stage < p; ++stage) {
      ASSERT_EQ(pipeline.IdleSlots(stage, 4 * p, until), 0) << "stage " << stage;
    }
    ExpectSound(pipeline, specs, o);
  }
}

TEST(PipelineClock, NeitherPrefillsNorDecodesStarve) {
  for (const int p : {1, 2, 4}) {
    SCOPED_TRACE(::testing::Message() << p << " stages");
    const SchedulerOptions o = Options(p, 2000);
    PipelineSimulation pipeline(o, p);
    std::vector<RequestSpec> specs;
    for (int i = 0; i < 16; ++i) specs.push_back(MakeSpec(i + 1, 4, 400));
    // Long prompts, more of them than are served at once.
    for (int i = 0; i < 20; ++i) specs.push_back(MakeSpec(100 + i, 500 + 20 * i, 5));
    for (const RequestSpec& spec : specs) {
      pipeline.AddAt(spec.request_id < 100 ? 0 : 50 + 13 * (spec.request_id - 100), spec);
    }
    std::map<uint64_t, int64_t> last_token;
    int64_t longest_gap = 0;
    std::map<uint64_t, int64_t> first_token;
    for (const RequestSpec& spec : specs) first_token[spec.request_id] = -1;
    pipeline.OnOutput([&](const PipelineSimulation::TimedOutput& o) {
      const uint64_t id = o.output.request_id;
      if (o.output.tokens.empty()) return;
      if (first_token[id] < 0) {
        first_token[id] = o.time;
      } else {
        longest_gap = std::max(longest_gap, o.time - last_token[id]);
      }
      last_token[id] = o.time;
    });
    ASSERT_EQ(pipeline.Run(), "");
    // A row goes through the pipeline, and waits at most one round for its place in a plan.
    EXPECT_LE(longest_gap, 2 * p);
    // Prefills go first come, first served, and get what decodes leave of every plan: at least 64
    // rows less 16 decodes of old requests and 20 of new ones.
    int64_t rows = 0;
    for (const RequestSpec& spec : specs) {
      if (spec.request_id < 100) continue;
      rows += static_cast<int64_t>(spec.prompt.size());
      const int64_t arrival = 50 + 13 * static_cast<int64_t>(spec.request_id - 100);
      EXPECT_LE(first_token[spec.request_id] - arrival, rows / (64 - 36) + 1 + 2 * p)
          << "request " << spec.request_id;
    }
    ExpectSound(pipeline, specs, o);
  }
}

TEST(PipelineClock, APromptSmallerThanTheBudgetIsCutSoThatStagesWorkAtOnce) {
  const RequestSpec spec = MakeSpec(1, 512, 4);
  for (const int p : {1, 2, 4, 8}) {
    SCOPED_TRACE(::testing::Message() << p << " stages");
    SchedulerOptions o = Options(p);
    o.max_batch_tokens = 512;
    PipelineSimulation pipeline(o, p, PipelineSimulation::OneSlotPerRow);
    pipeline.AddAt(0, spec);
    ASSERT_EQ(pipeline.Run(), "");
    std::vector<int64_t> chunks;
    for (const StepPlan& plan : pipeline.plans()) {
      if (plan.num_tokens() > 1) chunks.push_back(plan.num_tokens());
    }
    const int64_t expected = p == 1 ? 1 : std::min(2 * p, 8);
    EXPECT_EQ(chunks, std::vector<int64_t>(expected, 512 / expected));
    // All rows through one stage, the last chunk through the others; uncut it would be 512 p.
    EXPECT_EQ(pipeline.outputs()[1].time, 512 + (p - 1) * 512 / expected);
    ExpectSound(pipeline, {spec}, o);
  }
}

TEST(PipelineClock, ChunksAreNeverCutBelowTheLeastSizeAndFillTheBudgetUnderLoad) {
  SchedulerOptions o = Options(4, 2000);
  o.max_batch_tokens = 512;
  {
    PipelineSimulation pipeline(o, 4);
    pipeline.AddAt(0, MakeSpec(1, 127, 1));
    ASSERT_EQ(pipeline.Run(), "");
    EXPECT_EQ(pipeline.plans().size(), 1u);
  }
  PipelineSimulation pipeline(o, 4);
  for (int i = 1; i <= 20; ++i) pipeline.AddAt(0, MakeSpec(i, 1000, 1));
  ASSERT_EQ(pipeline.Run(), "");
  EXPECT_EQ(pipeline.plans()[0].num_tokens(), 512);
  EXPECT_LE(pipeline.plans().size(), 20u * 1000 / 512 + 16);
}

TEST(PipelineClock, ATraceThatBreaksTheRulesIsNamed) {
  const std::vector<PipelineEvent> good = {{0, 1, 0, 1}, {1, 1, 1, 2}, {0, 2, 1, 2},
                                           {1, 2, 2, 3}, {0, 3, 2, 3}, {1, 3, 3, 4}};
  EXPECT_EQ(CheckPipelineTrace(good, 2, 2), "");
  EXPECT_EQ(testing::StagesBusyAtOnce(good), 2);
  EXPECT_EQ(testing::ToString({good[1], good[0]}), "0 1 stage 0 plan 1\n1 2 stage 1 plan 1\n");
  EXPECT_NE(CheckPipelineTrace(good, 2, 1), "") << "two plans were out";
  EXPECT_NE(CheckPipelineTrace(good, 3, 2), "") << "a stage never saw plan 1";
  for (size_t i = 1; i < good.size(); ++i) {
    std::vector<PipelineEvent> bad = good;
    bad[i].begin -= 1;
    EXPECT_NE(CheckPipelineTrace(bad, 2, 2), "") << i;
  }
  std::vector<PipelineEvent> twice = good;
  twice.push_back(good[0]);
  EXPECT_NE(CheckPipelineTrace(twice, 2, 2), "");
}

}  // namespace
}  // namespace phalanx::scheduler
