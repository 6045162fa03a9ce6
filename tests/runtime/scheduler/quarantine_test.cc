// What a worker group's death does to the requests that were in flight.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/scheduler.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const absl::Status kCause = absl::UnavailableError("lost rank 1 (host a, pid 7)");

SchedulerOptions Options() {
  SchedulerOptions o;
  o.max_batch_tokens = 64;
  o.max_batch_sequences = 8;
  o.num_blocks = 32;
  o.block_tokens = 4;
  o.max_context = 100;
  return o;
}

bool Holds(const StepPlan& plan, int32_t token) {
  for (const SequenceStep& step : plan.sequences) {
    for (const int32_t id : step.token_ids) {
      if (id == token) return true;
    }
  }
  return false;
}

// Turns until everything has ended; whenever a plan holds `poison`, the group dies under it.
int RunWithPoison(Simulation& s, int32_t poison) {
  int deaths = 0;
  while (s.Schedule()) {
    if (Holds(s.last_plan(), poison)) {
      s.Die(kCause);
      EXPECT_LT(++deaths, 100);
    } else {
      s.Commit();
    }
    const absl::Status valid = s.scheduler().CheckInvariants();
    EXPECT_TRUE(valid.ok()) << valid;
  }
  return deaths;
}

TEST(Quarantine, ARequestThatKillsItsWorkersTwiceEnds) {
  Simulation s(Options());
  RequestSpec poison = MakeSpec(1, 10, 5);
  poison.prompt[9] = 49;
  ASSERT_TRUE(s.scheduler().Add(poison).ok());
  EXPECT_EQ(RunWithPoison(s, 49), 2);
  const absl::Status& status = s.traces()[1].status;
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("died 2 times"), HasSubstr("lost rank 1 (host a, pid 7)")));
}

TEST(Quarantine, ItsNeighboursAreComputedAloneAndGoOnExactly) {
  const SchedulerOptions o = Options();
  Simulation s(o);
  RequestSpec poison = MakeSpec(3, 10, 5);
  poison.prompt[9] = 49;
  std::vector<RequestSpec> good;
  for (const uint64_t id : {1, 2, 4, 5}) {
    good.push_back(MakeSpec(id, 6 + static_cast<int64_t>(id), 5));
    if (id == 2) good.back().n = 3;
  }
  for (const RequestSpec& r : good) {
    if (r.request_id == 4) {
      ASSERT_TRUE(s.scheduler().Add(poison).ok());
    }
    ASSERT_TRUE(s.scheduler().Add(r).ok());
  }
  // All together twice, then alone.
  EXPECT_EQ(RunWithPoison(s, 49), 3);
  EXPECT_EQ(s.traces()[3].status.code(), absl::StatusCode::kInternal);
  for (const RequestSpec& r : good) ExpectAlone(s, r, o);
}

TEST(Quarantine, OneThatKillsInALaterChunkIsFoundToo) {
  SchedulerOptions o = Options();
  o.prefill_chunk = 4;
  Simulation s(o);
  RequestSpec poison = MakeSpec(1, 20, 5);
  poison.prompt[17] = 49;
  ASSERT_TRUE(s.scheduler().Add(poison).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 20, 5, 9)).ok());
  EXPECT_LE(RunWithPoison(s, 49), 4);
  EXPECT_EQ(s.traces()[1].status.code(), absl::StatusCode::kInternal);
  ExpectAlone(s, MakeSpec(2, 20, 5, 9), o);
}

TEST(Quarantine, DeathsThatARequestComesThroughAreNotHeldAgainstIt) {
  const SchedulerOptions o = Options();
  Simulation s(o);
  const RequestSpec r = MakeSpec(1, 10, 12);
  ASSERT_TRUE(s.scheduler().Add(r).ok());
  for (int i = 0; i < 10; ++i) {
    // Its prompt and tokens again, then one more token, then a death under the next.
    s.Step();
    s.Schedule();
    s.Die(kCause);
  }
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, r, o);
}

TEST(Quarantine, ARequestThatWaitsIsNoSuspect) {
  SchedulerOptions o = Options();
  o.max_batch_sequences = 1;
  Simulation s(o);
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(1, 10, 3)).ok());
  ASSERT_TRUE(s.scheduler().Add(MakeSpec(2, 10, 3, 9)).ok());
  for (int i = 0; i < 2; ++i) {
    s.Schedule();
    s.Die(kCause);
  }
  EXPECT_EQ(s.traces()[1].status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, MakeSpec(2, 10, 3, 9), o);
}

TEST(Quarantine, AloneARequestTakesTheMemoryOfOthers) {
  SchedulerOptions o = Options();
  o.num_blocks = 6;
  Simulation s(o);
  const RequestSpec older = MakeSpec(1, 10, 10);
  const RequestSpec younger = MakeSpec(2, 8, 12, 9);
  ASSERT_TRUE(s.scheduler().Add(older).ok());
  ASSERT_TRUE(s.scheduler().Add(younger).ok());
  for (int i = 0; i < 2; ++i) {
    s.Schedule();
    ASSERT_EQ(s.last_plan().sequences.size(), 2u);
    s.Die(kCause);
  }
  s.Schedule();
  EXPECT_EQ(s.last_plan().sequences.size(), 1u);
  s.Commit();
  EXPECT_TRUE(s.RunAll());
  ExpectAlone(s, older, o);
  ExpectAlone(s, younger, o);
}

}  // namespace
}  // namespace phalanx::scheduler
