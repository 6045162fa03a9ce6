// A replica's worker groups die and are replaced; what its clients see of it.
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/coordinator/coordinator.h"
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

// The groups of one replica, as a test scripts them. Epoch e is groups[e - 1]; past the last there
// is none any more.
class Script {
 public:
  using Entry = absl::StatusOr<FakeGroupOptions>;  // an error: of GroupSource::Next
  explicit Script(std::vector<Entry> entries) : entries_(std::move(entries)) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].ok()) {
        controls_.push_back(nullptr);
        continue;
      }
      entries_[i]->vocab_size = kVocab;
      entries_[i]->epoch = i + 1;
      controls_.push_back(std::make_shared<FakeGroupControl>(*entries_[i]));
    }
  }
  std::unique_ptr<GroupSource> Source() { return std::make_unique<ScriptedSource>(*this); }
  FakeGroupControl& group(uint64_t epoch) { return *controls_[epoch - 1]; }
  std::vector<GroupNeed> needs() {
    std::lock_guard<std::mutex> lock(mu_);
    return needs_;
  }

 private:
  class ScriptedSource : public GroupSource {
   public:
    explicit ScriptedSource(Script& script) : script_(script) {}
    absl::StatusOr<std::unique_ptr<WorkerGroup>> Next(const GroupNeed& need) override {
      std::lock_guard<std::mutex> lock(script_.mu_);
      script_.needs_.push_back(need);
      if (need.epoch > script_.entries_.size()) {
        return absl::FailedPreconditionError(
            absl::StrCat("no machine is left; ", need.cause.message()));
      }
      const Entry& entry = script_.entries_[need.epoch - 1];
      if (!entry.ok()) return entry.status();
      return std::make_unique<FakeWorkerGroup>(script_.controls_[need.epoch - 1]);
    }

   private:
    Script& script_;
  };

  std::vector<Entry> entries_;
  std::vector<std::shared_ptr<FakeGroupControl>> controls_;
  std::mutex mu_;
  std::vector<GroupNeed> needs_;
};

class Service {
 public:
  explicit Service(std::vector<Script*> scripts, CoordinatorOptions options = {}) {
    options.limits.vocab_size = kVocab;
    options.limits.max_context = 400;
    options.restart.first_pause = options.restart.longest_pause = absl::ZeroDuration();
    options.log = [this](const std::string& line) {
      std::lock_guard<std::mutex> lock(mu_);
      log_.push_back(line);
    };
    std::vector<std::unique_ptr<GroupSource>> sources;
    for (Script* script : scripts) sources.push_back(script->Source());
    coordinator_ = std::make_unique<Coordinator>(std::move(options), std::move(sources));
  }
  ~Service() { coordinator_->Stop(); }
  Coordinator* operator->() { return coordinator_.get(); }
  std::string log() {
    std::lock_guard<std::mutex> lock(mu_);
    std::string all;
    for (const std::string& line : log_) absl::StrAppend(&all, line, "\n");
    return all;
  }

 private:
  std::mutex mu_;
  std::vector<std::string> log_;
  std::unique_ptr<Coordinator> coordinator_;
};

FakeGroupOptions Manual() {
  FakeGroupOptions group;
  group.manual = true;
  return group;
}

const absl::Status kDeath = absl::UnavailableError("lost rank 1 (host b, pid 7) at step 3");

