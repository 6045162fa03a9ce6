// A prompt whose chunks are in several plans at once: nothing that happens meanwhile changes a
// token, loses a block or frees one too early.
#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

using ::testing::ElementsAre;

SchedulerOptions Options(int64_t num_blocks = 32) {
  SchedulerOptions o;
  o.max_batch_tokens = 8;
  o.max_batch_sequences = 8;
  o.max_plans_in_flight = 4;
  o.num_blocks = num_blocks;
  o.block_tokens = 4;
  o.max_context = 100;
  return o;
}

// Runs to the end: the answer is that of the request alone, and no block is lost.
void ExpectEndsAlone(Simulation& simulation, const RequestSpec& spec,
                     const SchedulerOptions& options) {
  EXPECT_TRUE(simulation.RunAll());
  ExpectAlone(simulation, spec, options);
  EXPECT_EQ(simulation.scheduler().stats().blocks.in_use, 0);
}

// Rows of each of the plans that can be made now.
std::vector<int64_t> Fill(Simulation& simulation) {
  std::vector<int64_t> rows;
  while (simulation.Schedule()) rows.push_back(simulation.last_plan().num_tokens());
  EXPECT_TRUE(simulation.scheduler().CheckInvariants().ok())
      << simulation.scheduler().CheckInvariants();
  return rows;
}

TEST(ChainedPrefill, ChunksFollowEachOtherUntilTheOneThatATokenIsChosenFrom) {
  const SchedulerOptions o = Options();
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 20, 5)).ok());
  EXPECT_THAT(Fill(s), ElementsAre(8, 8, 4));
  EXPECT_EQ(s.last_plan().sequences[0].start, 16);
  EXPECT_EQ(s.last_plan().sequences[0].block_table.size(), 5u);
  EXPECT_EQ(s.last_plan().sequences[0].samples.size(), 1u);
  s.Commit();
  s.Commit();
  EXPECT_FALSE(s.Schedule());  // its next row is the token that is not chosen yet
  s.Commit();
  EXPECT_THAT(Fill(s), ElementsAre(1));
  ExpectEndsAlone(s, MakeSpec(1, 20, 5), o);
}

TEST(ChainedPrefill, OnePlanAtATimeHoldsNoChain) {
  SchedulerOptions o = Options();
  o.max_plans_in_flight = 1;
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 20, 5)).ok());
  EXPECT_THAT(Fill(s), ElementsAre(8));
  EXPECT_EQ(s.Chained(), 0);
}

TEST(ChainedPrefill, TheEndOfARequestFreesItsBlocksWithTheLastOfItsChunks) {
  for (const bool expires : {false, true}) {
    Simulation s(Options());
    RequestSpec r = MakeSpec(1, 24, 5);
    r.deadline = absl::FromUnixSeconds(100);
    ASSERT_TRUE(s.scheduler().Add(r).ok());
    EXPECT_THAT(Fill(s), ElementsAre(8, 8, 8));
    s.Commit();
    if (expires) {
      s.scheduler().Expire(absl::FromUnixSeconds(100));
    } else {
      EXPECT_TRUE(s.scheduler().Cancel(1, absl::CancelledError("gone")));
    }
    // Its id is free for another one at once.
    ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 3, 2, 9)).ok());
    for (int left = 2; left > 0; --left) {
      EXPECT_EQ(s.scheduler().stats().blocks.in_use, 6);
      s.Commit();
      EXPECT_TRUE(s.scheduler().CheckInvariants().ok()) << s.scheduler().CheckInvariants();
    }
    EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
    ExpectEndsAlone(s, MakeSpec(2, 3, 2, 9), Options());
    EXPECT_FALSE(s.traces()[1].status.ok());
  }
}

