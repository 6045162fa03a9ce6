// Several worker groups under one coordinator.
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/router.h"
#include "tests/runtime/coordinator/client.h"
#include "tests/testing/fake_worker_group.h"

namespace phalanx::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FakeGroupControl;
using testing::FakeGroupOptions;
using testing::FakeWorkerGroup;
using ::testing::HasSubstr;

class Service {
 public:
  explicit Service(std::vector<FakeGroupOptions> groups, CoordinatorOptions options = {}) {
    std::vector<std::unique_ptr<WorkerGroup>> made;
    for (FakeGroupOptions& group : groups) {
      group.vocab_size = kVocab;
      controls_.push_back(std::make_shared<FakeGroupControl>(group));
      made.push_back(std::make_unique<FakeWorkerGroup>(controls_.back()));
    }
    options.limits.vocab_size = kVocab;
    options.limits.max_context = 400;
    coordinator_ = std::make_unique<Coordinator>(std::move(options), std::move(made));
  }
  Coordinator* operator->() { return coordinator_.get(); }
  FakeGroupControl& group(int replica) { return *controls_[replica]; }
  // What the router reckons for each replica. Exact as soon as Submit has returned, as long as
  // nothing runs.
  std::vector<int64_t> Work() {
    std::vector<int64_t> work;
    for (const ReplicaStatus& r : coordinator_->GetStatus().replicas) {
      work.push_back(r.reckoned_tokens);
    }
    return work;
  }
  void Submit(const GenerateRequest& request, Client& client) {
    const absl::StatusOr<RequestHandle> handle = coordinator_->Submit(request, client.Callback());
    ASSERT_TRUE(handle.ok()) << handle.status();
  }

 private:
  std::vector<std::shared_ptr<FakeGroupControl>> controls_;
  std::unique_ptr<Coordinator> coordinator_;
};

// `count` groups whose plans wait for the test.
std::vector<FakeGroupOptions> Manual(int count) {
  FakeGroupOptions group;
  group.manual = true;
  return std::vector<FakeGroupOptions>(count, group);
}

std::vector<int32_t> Text(int32_t first, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back((first + i) % kVocab);
  return tokens;
}

std::vector<int32_t> Append(std::vector<int32_t> tokens, const std::vector<int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

// Ends every replica's groups at the end of a test with threads that serve them.
class Ranks {
 public:
  Ranks(Service& service, int count) : service_(service) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([&service, i] { service.group(i).RunUntilStopped(); });
    }
  }
  ~Ranks() {
    service_->Stop();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  Service& service_;
  std::vector<std::thread> threads_;
};

TEST(Replicas, ARequestGoesToTheLongestCachedPrefixElseToTheLeastBusy) {
  Service c(Manual(3));
  ASSERT_TRUE(c->Start().ok());
  std::vector<Client> clients(6);
  const std::vector<int32_t> a = Text(0, 100);
  const std::vector<int32_t> b = Text(500, 70);
  c.Submit(MakeRequest(a, 10), clients[0]);  // nothing is cached or busy: the first
  EXPECT_THAT(c.Work(), ElementsAre(110, 0, 0));
  c.Submit(MakeRequest(b, 20), clients[1]);  // the least busy, of two the first
  EXPECT_THAT(c.Work(), ElementsAre(110, 90, 0));
  // 96 of 101 tokens are thought to be on replica 0.
  c.Submit(MakeRequest(Append(a, {7}), 10), clients[2]);
  EXPECT_THAT(c.Work(), ElementsAre(125, 90, 0));
  c.Submit(MakeRequest(Append(b, {7}), 10), clients[3]);  // 64 of 71
  EXPECT_THAT(c.Work(), ElementsAre(125, 107, 0));
  GenerateRequest salted = MakeRequest(Append(a, {7}), 10);
  salted.cache_salt = "tenant";  // shares nothing
  c.Submit(salted, clients[4]);
  EXPECT_THAT(c.Work(), ElementsAre(125, 107, 111));
  GenerateRequest logprobs = MakeRequest(Append(a, {8}), 1);
  logprobs.sampling.prompt_logprobs = 0;  // is computed wholly wherever it goes
  c.Submit(logprobs, clients[5]);
  EXPECT_THAT(c.Work(), ElementsAre(125, 209, 111));
  Ranks ranks(c, 3);
  for (Client& client : clients) EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_THAT(c.Work(), ElementsAre(0, 0, 0));
  EXPECT_EQ(clients[3].tokens(), Expected(MakeRequest(Append(b, {7}), 10)));
}