TEST(Recovery, AStreamGoesOnExactlyAfterADeath) {
  FakeGroupOptions next;
  next.kv_blocks = 20;
  next.layout = "pp=2";
  Script script({Manual(), next});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  GenerateRequest request = MakeRequest({1, 2, 3}, 40);
  request.n = 2;
  request.sampling.frequency_penalty = 0.5f;
  request.seed = 11;
  Client client, queued;
  ASSERT_TRUE(c->Submit(request, client.Callback()).ok());
  for (int i = 0; i < 3; ++i) script.group(1).RunOne();
  script.group(1).AwaitPlan();
  script.group(1).Die(kDeath);
  const GenerateRequest other = MakeRequest({9}, 4);
  ASSERT_TRUE(c->Submit(other, queued.Callback()).ok());
  const Event last = client.Wait();
  EXPECT_TRUE(last.status.ok()) << last.status;
  EXPECT_EQ(last.usage.completion_tokens, 80);
  EXPECT_EQ(client.tokens(0), Expected(request, 0));
  EXPECT_EQ(client.tokens(1), Expected(request, 1));
  EXPECT_TRUE(queued.Wait().status.ok());
  EXPECT_EQ(queued.tokens(), Expected(other));

  const CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.state, CoordinatorState::kServing);
  EXPECT_EQ(status.layout, "pp=2");
  EXPECT_EQ(status.replicas[0].group.epoch, 2u);
  EXPECT_EQ(status.replicas[0].recoveries, 1);
  ASSERT_TRUE(status.replicas[0].last_recovery.has_value());
  EXPECT_EQ(status.replicas[0].last_recovery->cause, kDeath.message());
  EXPECT_EQ(status.blocks.total, 20);
  EXPECT_EQ(status.blocks.in_use, 0);
  EXPECT_TRUE(script.group(1).stopped());
  EXPECT_THAT(c.log(), AllOf(HasSubstr("lost rank 1 (host b, pid 7)"), HasSubstr("epoch 2")));
}

