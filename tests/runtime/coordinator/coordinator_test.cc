#include "runtime/coordinator/coordinator.h"

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/coordinator/client.h"
#include "tests/testing/fake_worker_group.h"

namespace phalanx::coordinator {
namespace {

using testing::FakeGroupControl;
using testing::FakeGroupOptions;
using testing::FakeWorkerGroup;
using ::testing::HasSubstr;

class Fixture {
 public:
  explicit Fixture(FakeGroupOptions group = {}, CoordinatorOptions options = {}) {
    group.vocab_size = kVocab;
    control_ = std::make_shared<FakeGroupControl>(group);
    options.limits.vocab_size = kVocab;
    options.limits.max_context = 400;
    options.text_decoder = [](const GenerateRequest&) {
      return std::make_unique<BracketDecoder>();
    };
    if (options.clock == nullptr) options.clock = absl::Now;
    coordinator_ = std::make_unique<Coordinator>(std::move(options),
                                                 std::make_unique<FakeWorkerGroup>(control_));
  }
  Coordinator& operator*() { return *coordinator_; }
  Coordinator* operator->() { return coordinator_.get(); }
  FakeGroupControl& group() { return *control_; }

 private:
  std::shared_ptr<FakeGroupControl> control_;
  std::unique_ptr<Coordinator> coordinator_;
};

std::string AsText(const std::vector<int32_t>& tokens) {
  std::string text;
  for (const int32_t t : tokens) absl::StrAppend(&text, "<", t, ">");
  return text;
}

TEST(Coordinator, StreamsTokensTextAndOneEnd) {
  Fixture c;
  ASSERT_TRUE(c->Start().ok());
  Client client;
  const GenerateRequest r = MakeRequest({1, 2, 3}, 9);
  const absl::StatusOr<RequestHandle> handle = c->Submit(r, client.Callback());
  ASSERT_TRUE(handle.ok()) << handle.status();
  EXPECT_EQ(handle->seed, 5u);
  EXPECT_THAT(handle->id, HasSubstr("req-"));
  const Event last = client.Wait();
  EXPECT_TRUE(last.status.ok()) << last.status;
  EXPECT_EQ(client.tokens(), Expected(r));
  EXPECT_EQ(client.text(), AsText(Expected(r)));
  EXPECT_EQ(client.finish().finish, FinishReason::kLength);
  EXPECT_EQ(last.usage.prompt_tokens, 3);
  EXPECT_EQ(last.usage.completion_tokens, 9);
  EXPECT_EQ(c->GetStatus().blocks.in_use, 0);
  EXPECT_EQ(c->GetStatus().generated_tokens, 9);
  EXPECT_EQ(c->GetStatus().finished_requests, 1);
}

TEST(Coordinator, SixtyFourClientsGetTheirOwnAnswers) {
  FakeGroupOptions group;
  group.kv_blocks = 48;  // too few for all: some are preempted
  group.manual = true;   // nothing runs until all are there
  CoordinatorOptions options;
  options.scheduler.max_batch_tokens = 100;
  Fixture c(group, options);
  ASSERT_TRUE(c->Start().ok());
  constexpr int kClients = 64;
  std::vector<Client> clients(kClients);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < kClients; ++i) {
    requests.push_back(MakeRequest(std::vector<int32_t>(1 + i % 70, i % 5), 40 + i % 30));
    requests.back().n = 1 + i % 3;
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kClients; i += 4) {
        ASSERT_TRUE(c->Submit(requests[i], clients[i].Callback()).ok());
        c->GetStatus();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  std::thread ranks([&] { c.group().RunUntilStopped(); });
  for (int i = 0; i < kClients; ++i) {
    EXPECT_TRUE(clients[i].Wait().status.ok());
    for (int s = 0; s < requests[i].n; ++s) {
      EXPECT_EQ(clients[i].tokens(s), Expected(requests[i], s)) << i << " sample " << s;
    }
  }
  const CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.blocks.in_use, 0);
  EXPECT_GT(status.preemptions, 0);
  EXPECT_GT(status.cached_prompt_tokens, 0);
  c->Stop();
  ranks.join();
  EXPECT_EQ(c.group().error(), "");
}

TEST(Coordinator, FindsStopStringsAcrossTokens) {
  Fixture c;
  ASSERT_TRUE(c->Start().ok());
  GenerateRequest r = MakeRequest({4, 5}, 12);
  const std::vector<int32_t> tokens = Expected(r);
  r.stop = {absl::StrCat(">", "<", tokens[3], "><", tokens[4])};
  r.n = 2;
  Client client;
  ASSERT_TRUE(c->Submit(r, client.Callback()).ok());
  EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_EQ(client.finish().finish, FinishReason::kStop);
  EXPECT_EQ(client.finish().stop_string, r.stop[0]);
  EXPECT_EQ(client.tokens().size(), 5u);
  const std::string whole = AsText({tokens.begin(), tokens.begin() + 3});
  EXPECT_EQ(client.text(), whole.substr(0, whole.size() - 1));
  EXPECT_EQ(client.finish(1).finish, FinishReason::kLength);
  EXPECT_EQ(client.text(1), AsText(Expected(r, 1)));
  EXPECT_EQ(c->GetStatus().blocks.in_use, 0);
}

TEST(Coordinator, StopIdsEndWithoutTheirText) {
  Fixture c;
  ASSERT_TRUE(c->Start().ok());
  GenerateRequest r = MakeRequest({4, 5}, 12);
  const std::vector<int32_t> tokens = Expected(r);
  r.stop_token_ids = {tokens[2]};
  Client client;
  ASSERT_TRUE(c->Submit(r, client.Callback()).ok());
  client.Wait();
  EXPECT_EQ(client.finish().stop_token_id, tokens[2]);
  EXPECT_EQ(client.tokens().size(), 3u);
  EXPECT_EQ(client.text(), AsText({tokens[0], tokens[1]}));
}

TEST(Coordinator, ACancelledRequestLeavesWithinAStep) {
  FakeGroupOptions group;
  group.manual = true;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client client;
  GenerateRequest r = MakeRequest({1, 2}, 100);
  r.id = "mine";
  ASSERT_TRUE(c->Submit(r, client.Callback()).ok());
  c.group().RunOne();
  client.AwaitTokens(1);
  c.group().AwaitPlan();
  EXPECT_GT(c->GetStatus().blocks.in_use, 0);
  EXPECT_TRUE(c->Cancel("mine"));
  EXPECT_EQ(client.Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(c->Cancel("mine"));
  c.group().RunOne();  // what was in flight
  Client next;
  ASSERT_TRUE(c->Submit(MakeRequest({9}, 1), next.Callback()).ok());
  const scheduler::StepPlan plan = c.group().RunOne();
  ASSERT_EQ(plan.sequences.size(), 1u);
  EXPECT_EQ(plan.sequences[0].token_ids, std::vector<int32_t>{9});
  next.Wait();
  EXPECT_EQ(c->GetStatus().blocks.in_use, 0);
}

TEST(Coordinator, RefusesADuplicateLiveIdAndTakesItAgainAfterwards) {
  FakeGroupOptions group;
  group.manual = true;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client first, second;
  GenerateRequest r = MakeRequest({1}, 1);
  r.id = "same";
  ASSERT_TRUE(c->Submit(r, first.Callback()).ok());
  const absl::Status status = c->Submit(r, second.Callback()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("same"));
  c.group().RunOne();
  first.Wait();
  ASSERT_TRUE(c->Submit(r, second.Callback()).ok());
  c.group().RunOne();
  EXPECT_TRUE(second.Wait().status.ok());
}

TEST(Coordinator, AFullQueueRefuses) {
  FakeGroupOptions group;
  group.manual = true;
  CoordinatorOptions options;
  options.scheduler.max_batch_sequences = 1;
  options.scheduler.max_queued_requests = 2;
  Fixture c(group, options);
  ASSERT_TRUE(c->Start().ok());
  std::vector<Client> clients(3);
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 1), clients[0].Callback()).ok());
  c.group().AwaitPlan();  // admitted: the queue is empty
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 1), clients[1].Callback()).ok());
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 1), clients[2].Callback()).ok());
  Client refused;
  EXPECT_EQ(c->Submit(MakeRequest({1}, 1), refused.Callback()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(c->GetStatus().queued_requests, 2);
  for (Client& client : clients) {
    c.group().RunOne();
    EXPECT_TRUE(client.Wait().status.ok());
  }
}

TEST(Coordinator, RefusesWhatTheMemoryCanNeverHold) {
  FakeGroupOptions group;
  group.kv_blocks = 3;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client client;
  const absl::Status status = c->Submit(MakeRequest({1}, 97), client.Callback()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs 4 KV blocks"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 96"));
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 96), client.Callback()).ok());
  EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_EQ(client.tokens().size(), 96u);
}

