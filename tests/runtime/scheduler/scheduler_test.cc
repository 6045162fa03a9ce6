#include "runtime/scheduler/scheduler.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SchedulerOptions Options(int64_t num_blocks = 32) {
  SchedulerOptions o;
  o.max_batch_tokens = 64;
  o.max_batch_sequences = 8;
  o.num_blocks = num_blocks;
  o.block_tokens = 4;
  o.max_context = 100;
  return o;
}

std::vector<int64_t> RowsOf(const StepPlan& plan) {
  std::vector<int64_t> rows;
  for (const SequenceStep& s : plan.sequences) rows.push_back(s.token_ids.size());
  return rows;
}

TEST(Scheduler, PutsDecodesBeforePrefillsAndFillsTheBudget) {
  SchedulerOptions o = Options();
  o.max_batch_tokens = 10;
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 6, 5)).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 20, 5, 9)).ok());
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(6, 4));
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(1, 9));
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(1, 7));
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, MakeSpec(1, 6, 5), o);
  ExpectAlone(s, MakeSpec(2, 20, 5, 9), o);
}

TEST(Scheduler, PrefillChunksAreBounded) {
  SchedulerOptions o = Options();
  o.prefill_chunk = 7;
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 16, 1)).ok());
  for (const int64_t rows : {7, 7, 2}) {
    s.Step();
    EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(rows));
    EXPECT_EQ(s.last_plan().sequences[0].samples.empty(), rows != 2);
  }
}

TEST(Scheduler, ServesInOrderOfArrival) {
  SchedulerOptions o = Options(8);
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 20, 2)).ok());  // 5 of 8 blocks
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 21, 2, 9)).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(3, 1, 1)).ok());  // would fit, but 2 comes first
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(20));
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.scheduler().stats().preemptions, 0);
}

TEST(Scheduler, PreemptsYoungestWhenBlocksRunOut) {
  SchedulerOptions o = Options(6);
  Simulation s(o);
  const RequestSpec old_one = MakeSpec(1, 4, 16);
  const RequestSpec young_one = MakeSpec(2, 4, 16, 20);
  ASSERT_TRUE(s.scheduler().Add(old_one).ok());
  ASSERT_TRUE(s.scheduler().Add(young_one).ok());
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.traces()[1].preemptions, 0);
  EXPECT_GT(s.traces()[2].preemptions, 0);
  ExpectAlone(s, old_one, o);
  ExpectAlone(s, young_one, o);
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
}

TEST(Scheduler, RefusesWhatCanNeverFitNamingTheBlocks) {
  Simulation s(Options(5));
  EXPECT_TRUE(s.scheduler().Add(MakeSpec(1, 10, 11)).ok());  // 20 slots: the last is never fed
  const absl::Status status = s.scheduler().Add(MakeSpec(2, 10, 12));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs 6 KV blocks"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("hold only 5"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 11 new tokens"));
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.traces()[1].samples[0].tokens.size(), 11u);
}

TEST(Scheduler, RefusesWhenTheQueueIsFullAndDuplicates) {
  SchedulerOptions o = Options();
  o.max_queued_requests = 2;
  Simulation s(o);
  EXPECT_TRUE(s.scheduler().Add(MakeSpec(1, 4, 1)).ok());
  EXPECT_EQ(s.scheduler().Add(MakeSpec(1, 4, 1)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(s.scheduler().Add(MakeSpec(2, 4, 1)).ok());
  EXPECT_EQ(s.scheduler().Add(MakeSpec(3, 4, 1)).code(), absl::StatusCode::kResourceExhausted);
  s.Schedule();
  EXPECT_TRUE(s.scheduler().Add(MakeSpec(3, 4, 1)).ok());
}

TEST(Scheduler, APrefixHitSavesAllFullBlocksButNeverTheLastToken) {
  SchedulerOptions o = Options();
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 16, 1)).ok());
  EXPECT_TRUE(s.RunAll());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 16, 3)).ok());
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(4));
  EXPECT_EQ(s.traces()[2].cached_tokens, 12);
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, MakeSpec(2, 16, 3), o);
  RequestSpec other = MakeSpec(3, 16, 3);
  other.cache_salt = "other tenant";
  ASSERT_TRUE(s.scheduler().Add(other).ok());
  EXPECT_TRUE(s.RunAll());
  EXPECT_EQ(s.traces()[3].cached_tokens, 0);
}

TEST(Scheduler, PromptLogprobsAreWholeDespiteAPrefixHit) {
  SchedulerOptions o = Options();
  o.prefill_chunk = 5;
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 16, 1)).ok());
  EXPECT_TRUE(s.RunAll());
  RequestSpec r = MakeSpec(2, 16, 2);
  r.sampling.prompt_logprobs = 0;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  EXPECT_TRUE(s.RunAll());
  const std::vector<TokenLogprobs>& got = s.traces()[2].prompt_logprobs;
  ASSERT_EQ(got.size(), 15u);
  for (int64_t i = 0; i < 15; ++i) {
    EXPECT_EQ(got[i].id, r.prompt[i + 1]);
    EXPECT_EQ(got[i].logprob, testing::FakeModel::PromptLogprob(r.prompt, i + 1));
  }
}