TEST(Recovery, WhileThereIsNoGroupRequestsQueueAndMayBeCancelled) {
  Script script({Manual(), absl::UnavailableError("host b does not answer"), Manual()});
  CoordinatorOptions options;
  Service c({&script}, options);
  ASSERT_TRUE(c->Start().ok());
  Client running, cancelled;
  const GenerateRequest request = MakeRequest({1}, 5);
  const auto handle = c->Submit(request, running.Callback());
  ASSERT_TRUE(handle.ok());
  GenerateRequest doomed = MakeRequest({2}, 5);
  doomed.id = "doomed";
  ASSERT_TRUE(c->Submit(doomed, cancelled.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).AwaitPlan();
  script.group(1).Die(kDeath);
  EXPECT_TRUE(c->Cancel("doomed"));
  EXPECT_EQ(cancelled.Wait().status.code(), absl::StatusCode::kCancelled);
  script.group(3).AwaitPlan();
  std::thread rank([&] { script.group(3).RunUntilStopped(); });
  EXPECT_TRUE(running.Wait().status.ok());
  EXPECT_EQ(running.tokens(), Expected(request));
  const std::vector<GroupNeed> needs = script.needs();
  ASSERT_EQ(needs.size(), 3u);
  EXPECT_EQ(needs[0].failed_starts, 0);
  EXPECT_EQ(needs[1].failed_starts, 0);
  EXPECT_EQ(needs[1].cause, kDeath);
  EXPECT_EQ(needs[1].last_layout, "tp=1");
  EXPECT_EQ(needs[1].last_kv_blocks, 64);
  EXPECT_EQ(needs[2].failed_starts, 1);
  EXPECT_EQ(needs[2].cause.message(), "host b does not answer");
  c->Stop();
  rank.join();
}

TEST(Recovery, ASecondDeathWhileTheNextGroupStartsIsOneMoreTry) {
  FakeGroupOptions dies;
  dies.start_status = absl::UnavailableError("rank 0 died while it loaded");
  Script script({Manual(), dies, dies, FakeGroupOptions()});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  Client client;
  const GenerateRequest request = MakeRequest({1}, 30);
  ASSERT_TRUE(c->Submit(request, client.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).Die(kDeath);
  EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_EQ(client.tokens(), Expected(request));
  EXPECT_EQ(c->GetStatus().replicas[0].group.epoch, 4u);
}

TEST(Recovery, WaitingForAMachineIsNoTry) {
  const absl::Status waiting = absl::UnavailableError("waiting for host b");
  Script script({Manual(), waiting, waiting, waiting, waiting, FakeGroupOptions()});
  CoordinatorOptions options;
  options.restart.max_tries = 1;
  Service c({&script}, options);
  ASSERT_TRUE(c->Start().ok());
  Client client;
  const GenerateRequest request = MakeRequest({1}, 30);
  ASSERT_TRUE(c->Submit(request, client.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).Die(kDeath);
  EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_EQ(client.tokens(), Expected(request));
}

TEST(Recovery, DeathsOfAnIdleGroupThatWasUpForLongAreNotInARow) {
  Script script({Manual(), Manual(), Manual(), FakeGroupOptions()});
  std::atomic<int64_t> now{0};
  CoordinatorOptions options;
  options.restart.max_tries = 1;
  options.clock = [&] { return absl::FromUnixSeconds(now); };
  Service c({&script}, options);
  ASSERT_TRUE(c->Start().ok());
  for (const uint64_t epoch : {1, 2, 3}) {
    while (c->GetStatus().replicas[0].group.epoch != epoch) std::this_thread::yield();
    now += 100;
    script.group(epoch).Die(kDeath);
  }
  Client client;
  const GenerateRequest request = MakeRequest({1}, 3);
  ASSERT_TRUE(c->Submit(request, client.Callback()).ok());
  EXPECT_TRUE(client.Wait().status.ok());
  EXPECT_EQ(client.tokens(), Expected(request));
}

TEST(Recovery, WhoeverWatchesIsCalledWhenAGroupIsUpAndWhenNoneWillBe) {
  Script script({Manual(), Manual()});
  std::mutex mu;
  std::condition_variable called;
  Coordinator* coordinator = nullptr;
  std::vector<ReplicaStatus> seen;
  CoordinatorOptions options;
  options.replica_changed = [&] {
    ReplicaStatus status = coordinator->GetStatus().replicas[0];
    std::lock_guard<std::mutex> lock(mu);
    seen.push_back(std::move(status));
    called.notify_all();
  };
  Service c({&script}, options);
  coordinator = c.operator->();
  const auto await = [&](size_t calls) {
    std::unique_lock<std::mutex> lock(mu);
    called.wait(lock, [&] { return seen.size() >= calls; });
    return seen[calls - 1];
  };
  ASSERT_TRUE(c->Start().ok());
  EXPECT_EQ(await(1).recoveries, 0);
  script.group(1).Die(kDeath);
  EXPECT_EQ(await(2).recoveries, 1);
  EXPECT_EQ(await(2).group.epoch, 2u);
  script.group(2).Die(kDeath);
  EXPECT_EQ(await(3).state, CoordinatorState::kFailed);
  EXPECT_THAT(std::string(await(3).failure.message()), HasSubstr("no machine is left"));
}

TEST(Recovery, TheFirstStartIsTriedAgainWhereSomethingDiedNotWhereItCannotWork) {
  FakeGroupOptions died;
  died.start_status = absl::UnavailableError("lost rank 1 (host b, pid 7) while it loaded");
  Script script({died, FakeGroupOptions()});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  EXPECT_EQ(c->GetStatus().group.epoch, 2u);

  FakeGroupOptions wrong;
  wrong.start_status = absl::NotFoundError("model.safetensors: no such file");
  Script hopeless({wrong, FakeGroupOptions()});
  Service d({&hopeless});
  EXPECT_EQ(d->Start(), wrong.start_status);
  EXPECT_EQ(hopeless.needs().size(), 1u);
}

TEST(Recovery, AfterTheLastTryRequestsEndUnavailableAndSayHowFarTheyHadCome) {
  FakeGroupOptions dies;
  dies.start_status = absl::UnavailableError("rank 0 died while it loaded");
  Script script({Manual(), dies, dies, dies});
  CoordinatorOptions options;
  options.restart.max_tries = 2;
  Service c({&script}, options);
  ASSERT_TRUE(c->Start().ok());
  Client client, late;
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 30), client.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).RunOne();
  script.group(1).AwaitPlan();
  script.group(1).Die(kDeath);
  const Event last = client.Wait();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(last.status.message()),
              AllOf(HasSubstr("given up after 3"), HasSubstr("died while it loaded"),
                    HasSubstr("2 tokens")));
  EXPECT_EQ(c->Submit(MakeRequest({1}, 1), late.Callback()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(c->GetStatus().state, CoordinatorState::kFailed);
  EXPECT_EQ(script.needs().size(), 3u);
}

TEST(Recovery, WorkersThatWouldComputeOtherBitsAreNotTaken) {
  FakeGroupOptions other;
  other.op_digest = "another processor";
  Script script({Manual(), other});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  Client client;
  ASSERT_TRUE(c->Submit(MakeRequest({1}, 30), client.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).Die(kDeath);
  const Event last = client.Wait();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(last.status.message()),
              AllOf(HasSubstr("differ from those before"), HasSubstr("another processor")));
}

TEST(Recovery, WhatTheNextMemoryCanNeverHoldEndsAndTheRestGoesOn) {
  FakeGroupOptions small;
  small.kv_blocks = 2;
  Script script({Manual(), small});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  Client large, fits;
  const GenerateRequest short_one = MakeRequest({1}, 30);
  ASSERT_TRUE(c->Submit(MakeRequest({7}, 100), large.Callback()).ok());
  ASSERT_TRUE(c->Submit(short_one, fits.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).Die(kDeath);
  EXPECT_EQ(large.Wait().status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(fits.Wait().status.ok());
  EXPECT_EQ(fits.tokens(), Expected(short_one));
}

TEST(Recovery, ARequestThatKillsItsWorkersTwiceEndsAndItsNeighboursDoNot) {
  Script script({Manual(), Manual(), Manual(), FakeGroupOptions()});
  Service c({&script});
  ASSERT_TRUE(c->Start().ok());
  Client poison, good;
  const GenerateRequest fine = MakeRequest({1}, 10);
  const auto holds_poison = [](const scheduler::StepPlan& plan) {
    for (const auto& step : plan.sequences) {
      if (!step.token_ids.empty() && step.token_ids[0] == 666) return true;
    }
    return false;
  };
  ASSERT_TRUE(c->Submit(MakeRequest({666}, 10), poison.Callback()).ok());
  ASSERT_TRUE(c->Submit(fine, good.Callback()).ok());
  for (const uint64_t epoch : {1, 2, 3}) {
    while (true) {
      script.group(epoch).AwaitPlan();
      const bool kills = holds_poison(script.group(epoch).front());
      if (!kills) {
        script.group(epoch).RunOne();
        continue;
      }
      script.group(epoch).Die(kDeath);
      break;
    }
    if (poison.done()) break;
  }
  const Event last = poison.Wait();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(last.status.message()), HasSubstr("not tried again"));
  std::thread rank([&] { script.group(3).RunUntilStopped(); });
  EXPECT_TRUE(good.Wait().status.ok());
  EXPECT_EQ(good.tokens(), Expected(fine));
  c->Stop();
  rank.join();
}

TEST(Recovery, StopEndsAReplicaWithoutAGroup) {
  CoordinatorOptions options;
  options.restart.first_pause = options.restart.longest_pause = absl::Hours(1);
  Script script({Manual(), absl::UnavailableError("host b does not answer")});
  options.limits.vocab_size = kVocab;
  options.limits.max_context = 400;
  std::vector<std::unique_ptr<GroupSource>> sources;
  sources.push_back(script.Source());
  Coordinator c(std::move(options), std::move(sources));
  ASSERT_TRUE(c.Start().ok());
  Client client;
  ASSERT_TRUE(c.Submit(MakeRequest({1}, 30), client.Callback()).ok());
  script.group(1).RunOne();
  script.group(1).Die(kDeath);
  c.Stop();
  const Event last = client.Wait();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(last.status.message()),
              AllOf(HasSubstr("stopping"), HasSubstr("1 token")));
}

TEST(Recovery, ARequestWhoseReplicaIsLostGoesOnWithAnother) {
  Script first({Manual()});
  Script second({Manual()});
  Service c({&first, &second});
  ASSERT_TRUE(c->Start().ok());
  Client moved, queued, cancelled, other;
  GenerateRequest a = MakeRequest({1}, 20);
  a.n = 2;
  a.sampling.presence_penalty = 0.5f;
  ASSERT_TRUE(c->Submit(a, moved.Callback()).ok());
  const GenerateRequest b = MakeRequest({2}, 20);
  ASSERT_TRUE(c->Submit(b, other.Callback()).ok());
  GenerateRequest doomed = MakeRequest({3}, 20);
  doomed.id = "doomed";
  ASSERT_TRUE(c->Submit(doomed, cancelled.Callback()).ok());
  for (int i = 0; i < 3; ++i) first.group(1).RunOne();
  first.group(1).AwaitPlan();
  first.group(1).Die(kDeath);
  // Whichever replica has it by now.
  EXPECT_TRUE(c->Cancel("doomed"));
  std::thread rank([&] { second.group(1).RunUntilStopped(); });
  EXPECT_EQ(cancelled.Wait().status.code(), absl::StatusCode::kCancelled);
  const Event last = moved.Wait();
  EXPECT_TRUE(last.status.ok()) << last.status;
  EXPECT_EQ(last.usage.completion_tokens, 40);
  EXPECT_EQ(moved.tokens(0), Expected(a, 0));
  EXPECT_EQ(moved.tokens(1), Expected(a, 1));
  EXPECT_TRUE(other.Wait().status.ok());
  EXPECT_EQ(other.tokens(), Expected(b));
  const CoordinatorStatus status = c->GetStatus();
  EXPECT_EQ(status.state, CoordinatorState::kServing);
  EXPECT_EQ(status.replicas[0].state, CoordinatorState::kFailed);
  EXPECT_EQ(status.reckoned_tokens, 0);
  EXPECT_EQ(status.queued_requests, 0);
  EXPECT_TRUE(c->Submit(MakeRequest({1}, 1), queued.Callback()).ok());
  EXPECT_TRUE(queued.Wait().status.ok());
  c->Stop();
  rank.join();
}

TEST(Recovery, AnotherReplicaDoesNotNotice) {
  Script first({Manual(), Manual()});
  Script second({Manual()});
  Service c({&first, &second});
  ASSERT_TRUE(c->Start().ok());
  Client dying, other, routed;
  const GenerateRequest a = MakeRequest({1}, 20);
  const GenerateRequest b = MakeRequest({2}, 20);
  ASSERT_TRUE(c->Submit(a, dying.Callback()).ok());
  ASSERT_TRUE(c->Submit(b, other.Callback()).ok());
  first.group(1).RunOne();
  first.group(1).Die(kDeath);
  first.group(2).AwaitPlan();  // has recovered, but answers nothing yet
  std::thread rank([&] { second.group(1).RunUntilStopped(); });
  EXPECT_TRUE(other.Wait().status.ok());
  EXPECT_EQ(other.tokens(), Expected(b));
  EXPECT_FALSE(dying.done());
  std::thread again([&] { first.group(2).RunUntilStopped(); });
  EXPECT_TRUE(dying.Wait().status.ok());
  EXPECT_EQ(dying.tokens(), Expected(a));
  EXPECT_EQ(c->GetStatus().layout, "dp=2");
  c->Stop();
  rank.join();
  again.join();
}

}  // namespace
}  // namespace phalanx::coordinator