TEST(Coordinator, GenerationEndsAtTheContext) {
  Fixture c;
  ASSERT_TRUE(c->Start().ok());
  GenerateRequest r = MakeRequest(std::vector<int32_t>(398, 1), 2147483647);
  Client client;
  ASSERT_TRUE(c->Submit(r, client.Callback()).ok());
  client.Wait();
  EXPECT_EQ(client.tokens().size(), 2u);
  EXPECT_EQ(client.finish().finish, FinishReason::kLength);
}

TEST(Coordinator, BadRequestsNameTheFieldAndHarmNobody) {
  Fixture c;
  ASSERT_TRUE(c->Start().ok());
  Client client;
  GenerateRequest r = MakeRequest({kVocab}, 1);
  EXPECT_THAT(std::string(c->Submit(r, client.Callback()).status().message()),
              HasSubstr("prompt_token_ids"));
  r = MakeRequest({1}, 3);
  ASSERT_TRUE(c->Submit(r, client.Callback()).ok());
  EXPECT_TRUE(client.Wait().status.ok());
}

TEST(Coordinator, ADeadlineEndsQueuedAndRunningRequests) {
  FakeGroupOptions group;
  group.manual = true;
  std::atomic<int64_t> now{1000};
  CoordinatorOptions options;
  options.clock = [&now] { return absl::FromUnixSeconds(now); };
  options.scheduler.max_batch_sequences = 1;
  Fixture c(group, options);
  ASSERT_TRUE(c->Start().ok());
  Client running, queued, late;
  GenerateRequest r = MakeRequest({1}, 100);
  r.deadline = absl::FromUnixSeconds(1010);
  ASSERT_TRUE(c->Submit(r, running.Callback()).ok());
  ASSERT_TRUE(c->Submit(r, queued.Callback()).ok());
  c.group().RunOne();
  running.AwaitTokens(1);
  now = 1010;
  c->Wake();
  EXPECT_EQ(running.Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(queued.Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(c->Submit(r, late.Callback()).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(Coordinator, DrainRefusesNewOnesAndWaitsForTheRest) {
  FakeGroupOptions group;
  group.manual = true;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client client, refused;
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 1), client.Callback()).ok());
  EXPECT_EQ(c->Drain(absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(c->GetStatus().state, CoordinatorState::kDraining);
  EXPECT_EQ(c->Submit(MakeRequest({1}, 1), refused.Callback()).status().code(),
            absl::StatusCode::kUnavailable);
  c.group().RunOne();
  EXPECT_TRUE(c->Drain(absl::InfiniteDuration()).ok());
  EXPECT_TRUE(client.done());
}

TEST(Coordinator, AGroupsDeathEndsEverythingUnavailableNamingTheRank) {
  FakeGroupOptions group;
  group.manual = true;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client running, refused;
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 50), running.Callback()).ok());
  c.group().RunOne();
  c.group().AwaitPlan();
  c.group().Die(absl::UnavailableError("rank 1 (host b, pid 7) died in step 2"));
  const Event last = running.Wait();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(last.status.message()), HasSubstr("rank 1 (host b, pid 7)"));
  const absl::Status status = c->Submit(MakeRequest({1}, 1), refused.Callback()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_EQ(c->GetStatus().state, CoordinatorState::kFailed);
  c->Stop();
  EXPECT_TRUE(c.group().stopped());
}