TEST(Replicas, AMuchBusierReplicaKeepsItsPrefixToItself) {
  Service c(Manual(2));
  ASSERT_TRUE(c->Start().ok());
  std::vector<Client> clients(3);
  const GenerateRequest r = MakeRequest(Text(0, 64), 100);
  c.Submit(r, clients[0]);
  EXPECT_THAT(c.Work(), ElementsAre(164, 0));
  // 164 more than idle, 32 tokens saved: within the slack.
  c.Submit(r, clients[1]);
  EXPECT_THAT(c.Work(), ElementsAre(164 + 132, 0));
  c.Submit(r, clients[2]);
  EXPECT_THAT(c.Work(), ElementsAre(296, 164));
  Ranks ranks(c, 2);
  for (Client& client : clients) {
    EXPECT_TRUE(client.Wait().status.ok());
    EXPECT_EQ(client.tokens(), Expected(r));
  }
}

TEST(Replicas, AnAnswerOfUnknownLengthCountsAsAnOrdinaryOne) {
  Service c(Manual(2));
  ASSERT_TRUE(c->Start().ok());
  Client client;
  GenerateRequest r = MakeRequest(Text(0, 40), 1);
  r.max_tokens.reset();
  r.n = 2;
  c.Submit(r, client);
  EXPECT_THAT(c.Work(), ElementsAre(40 + 2 * kReckonedAnswerTokens, 0));
  c->Stop();  // before the clients go
}

TEST(Replicas, AConversationStaysWhereItsAnswerWasMade) {
  std::vector<FakeGroupOptions> groups(2);
  Service c(groups);
  ASSERT_TRUE(c->Start().ok());
  Client other, first, second;
  c.Submit(MakeRequest(Text(300, 40), 1), other);
  other.Wait();
  // Idle and without a prefix, every request would go to replica 0.
  GenerateRequest r = MakeRequest(Text(0, 40), 60);
  c.Submit(r, first);
  first.Wait();
  const int64_t before = c->GetStatus().replicas[0].cached_prompt_tokens;
  r = MakeRequest(Append(Append(Text(0, 40), first.tokens()), Text(700, 5)), 3);
  c.Submit(r, second);
  second.Wait();
  EXPECT_EQ(second.tokens(), Expected(r));
  // 99 tokens were stored, three blocks of them full.
  EXPECT_EQ(c->GetStatus().replicas[0].cached_prompt_tokens, before + 96);
}

TEST(Replicas, WithoutPrefixReuseOnlyLoadCounts) {
  CoordinatorOptions options;
  options.scheduler.prefix_reuse = false;
  Service c(Manual(2), options);
  ASSERT_TRUE(c->Start().ok());
  Client first, second;
  c.Submit(MakeRequest(Text(0, 100), 1), first);
  c.Submit(MakeRequest(Text(0, 100), 1), second);
  EXPECT_THAT(c.Work(), ElementsAre(101, 101));
  c->Stop();  // before the clients go
}

TEST(Replicas, OnlyAReplicaWhoseMemoryCanHoldTheRequestGetsIt) {
  std::vector<FakeGroupOptions> groups = Manual(2);
  groups[0].kv_blocks = 2;
  groups[1].kv_blocks = 4;
  Service c(groups);
  ASSERT_TRUE(c->Start().ok());
  Client client, refused;
  c.Submit(MakeRequest(Text(0, 100), 5), client);
  EXPECT_THAT(c.Work(), ElementsAre(0, 105));
  const absl::Status status = c->Submit(MakeRequest(Text(0, 200), 5), refused.Callback()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(c->GetStatus().blocks.total, 6);
  c->Stop();  // before the clients go
}

TEST(Replicas, ADeadReplicasRequestsGoToTheOthersAndTheLastDeathEndsAll) {
  Service c(Manual(2));
  ASSERT_TRUE(c->Start().ok());
  Client on_first, on_second, later, late;
  const GenerateRequest a = MakeRequest(Text(0, 64), 3);
  const GenerateRequest b = MakeRequest(Text(500, 64), 3);
  c.Submit(a, on_first);
  c.Submit(b, on_second);
  c.group(0).AwaitPlan();
  c.group(0).Die(absl::UnavailableError("rank 1 (host b, pid 7) died in step 1"));
  std::thread rank([&] { c.group(1).RunUntilStopped(); });
  EXPECT_TRUE(on_first.Wait().status.ok());
  EXPECT_EQ(on_first.tokens(), Expected(a));

  CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.state, CoordinatorState::kServing);
  EXPECT_TRUE(status.failure.ok());
  EXPECT_EQ(status.replicas[0].state, CoordinatorState::kFailed);
  EXPECT_THAT(std::string(status.replicas[0].failure.message()), HasSubstr("died in step 1"));
  EXPECT_EQ(status.replicas[1].state, CoordinatorState::kServing);
  // It holds nothing any more; what it has counted stays.
  EXPECT_EQ(status.replicas[0].blocks.total, 0);
  EXPECT_GT(status.replicas[0].blocks.queried_blocks, 0);

  c.Submit(a, later);
  EXPECT_TRUE(on_second.Wait().status.ok());
  EXPECT_EQ(on_second.tokens(), Expected(b));
  EXPECT_TRUE(later.Wait().status.ok());
  EXPECT_EQ(later.tokens(), Expected(a));

  c.group(1).Die(absl::UnavailableError("mpirun was killed"));
  rank.join();  // the group has been stopped
  absl::Status refused = c->Submit(a, late.Callback()).status();
  if (refused.ok()) refused = late.Wait().status;  // taken while nobody knew that there is no other
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("mpirun was killed"));
  status = c->GetStatus();
  EXPECT_EQ(status.state, CoordinatorState::kFailed);
  EXPECT_THAT(std::string(status.failure.message()),
              AllOf(HasSubstr("replica 0: rank 1 (host b, pid 7) died in step 1"),
                    HasSubstr("replica 1: mpirun was killed")));
}