TEST(ChainedPrefill, PromptLogprobsAreWhole) {
  const SchedulerOptions o = Options();
  Simulation s(o);
  RequestSpec r = MakeSpec(1, 27, 3);
  r.sampling.prompt_logprobs = 0;
  r.n = 3;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  EXPECT_THAT(Fill(s), ElementsAre(8, 8, 8, 3));
  for (int i = 0; i < 4; ++i) s.Commit();
  ExpectEndsAlone(s, r, o);
  const std::vector<TokenLogprobs>& got = s.traces()[1].prompt_logprobs;
  ASSERT_EQ(got.size(), 26u);
  for (int64_t i = 0; i < 26; ++i) {
    EXPECT_EQ(got[i].id, r.prompt[i + 1]);
    EXPECT_EQ(got[i].logprob, testing::FakeModel::PromptLogprob(r.prompt, i + 1));
  }
}

TEST(ChainedPrefill, ARestartForgetsTheChain) {
  const SchedulerOptions o = Options();
  Simulation s(o);
  RequestSpec r = MakeSpec(1, 30, 6);
  r.sampling.prompt_logprobs = 0;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  EXPECT_THAT(Fill(s), ElementsAre(8, 8, 8, 6));
  s.Commit();
  s.Restart(10, 2, 2);
  EXPECT_THAT(Fill(s), ElementsAre(8, 8));  // of the new group's two stages
  EXPECT_EQ(s.last_plan().sequences[0].start, 8);
  ExpectEndsAlone(s, r, o);
  EXPECT_EQ(s.traces()[1].prompt_logprobs.size(), 29u);
}

TEST(ChainedPrefill, ABlockThatAnotherPublishedFirstIsSharedWhileLaterChunksAreOut) {
  SchedulerOptions o = Options();
  o.prefill_chunk = 4;  // both prompts are in every plan
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 17, 4)).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 17, 4)).ok());
  EXPECT_THAT(Fill(s), ElementsAre(8, 8, 8, 8));
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 10);
  s.Commit();
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 9);
  // Later chunks of 2 name the block that has just become free, and somebody else gets it.
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(3, 6, 4, 30)).ok());
  EXPECT_EQ(Fill(s).size(), 1u);
  ExpectEndsAlone(s, MakeSpec(1, 17, 4), o);
  ExpectEndsAlone(s, MakeSpec(2, 17, 4), o);
  ExpectEndsAlone(s, MakeSpec(3, 6, 4, 30), o);
}

TEST(ChainedPrefill, AnOlderSequenceWithoutMemoryStopsTheChainAndTakesItsBlocks) {
  SchedulerOptions o = Options(18);
  o.max_batch_tokens = 2;
  o.max_plans_in_flight = 2;
  Simulation s(o);
  const RequestSpec old_one = MakeSpec(1, 4, 20);
  const RequestSpec young_one = MakeSpec(2, 60, 2, 11);
  ASSERT_TRUE(s.scheduler().Add(old_one).ok());
  s.Step();
  s.Step();
  ASSERT_TRUE(s.scheduler().Add(young_one).ok());
  // The young one takes 15 blocks, so the old one is short of memory at its 13th row, when most of
  // the other's chunks are still to come.
  int64_t longest_gap = 0;
  int64_t plans = 0;
  int64_t last = 0;
  while (s.traces()[1].ends == 0) {
    while (s.Schedule()) {
      ++plans;
      if (s.last_plan().sequences[0].sequence_id != 1) continue;
      longest_gap = std::max(longest_gap, plans - last);
      last = plans;
    }
    ASSERT_TRUE(s.scheduler().CheckInvariants().ok()) << s.scheduler().CheckInvariants();
    ASSERT_TRUE(s.Commit());
  }
  EXPECT_GT(s.Chained(), 10);
  EXPECT_LE(longest_gap, 3);
  ExpectEndsAlone(s, old_one, o);
  ExpectEndsAlone(s, young_one, o);
  EXPECT_EQ(s.traces()[1].preemptions, 0);
  EXPECT_GT(s.traces()[2].preemptions, 0);
}

}  // namespace
}  // namespace phalanx::scheduler