TEST(Scheduler, SamplesShareOnePrefillAndCopyTheirTailOnWrite) {
  SchedulerOptions o = Options();
  Simulation s(o);
  RequestSpec r = MakeSpec(1, 10, 6);
  r.n = 4;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(10));
  EXPECT_EQ(s.last_plan().sequences[0].samples.size(), 4u);
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 3);
  s.Step();
  EXPECT_EQ(s.last_plan().copies.size(), 3u);  // the last holder writes in place
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 6);
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, r, o);
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
}

TEST(Scheduler, SamplesShareFullPromptBlocksWithoutCopies) {
  Simulation s(Options());
  RequestSpec r = MakeSpec(1, 8, 2);
  r.n = 2;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  s.Step();
  s.Step();
  EXPECT_THAT(s.last_plan().copies, IsEmpty());
}

TEST(Scheduler, CancelFreesBlocksByTheEndOfTheStepInFlight) {
  Simulation s(Options());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 10, 20)).ok());
  s.Step();
  s.Schedule();
  EXPECT_TRUE(s.scheduler().Cancel(1, absl::CancelledError("gone")));
  EXPECT_FALSE(s.scheduler().Cancel(1, absl::CancelledError("gone")));
  s.Take();
  EXPECT_EQ(s.traces()[1].status.code(), absl::StatusCode::kCancelled);
  s.Commit();
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
  EXPECT_FALSE(s.Schedule());
}

