// Memory is counted rank by rank where KV blocks are striped over sequence-parallel ranks (R3).
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

SchedulerOptions Options(int sequence_ranks, int64_t num_blocks, int sequence_stripes = 8) {
  SchedulerOptions o;
  o.max_batch_tokens = 64;
  o.max_batch_sequences = 8;
  o.num_blocks = num_blocks;
  o.sequence_ranks = sequence_ranks;
  o.sequence_stripes = sequence_stripes;
  o.block_tokens = 4;
  o.max_context = 200;
  return o;
}

TEST(SequenceRanks, MoreRanksThanStripesAreRefusedNamingTheStripes) {
  EXPECT_TRUE(ValidateOptions(Options(8, 4)).ok());
  const absl::Status status = ValidateOptions(Options(9, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("sequence_ranks is 9"), HasSubstr("only 8 sequence_stripes")));
  EXPECT_FALSE(ValidateOptions(Options(0, 4)).ok());
  EXPECT_FALSE(ValidateOptions(Options(2, int64_t{1} << 30)).ok());
  EXPECT_TRUE(ValidateOptions(Options(1, int64_t{1} << 30)).ok());
}

TEST(SequenceRanks, AContextThatNoSingleRankHoldsRuns) {
  const RequestSpec r = MakeSpec(1, 100, 20);  // 30 blocks
  EXPECT_FALSE(Scheduler::CheckFits(Options(1, 8), r).ok());
  for (const int ranks : {4, 8}) {
    const SchedulerOptions o = Options(ranks, 8);
    Simulation s(o);
    ASSERT_TRUE(s.scheduler().Add(r).ok());
    EXPECT_TRUE(s.RunAll());
    ExpectAlone(s, r, o);
  }
}

TEST(SequenceRanks, WhatDoesNotFitNamesTheRankThatIsShortAndWhatWouldFit) {
  // Stripes 0-1, 2-4, 5-7: with 6 blocks each, rank 1 is the first without room, at block 18.
  const SchedulerOptions o = Options(3, 6);
  Simulation s(o);
  EXPECT_TRUE(s.scheduler().Add(MakeSpec(1, 10, 63)).ok());  // 72 slots, 18 blocks
  const absl::Status status = s.scheduler().Add(MakeSpec(2, 10, 64));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("needs 19 KV blocks"), HasSubstr("7 of them fall to sequence rank 1"),
                    HasSubstr("each rank holds only 6"), HasSubstr("at most 63 new tokens")));
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, MakeSpec(1, 10, 63), o);
}

// The ids of the sequences of the last plan; sequences are numbered from 1 in order of arrival.
std::set<uint64_t> InLastPlan(const Simulation& simulation) {
  std::set<uint64_t> ids;
  for (const SequenceStep& s : simulation.last_plan().sequences) ids.insert(s.sequence_id);
  return ids;
}

TEST(SequenceRanks, APreemptionTakesTheYoungestThatHoldsMemoryOfTheRankThatIsShort) {
  // Of 3 stripes rank 0 owns the first, rank 1 two.
  const SchedulerOptions o = Options(2, 4, 3);
  Simulation s(o);
  const std::vector<RequestSpec> specs = {MakeSpec(1, 12, 9), MakeSpec(2, 8, 9, 20),
                                          MakeSpec(3, 2, 9, 30)};
  for (const RequestSpec& spec : specs) ASSERT_TRUE(s.scheduler().Add(spec).ok());
  while (s.scheduler().stats().preemptions == 0) ASSERT_TRUE(s.Step());
  // Request 1 needed its fifth block, on rank 1. The youngest, 3, holds only a block on rank 0.
  EXPECT_EQ(s.scheduler().stats().preemptions, 1);
  EXPECT_EQ(InLastPlan(s), (std::set<uint64_t>{1, 3}));
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.traces()[1].preemptions, 0);
  EXPECT_GT(s.traces()[2].preemptions, 0);
  for (const RequestSpec& spec : specs) ExpectAlone(s, spec, o);
}

TEST(SequenceRanks, AdmissionWaitsForTheRankThatIsShortOnly) {
  // Rank 0 owns stripe 0, rank 1 stripes 1 and 2: request 1 leaves rank 1 two free blocks, one of
  // which running sequences keep to grow.
  const SchedulerOptions o = Options(2, 5, 3);
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 20, 5)).ok());     // 2 and 3 blocks
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 4, 2, 25)).ok());  // 1 and 0 blocks
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(3, 9, 2, 30)).ok());  // 1 and 2 blocks
  s.Step();
  EXPECT_EQ(InLastPlan(s), (std::set<uint64_t>{1, 2}));
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.traces()[3].ends, 1);
}

TEST(SequenceRanks, APrefixHitFindsBlocksOnTheRanksThatOwnThem) {
  for (const int ranks : {1, 2, 3, 8}) {
    const SchedulerOptions o = Options(ranks, 24 / ranks);
    Simulation s(o);
    ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 60, 1)).ok());
    EXPECT_TRUE(s.RunAll());
    RequestSpec r = MakeSpec(2, 60, 3);
    r.prompt[45] = 49;
    ASSERT_TRUE(s.scheduler().Add(r).ok());
    EXPECT_TRUE(s.RunAll());
    EXPECT_EQ(s.traces()[2].cached_tokens, 44) << "sp=" << ranks;
    ExpectAlone(s, r, o);
    EXPECT_TRUE(s.scheduler().CheckInvariants().ok()) << s.scheduler().CheckInvariants();
  }
}

TEST(SequenceRanks, AnotherLayoutAfterARestartGoesOnExactlyAndEndsWhatItCannotHold) {
  const SchedulerOptions o = Options(4, 8);
  Simulation s(o);
  const RequestSpec small = MakeSpec(1, 20, 12);
  ASSERT_TRUE(s.scheduler().Add(small).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 100, 20, 7)).ok());
  for (int i = 0; i < 5; ++i) s.Step();
  s.Schedule();
  s.Restart(8, 1);
  EXPECT_TRUE(s.scheduler().CheckInvariants().ok()) << s.scheduler().CheckInvariants();
  EXPECT_EQ(s.scheduler().stats().blocks.total, 8);
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, small, o);
  EXPECT_EQ(s.traces()[2].status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace phalanx::scheduler