TEST(Coordinator, StopEndsUnfinishedRequestsUnavailable) {
  FakeGroupOptions group;
  group.manual = true;
  Fixture c(group);
  ASSERT_TRUE(c->Start().ok());
  Client client, refused;
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 50), client.Callback()).ok());
  c->Stop();
  EXPECT_TRUE(client.done());
  EXPECT_EQ(client.Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(c->Submit(MakeRequest({1}, 1), refused.Callback()).status().code(),
            absl::StatusCode::kUnavailable);
  c->Stop();
}

TEST(Coordinator, IsUnavailableBeforeItHasStarted) {
  Fixture c;
  Client client;
  const absl::Status status = c->Submit(MakeRequest({1}, 1), client.Callback()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("loading"));
}

TEST(Coordinator, AGroupThatCannotStartSaysWhy) {
  FakeGroupOptions group;
  group.start_status = absl::FailedPreconditionError("rank 0 and rank 1 disagree");
  Fixture c(group);
  EXPECT_EQ(c->Start(), group.start_status);
  FakeGroupOptions none;
  none.kv_blocks = 0;
  EXPECT_THAT(std::string(Fixture(none)->Start().message()), HasSubstr("holds no block"));
}

TEST(Coordinator, DrawsASeedWhereNoneIsGivenAndReturnsIt) {
  CoordinatorOptions options;
  options.draw_seed = [] { return uint64_t{77}; };
  Fixture c({}, options);
  ASSERT_TRUE(c->Start().ok());
  GenerateRequest r = MakeRequest({1}, 4);
  r.seed.reset();
  Client client;
  EXPECT_EQ(c->Submit(r, client.Callback())->seed, 77u);
  EXPECT_EQ(client.Wait().seed, 77u);
  r.seed = 77;
  EXPECT_EQ(client.tokens(), Expected(r));
}

}  // namespace
}  // namespace phalanx::coordinator