TEST(Scheduler, DeadlinesEndRequestsWhereverTheyAre) {
  SchedulerOptions o = Options();
  o.max_batch_sequences = 1;
  Simulation s(o);
  for (uint64_t id : {1, 2}) {
    RequestSpec r = MakeSpec(id, 4, 20);
    r.deadline = absl::FromUnixSeconds(100);
    ASSERT_TRUE(s.scheduler().Add(r).ok());
  }
  s.Step();
  EXPECT_EQ(s.scheduler().NextDeadline(), absl::FromUnixSeconds(100));
  s.scheduler().Expire(absl::FromUnixSeconds(99));
  EXPECT_EQ(s.scheduler().stats().running_requests, 1);
  s.scheduler().Expire(absl::FromUnixSeconds(100));
  s.Take();
  EXPECT_EQ(s.traces()[1].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(s.traces()[2].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(s.scheduler().NextDeadline(), absl::InfiniteFuture());
}

TEST(Scheduler, EosAndStopIdsEndASampleUnlessMinTokensSuppressesThem) {
  SchedulerOptions o = Options();
  const RequestSpec base = MakeSpec(1, 5, 30);
  const std::vector<SampleTrace> free_run = Alone(base, o);
  const int32_t third = free_run[0].tokens[2].id;
  o.eos_token_ids = {third};
  for (const bool as_eos : {true, false}) {
    Simulation s(o);
    RequestSpec r = base;
    r.ignore_eos = !as_eos;
    if (!as_eos) r.stop_token_ids = {third};
    ASSERT_TRUE(s.scheduler().Add(r).ok());
    RequestSpec longer = r;
    longer.request_id = 2;
    longer.min_tokens = 10;
    ASSERT_TRUE(s.scheduler().Add(longer).ok());
    EXPECT_TRUE(s.RunAll());
    ExpectAlone(s, r, o);
    ExpectAlone(s, longer, o);
    EXPECT_EQ(s.traces()[1].samples[0].finish, FinishReason::kStop);
    EXPECT_LE(s.traces()[1].samples[0].tokens.size(), 3u);
    EXPECT_GE(s.traces()[2].samples[0].tokens.size(), 10u);
  }
}

TEST(Scheduler, FinishSampleEndsOneSampleAndTheLastOneTheRequest) {
  Simulation s(Options());
  RequestSpec r = MakeSpec(1, 5, 30);
  r.n = 2;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  EXPECT_FALSE(s.scheduler().FinishSample(1, 1));  // it has no token yet
  s.Step();
  EXPECT_TRUE(s.scheduler().FinishSample(1, 0));
  EXPECT_FALSE(s.scheduler().FinishSample(1, 0));
  s.Step();
  EXPECT_THAT(RowsOf(s.last_plan()), ElementsAre(1));
  EXPECT_TRUE(s.scheduler().FinishSample(1, 1));
  s.Take();
  EXPECT_EQ(s.traces()[1].ends, 1);
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
}

TEST(Scheduler, KeepsSeveralPlansInFlightOverDisjointSequences) {
  SchedulerOptions o = Options();
  o.max_plans_in_flight = 2;
  Simulation s(o);
  for (uint64_t id = 1; id <= 4; ++id) {
    ASSERT_TRUE(s.scheduler().Add(MakeSpec(id, 3, 6, static_cast<int32_t>(id) * 5)).ok());
  }
  s.Step();
  ASSERT_TRUE(s.Schedule());
  const StepPlan first = s.last_plan();
  ASSERT_TRUE(s.Schedule());
  EXPECT_EQ(first.sequences.size(), 2u);
  EXPECT_EQ(s.last_plan().sequences.size(), 2u);
  EXPECT_NE(first.sequences[0].sequence_id, s.last_plan().sequences[0].sequence_id);
  EXPECT_FALSE(s.Schedule());
  EXPECT_TRUE(s.RunAll());
  for (uint64_t id = 1; id <= 4; ++id) {
    ExpectAlone(s, MakeSpec(id, 3, 6, static_cast<int32_t>(id) * 5), o);
  }
}

TEST(Scheduler, ARowWithoutNumbersEndsOnlyItsRequest) {
  Scheduler scheduler(Options(), 1);
  ASSERT_TRUE(scheduler.Add(MakeSpec(1, 3, 6)).ok());
  ASSERT_TRUE(scheduler.Add(MakeSpec(2, 3, 1, 9)).ok());
  testing::FakeModel model(32, 4, kVocab);
  StepResult result = model.Run(*scheduler.Schedule());
  result.sequences[0].samples[0].token.id = -1;
  ASSERT_TRUE(scheduler.Commit(result).ok());
  std::vector<RequestOutput> outputs = scheduler.TakeOutputs();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(outputs[1].done);
  EXPECT_TRUE(outputs[1].status.ok());
  EXPECT_EQ(scheduler.stats().blocks.in_use, 0);
}

TEST(Scheduler, RefusesAResultThatDoesNotAnswerThePlanAndDropsOldEpochs) {
  Scheduler scheduler(Options(), 3);
  ASSERT_TRUE(scheduler.Add(MakeSpec(1, 3, 6)).ok());
  testing::FakeModel model(32, 4, kVocab);
  const StepPlan plan = *scheduler.Schedule();
  EXPECT_EQ(plan.epoch, 3u);
  EXPECT_EQ(plan.number, 1u);
  const StepResult good = model.Run(plan);
  StepResult bad = good;
  bad.number = 2;
  EXPECT_EQ(scheduler.Commit(bad).code(), absl::StatusCode::kInternal);
  bad = good;
  bad.sequences.clear();
  EXPECT_EQ(scheduler.Commit(bad).code(), absl::StatusCode::kInternal);
  bad = good;
  bad.sequences[0].samples.clear();
  EXPECT_EQ(scheduler.Commit(bad).code(), absl::StatusCode::kInternal);
  bad = good;
  bad.epoch = 2;
  EXPECT_TRUE(scheduler.Commit(bad).ok());
  EXPECT_EQ(scheduler.stats().steps, 0);
  EXPECT_TRUE(scheduler.Commit(good).ok());
  EXPECT_EQ(scheduler.Commit(good).code(), absl::StatusCode::kInternal);
}

TEST(Scheduler, ARestartGoesOnExactlyWhereItWas) {
  SchedulerOptions o = Options();
  Simulation s(o);
  RequestSpec r = MakeSpec(1, 10, 12);
  r.n = 2;
  r.sampling.frequency_penalty = 1;
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  for (int i = 0; i < 4; ++i) s.Step();
  s.Schedule();
  const cache::BlockPoolStats before = s.scheduler().stats().blocks;
  EXPECT_GT(before.queried_blocks, 0);
  s.Restart(20);
  // What is held is gone, what was counted is not.
  EXPECT_EQ(s.scheduler().stats().blocks.in_use, 0);
  EXPECT_EQ(s.scheduler().stats().blocks.total, 20);
  EXPECT_EQ(s.scheduler().stats().blocks.queried_blocks, before.queried_blocks);
  s.Step();
  EXPECT_GT(s.scheduler().stats().blocks.queried_blocks, before.queried_blocks);
  EXPECT_EQ(s.last_plan().epoch, 2u);
  EXPECT_EQ(s.last_plan().number, 1u);
  EXPECT_EQ(s.last_plan().sequences[0].prompt_length, 10);
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, r, o);
}

TEST(Scheduler, OptionsOutOfRangeAreNamed) {
  SchedulerOptions o = Options();
  EXPECT_TRUE(ValidateOptions(o).ok());
  o.max_batch_tokens = 0;
  EXPECT_THAT(std::string(ValidateOptions(o).message()), HasSubstr("max_batch_tokens is 0"));
  o = Options(0);
  EXPECT_THAT(std::string(ValidateOptions(o).message()), HasSubstr("num_blocks is 0"));
}

}  // namespace
}  // namespace phalanx::scheduler