TEST(Replicas, IdsAreUniqueOverAllAndCancelFindsTheReplica) {
  Service c(Manual(2));
  ASSERT_TRUE(c->Start().ok());
  Client first, second, twice, drawn[4];
  GenerateRequest r = MakeRequest(Text(0, 10), 50);
  r.id = "one";
  c.Submit(r, first);
  r.id = "two";
  c.Submit(r, second);
  EXPECT_THAT(c.Work(), ElementsAre(60, 60));
  for (const char* id : {"one", "two"}) {
    r.id = id;
    EXPECT_EQ(c->Submit(r, twice.Callback()).status().code(), absl::StatusCode::kAlreadyExists);
  }
  std::set<std::string> ids;
  r.id.clear();
  for (Client& client : drawn) ids.insert(c->Submit(r, client.Callback())->id);
  EXPECT_EQ(ids.size(), 4u);
  EXPECT_TRUE(c->Cancel("two"));
  EXPECT_EQ(second.Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(c->Cancel("two"));
  EXPECT_FALSE(first.done());
  EXPECT_TRUE(c->Cancel("one"));
  EXPECT_EQ(first.Wait().status.code(), absl::StatusCode::kCancelled);
  c->Stop();  // before the clients go
}

TEST(Replicas, TheQueueIsBoundedOverAll) {
  CoordinatorOptions options;
  options.scheduler.max_batch_sequences = 1;
  options.scheduler.max_queued_requests = 2;
  Service c(Manual(2), options);
  ASSERT_TRUE(c->Start().ok());
  std::vector<Client> clients(4);
  Client refused;
  for (int i = 0; i < 2; ++i) c.Submit(MakeRequest(Text(i * 100, 10), 50), clients[i]);
  for (int i = 0; i < 2; ++i) c.group(i).AwaitPlan();  // both are admitted
  for (int i = 2; i < 4; ++i) c.Submit(MakeRequest(Text(i * 100, 10), 50), clients[i]);
  EXPECT_EQ(c->GetStatus().queued_requests, 2);
  EXPECT_EQ(c->Submit(MakeRequest(Text(0, 10), 5), refused.Callback()).status().code(),
            absl::StatusCode::kResourceExhausted);
  c->Stop();  // before the clients go
}

TEST(Replicas, DrainWaitsForAllAndStopEndsAll) {
  Service c(Manual(2));
  ASSERT_TRUE(c->Start().ok());
  Client first, second, refused;
  c.Submit(MakeRequest(Text(0, 10), 1), first);
  c.Submit(MakeRequest(Text(100, 10), 1), second);
  c.group(0).RunOne();
  first.Wait();
  EXPECT_EQ(c->Drain(absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(c->GetStatus().state, CoordinatorState::kDraining);
  EXPECT_EQ(c->Submit(MakeRequest({1}, 1), refused.Callback()).status().code(),
            absl::StatusCode::kUnavailable);
  c.group(1).RunOne();
  EXPECT_TRUE(c->Drain(absl::InfiniteDuration()).ok());
  EXPECT_TRUE(second.done());

  Service d(Manual(2));
  ASSERT_TRUE(d->Start().ok());
  Client third, fourth;
  d.Submit(MakeRequest(Text(0, 10), 50), third);
  d.Submit(MakeRequest(Text(100, 10), 50), fourth);
  d->Stop();
  EXPECT_EQ(third.Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(fourth.Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(d.group(0).stopped());
  EXPECT_TRUE(d.group(1).stopped());
  EXPECT_EQ(d->Submit(MakeRequest({1}, 1), refused.Callback()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(Replicas, OneThatCannotStartIsNamedAndTheOthersAreStopped) {
  std::vector<FakeGroupOptions> groups = Manual(3);
  groups[1].start_status = absl::FailedPreconditionError("rank 0 and rank 1 disagree");
  Service c(groups);
  EXPECT_EQ(c->Start(), absl::FailedPreconditionError("replica 1: rank 0 and rank 1 disagree"));
  EXPECT_TRUE(c.group(0).stopped());
  EXPECT_TRUE(c.group(2).stopped());
}

TEST(Replicas, ThatWouldComputeOtherBitsAreRefused) {
  std::vector<FakeGroupOptions> groups = Manual(2);
  groups[0].op_digest = "aa";
  groups[1].op_digest = "bb";
  Service c(groups);
  const absl::Status status = c->Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("replicas 0 and 1 differ"), HasSubstr("aa"), HasSubstr("bb")));
  EXPECT_TRUE(c.group(0).stopped());
}

TEST(Replicas, StatusNamesTheLayoutOfAllAndSumsWhatTheyDid) {
  FakeGroupOptions group;
  group.layout = "pp=2,tp=2";
  group.expert_tokens = {1, 0, 3};
  group.kv_blocks = 10;
  Service c({group, group});
  EXPECT_EQ(c->GetStatus().state, CoordinatorState::kLoading);
  ASSERT_TRUE(c->Start().ok());
  EXPECT_EQ(c->GetStatus().layout, "dp=2,pp=2,tp=2");
  EXPECT_EQ(c->layout(), "dp=2,pp=2,tp=2");
  Client first, second;
  c.Submit(MakeRequest(Text(0, 10), 3), first);
  first.Wait();
  c.Submit(MakeRequest(Text(0, 10), 2), second);
  second.Wait();
  const CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.blocks.total, 20);
  EXPECT_EQ(status.generated_tokens, 5);
  EXPECT_EQ(status.finished_requests, 2);
  EXPECT_THAT(status.expert_tokens, ElementsAre(5, 0, 15));
  EXPECT_DOUBLE_EQ(status.ExpertImbalance(), 15 * 3 / 20.0);
  EXPECT_EQ(status.replicas.size(), 2u);
  EXPECT_EQ(status.replicas[1].group.layout, "pp=2,tp=2");
  EXPECT_EQ(EngineCounters().ExpertImbalance(), 0);
}

TEST(Replicas, EveryStageOfAPipelineHasAPlan) {
  FakeGroupOptions group;
  group.manual = true;
  group.layout = "pp=3";
  Service c({group});
  ASSERT_TRUE(c->Start().ok());
  std::vector<Client> clients(4);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(MakeRequest(Text(i * 100, 10), 20));
  c.Submit(requests[0], clients[0]);
  c.group(0).AwaitPlan(1);
  c.Submit(requests[1], clients[1]);
  c.group(0).AwaitPlan(2);
  c.Submit(requests[2], clients[2]);
  c.group(0).AwaitPlan(3);
  c.Submit(requests[3], clients[3]);
  Ranks ranks(c, 1);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(clients[i].Wait().status.ok());
    EXPECT_EQ(clients[i].tokens(), Expected(requests[i])) << i;
  }
}

TEST(Replicas, ManyClientsGetTheirOwnAnswersWhereverTheyRun) {
  std::vector<FakeGroupOptions> groups(3);
  for (FakeGroupOptions& group : groups) group.kv_blocks = 20;
  CoordinatorOptions options;
  options.scheduler.max_batch_tokens = 100;
  Service c(groups, options);
  ASSERT_TRUE(c->Start().ok());
  constexpr int kClients = 90;
  std::vector<Client> clients(kClients);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < kClients; ++i) {
    requests.push_back(MakeRequest(Text((i % 7) * 100, 30 + i % 50), 5 + i % 30));
    requests.back().n = 1 + i % 3;
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kClients; i += 4) {
        c.Submit(requests[i], clients[i]);
        c->GetStatus();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < kClients; ++i) {
    EXPECT_TRUE(clients[i].Wait().status.ok());
    for (int s = 0; s < requests[i].n; ++s) {
      EXPECT_EQ(clients[i].tokens(s), Expected(requests[i], s)) << i << " sample " << s;
    }
  }
  const CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.blocks.in_use, 0);
  EXPECT_EQ(status.finished_requests, kClients);
  for (const ReplicaStatus& replica : status.replicas) {
    EXPECT_GT(replica.finished_requests, 0) << replica.replica;
  }
  EXPECT_THAT(c.Work(), ElementsAre(0, 0, 0));
  c->Stop();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(c.group(i).error(), "");
}

}  // namespace
}  // namespace phalanx::coordinator
