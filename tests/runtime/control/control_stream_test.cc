// ControlServer, RemoteWorkerGroup and WorkerClient against each other over loopback; ranks are
// threads or raw clients of this process.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/phalanx/v1/control.grpc.pb.h"
#include "runtime/control/control_server.h"
#include "runtime/control/remote_worker_group.h"
#include "runtime/control/worker_client.h"
#include "tests/runtime/control/control_fixture.h"

namespace phalanx::control {
namespace {

using ::testing::HasSubstr;

TEST_F(ControlStreamTest, GroupInfoHoldsWhatTheRanksSaid) {
  StartTwo(GroupOptions(2));
  EXPECT_EQ(info_.epoch, 7u);
  EXPECT_EQ(info_.layout, "tp=2");
  ASSERT_EQ(info_.ranks.size(), 2u);
  EXPECT_EQ(info_.ranks[1].rank, 1);
  EXPECT_EQ(info_.ranks[1].host, "host1");
  EXPECT_EQ(info_.ranks[1].pid, 1001);
  EXPECT_EQ(info_.ranks[1].device, "cpu portable");
  EXPECT_EQ(info_.ranks[1].op_digest, "ops");
  EXPECT_EQ(info_.ranks[1].checkpoint_digest, "weights");
  EXPECT_EQ(info_.ranks[1].weight_bytes, 101);
  EXPECT_EQ(info_.kv_blocks(), 49);
  EXPECT_EQ(clients_[0]->epoch(), 7u);
}

TEST_F(ControlStreamTest, PlansAndResultsPassInOrder) {
  StartTwo(GroupOptions(2));
  constexpr int kSteps = 200;
  std::thread lead([&] {
    for (int i = 1; i <= kSteps; ++i) {
      auto plan = clients_[0]->NextPlan();
      ASSERT_TRUE(plan.ok() && plan->has_value());
      EXPECT_EQ(**plan, Plan(i));
      ASSERT_TRUE(clients_[0]->SendResult(Result(i)).ok());
    }
  });
  for (int i = 1; i <= kSteps; ++i) ASSERT_TRUE(group_->Submit(Plan(i)).ok());
  for (int i = 1; i <= kSteps; ++i) {
    auto result = results_.Pop();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*result, Result(i));
  }
  lead.join();
}

TEST_F(ControlStreamTest, LargePlanPasses) {
  StartTwo(GroupOptions(2));
  scheduler::StepPlan plan = Plan(1);
  plan.sequences[0].history.assign(3'000'000, 123456);
  ASSERT_TRUE(group_->Submit(plan).ok());
  auto got = clients_[0]->NextPlan();
  ASSERT_TRUE(got.ok() && got->has_value());
  EXPECT_EQ(**got, plan);
}

TEST_F(ControlStreamTest, StopTellsEveryRankToLeaveAndEndsTheProcesses) {
  bool terminated = false;
  RemoteGroupOptions options = GroupOptions(2);
  options.terminate = [&](bool fence) {
    terminated = true;
    EXPECT_FALSE(fence);
  };
  StartTwo(std::move(options));
  std::vector<std::thread> ranks;
  for (auto& client : clients_) {
    ranks.emplace_back([&client] {
      auto plan = client->NextPlan();
      ASSERT_TRUE(plan.ok());
      EXPECT_FALSE(plan->has_value());
      client.reset();
    });
  }
  group_->Stop();
  for (std::thread& rank : ranks) rank.join();
  EXPECT_TRUE(terminated);
  EXPECT_EQ(results_.size(), 0u);
  EXPECT_EQ(group_->Submit(Plan(1)).code(), absl::StatusCode::kUnavailable);
  group_->Stop();
}

TEST_F(ControlStreamTest, StopBreaksTheStreamOfARankThatStays) {
  RemoteGroupOptions options = GroupOptions(1);
  options.stop_timeout = absl::Milliseconds(50);
  auto started = StartGroup(std::move(options));
  auto client = Join(0, 1);
  ASSERT_TRUE(client->ReportReady(1, 1, 1).ok());
  ASSERT_TRUE(started.get().ok());
  group_->Stop();  // the client doesn't leave
  EXPECT_FALSE((*client->NextPlan()).has_value());
}

TEST_F(ControlStreamTest, StopDuringStartCancelsIt) {
  auto started = StartGroup(GroupOptions(2));
  auto client = Join(0, 2);
  client.reset();
  group_->Stop();
  EXPECT_EQ(started.get().status().code(), absl::StatusCode::kCancelled);
}

TEST_F(ControlStreamTest, WrongTokenIsRefused) {
  auto started = StartGroup(GroupOptions(1));
  WorkerClientOptions options = ClientOptions();
  options.token = "guess";
  const absl::Status status = WorkerClient::Connect(options, Identity(0, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(status), HasSubstr("token"));
  EXPECT_THAT(Text(status), ::testing::Not(HasSubstr("secret")));
  group_->Stop();
}

TEST_F(ControlStreamTest, OtherProtocolOrBuildIsRefusedWithBothSides) {
  auto started = StartGroup(GroupOptions(1));
  WorkerIdentity identity = Identity(0, 1);
  identity.protocol_version = 99;
  EXPECT_THAT(
      Text(RefusalOf(identity)),
      HasSubstr(absl::StrCat("control protocol 99, the coordinator speaks ", kProtocolVersion)));
  identity = Identity(0, 1);
  identity.build_version = "2.0";
  EXPECT_THAT(Text(RefusalOf(identity)),
              HasSubstr("build \"2.0\", the coordinator is build \"1.0\""));
  group_->Stop();
}

TEST_F(ControlStreamTest, WrongNumberOfRanksIsRefusedNamingTheRightOne) {
  auto started = StartGroup(GroupOptions(2));
  EXPECT_THAT(Text(RefusalOf(Identity(0, 3))),
              ::testing::AllOf(HasSubstr("3 ranks"), HasSubstr("tp=2"), HasSubstr("-np 2")));
  EXPECT_THAT(Text(RefusalOf(Identity(2, 2))), HasSubstr("rank 2 is not in 0 .. 1"));
  group_->Stop();
}

TEST_F(ControlStreamTest, DuplicateRankIsRefusedNamingTheFirst) {
  auto started = StartGroup(GroupOptions(2));
  auto first = Join(0, 2);
  EXPECT_THAT(Text(RefusalOf(Identity(0, 2))),
              HasSubstr("rank 0 is already there: host host0, pid 1000"));
  first.reset();
  group_->Stop();
}

TEST_F(ControlStreamTest, RanksThatDifferAreRefusedWithBothNames) {
  RemoteGroupOptions options = GroupOptions(2);
  options.checkpoint_digest = "weights";
  options.profile = "exact";
  options.max_step_tokens = 512;
  options.max_context = 2048;
  auto started = StartGroup(std::move(options));
  auto first = Join(0, 2);

  WorkerIdentity identity = Identity(1, 2);
  identity.op_digest = "other ops";
  EXPECT_THAT(
      Text(RefusalOf(identity)),
      ::testing::AllOf(HasSubstr("rank 0 (host host0, pid 1000, cpu portable) has op digest ops"),
                       HasSubstr("rank 1 (host host1, pid 1001, cpu portable) has other ops")));
  identity = Identity(1, 2);
  identity.checkpoint_digest = "stale";
  identity.profile = "another model's types";  // would be a riddle where the model is the reason
  EXPECT_THAT(Text(RefusalOf(identity)),
              HasSubstr("checkpoint digest is stale, that of this coordinator is weights"));
  identity = Identity(1, 2);
  identity.profile = "fast";
  EXPECT_THAT(Text(RefusalOf(identity)), HasSubstr("\"fast\""));
  identity = Identity(1, 2);
  identity.layout = "sp=2";
  EXPECT_THAT(Text(RefusalOf(identity)), HasSubstr("layout is sp=2"));
  // Sized for less than what will come; for more is no harm.
  identity = Identity(1, 2);
  identity.max_step_tokens = 511;
  EXPECT_THAT(Text(RefusalOf(identity)), HasSubstr("it takes steps of up to 511 tokens, this "
                                                   "coordinator makes them of up to 512; start the "
                                                   "workers with --max-step-tokens 512"));
  identity.max_step_tokens = 1024;
  identity.max_context = 64;
  EXPECT_THAT(Text(RefusalOf(identity)), HasSubstr("--max-context 2048"));

  // None of this harmed the group.
  auto second = Join(1, 2);
  ASSERT_TRUE(first->ReportReady(1, 1, 1).ok());
  ASSERT_TRUE(second->ReportReady(1, 1, 1).ok());
  EXPECT_TRUE(started.get().ok());
  first.reset();
  second.reset();
}

TEST_F(ControlStreamTest, RanksThatReadOtherWeightsDoNotServeTogether) {
  auto started = StartGroup(GroupOptions(2));
  auto first = Join(0, 2);
  auto second = Join(1, 2);
  ASSERT_TRUE(first->ReportReady(1, 1, 1, "aaaa").ok());
  ASSERT_TRUE(second->ReportReady(1, 1, 1, "bbbb").ok());
  const absl::Status status = started.get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      Text(status),
      ::testing::AllOf(HasSubstr("rank 0 (host host0, pid 1000"), HasSubstr("content digest aaaa"),
                       HasSubstr("rank 1 (host host1, pid 1001"), HasSubstr("has bbbb")));
  first.reset();
  second.reset();
}

TEST_F(ControlStreamTest, ARunningGroupRefusesOneMoreRank) {
  StartTwo(GroupOptions(2));
  EXPECT_THAT(Text(RefusalOf(Identity(1, 2))), HasSubstr("already there"));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  EXPECT_TRUE((*clients_[0]->NextPlan()).has_value());
}

TEST_F(ControlStreamTest, StartTimeoutNamesTheMissingRanksAndTheLastRefusal) {
  RemoteGroupOptions options = GroupOptions(3);
  options.address = "node7:9000";
  options.start_timeout = absl::Milliseconds(300);
  // Both in time: the launch hook runs inside Start.
  std::unique_ptr<WorkerClient> client;
  options.launch = [&] {
    client = Join(0, 3);
    WorkerIdentity identity = Identity(1, 3);
    identity.build_version = "2.0";
    EXPECT_FALSE(RefusalOf(identity).ok());
    return absl::OkStatus();
  };
  const absl::Status status = StartGroup(std::move(options)).get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(status), HasSubstr("2 of 3 ranks have not registered at node7:9000 (1, 2)"));
  EXPECT_THAT(Text(status), HasSubstr("still loading: rank 0 (host host0, pid 1000)"));
  EXPECT_THAT(Text(status), HasSubstr("refused rank 1"));
  client.reset();
}

TEST_F(ControlStreamTest, DeadLauncherEndsTheStart) {
  RemoteGroupOptions options = GroupOptions(2);
  options.liveness = [] { return absl::UnavailableError("mpirun exited with code 1: no slots"); };
  const absl::Status status = StartGroup(std::move(options)).get().status();
  // Nothing of it had begun: it would only end so once more.
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Text(status), HasSubstr("mpirun exited with code 1: no slots"));
}

TEST_F(ControlStreamTest, FailingLaunchIsReturnedAsItIs) {
  RemoteGroupOptions options = GroupOptions(2);
  options.launch = [] { return absl::NotFoundError("mpirun: no such file"); };
  EXPECT_EQ(StartGroup(std::move(options)).get().status(),
            absl::NotFoundError("mpirun: no such file"));
}

TEST_F(ControlStreamTest, ErrorWhileLoadingEndsTheStartWithItsOwnCode) {
  auto started = StartGroup(GroupOptions(2));
  auto lead = Join(0, 2);
  auto other = Join(1, 2);
  other->SendError(absl::InvalidArgumentError("model.safetensors: truncated"), 0);
  const absl::Status status = started.get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Text(status), "rank 1 (host host1, pid 1001) failed: model.safetensors: truncated");
  lead.reset();
  other.reset();
}

TEST_F(ControlStreamTest, ARankThatLeavesWhileLoadingMayComeAgain) {
  auto started = StartGroup(GroupOptions(1));
  Join(0, 1).reset();
  // The coordinator has seen it leave when the farewell has been answered.
  auto again = Join(0, 1);
  ASSERT_TRUE(again->ReportReady(1, 1, 1).ok());
  EXPECT_TRUE(started.get().ok());
  again.reset();
}

TEST_F(ControlStreamTest, ErrorAtAStepKillsTheGroupOnceNamingRankAndStep) {
  StartTwo(GroupOptions(2));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  clients_[1]->SendError(absl::AbortedError("all_reduce 5: peer 0 is missing"), 1);
  clients_[0]->SendError(absl::AbortedError("aborted"), 1);
  const auto result = results_.Pop();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Text(result.status()),
            "rank 1 (host host1, pid 1001) failed at step 1: all_reduce 5: peer 0 is missing");
  EXPECT_EQ(group_->Submit(Plan(2)).code(), absl::StatusCode::kUnavailable);
  group_->Stop();
  EXPECT_EQ(results_.size(), 0u);
}

TEST_F(ControlStreamTest, BrokenStreamKillsTheGroupNamingRankHostPidAndStep) {
  RemoteGroupOptions options = GroupOptions(2);
  options.stop_timeout = absl::Milliseconds(50);  // rank 0 stays
  StartTwo(std::move(options));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  clients_[1].reset();
  const auto result = results_.Pop();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(result.status()), HasSubstr("lost rank 1 (host host1, pid 1001) at step 1"));
  group_->Stop();
  EXPECT_EQ(results_.size(), 0u);
}

TEST_F(ControlStreamTest, DeadLauncherKillsARunningGroup) {
  std::atomic<bool> alive{true};
  RemoteGroupOptions options = GroupOptions(2);
  options.liveness = [&] {
    return alive ? absl::OkStatus() : absl::UnavailableError("mpirun was killed by signal 9");
  };
  StartTwo(std::move(options));
  alive = false;
  EXPECT_EQ(results_.Pop().status(), absl::UnavailableError("mpirun was killed by signal 9"));
}

TEST_F(ControlStreamTest, AHangIsNamedByEveryRanksLastCollective) {
  RemoteGroupOptions options = GroupOptions(1);
  options.step_timeout = absl::Milliseconds(1);
  auto started = StartGroup(std::move(options));
  WorkerClientOptions client_options = ClientOptions();
  client_options.collective_number = [] { return 42; };
  auto client = WorkerClient::Connect(client_options, Identity(0, 1));
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->ReportReady(1, 1, 1).ok());
  ASSERT_TRUE(started.get().ok());
  (*client)->NoteStep(6);
  while (group_->Health()[0].collective != 42 || group_->Health()[0].step != 6) {
    std::this_thread::yield();
  }
  ASSERT_TRUE(group_->Submit(Plan(7)).ok());
  const auto result = results_.Pop();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(result.status()), HasSubstr("step 7 gave no result within 1ms"));
  EXPECT_THAT(Text(result.status()),
              HasSubstr("rank 0 (host host0, pid 1000): step 6, collective 42"));
}

TEST_F(ControlStreamTest, AResultOutOfOrderKillsTheGroup) {
  StartTwo(GroupOptions(2));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  ASSERT_TRUE(clients_[0]->SendResult(Result(2)).ok());
  const auto result = results_.Pop();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(result.status()), HasSubstr("sent the result of step 2 where that of step 1"));
}

TEST_F(ControlStreamTest, ResultsComeFromTheRankThatSamples) {
  RemoteGroupOptions options = GroupOptions(2);
  options.result_rank = 1;
  StartTwo(std::move(options));
  // The lead takes three plans before the other rank is done with the first.
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(group_->Submit(Plan(i)).ok());
  for (int i = 1; i <= 3; ++i) EXPECT_EQ((*clients_[0]->NextPlan())->number, i);
  for (int i = 1; i <= 3; ++i) {
    scheduler::StepResult result = Result(i);
    result.expert_tokens = {5, 0, i};
    ASSERT_TRUE(clients_[1]->SendResult(result).ok());
    EXPECT_EQ(*results_.Pop(), result);
  }
  ASSERT_TRUE(group_->Submit(Plan(4)).ok());
  ASSERT_TRUE(clients_[0]->SendResult(Result(4)).ok());
  const auto result = results_.Pop();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Text(result.status()),
            "rank 0 (host host0, pid 1000) sent the result of step 4, but results come from rank 1 "
            "alone");
}

TEST_F(ControlStreamTest, AResultRankThatIsNoRankIsRefused) {
  RemoteGroupOptions options = GroupOptions(2);
  options.result_rank = 2;
  EXPECT_EQ(StartGroup(std::move(options)).get().status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlStreamTest, AHangNamesTheOldestOfSeveralPlansAndWhereEveryRankIs) {
  RemoteGroupOptions options = GroupOptions(2);
  options.result_rank = 1;
  options.step_timeout = absl::Milliseconds(1);
  auto started = StartGroup(std::move(options));
  for (int rank = 0; rank < 2; ++rank) {
    WorkerClientOptions client_options = ClientOptions();
    client_options.collective_number = [rank] { return 40 + rank; };
    auto client = WorkerClient::Connect(client_options, Identity(rank, 2));
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE((*client)->ReportReady(1, 1, 1).ok());
    clients_.push_back(*std::move(client));
  }
  ASSERT_TRUE(started.get().ok());
  clients_[0]->NoteStep(3);
  clients_[1]->NoteStep(2);
  while (group_->Health()[0].step != 3 || group_->Health()[1].step != 2) {
    std::this_thread::yield();
  }
  for (int i = 2; i <= 3; ++i) ASSERT_TRUE(group_->Submit(Plan(i)).ok());
  const auto result = results_.Pop();
  EXPECT_THAT(Text(result.status()),
              ::testing::AllOf(HasSubstr("step 2 gave no result within 1ms"),
                               HasSubstr("rank 0 (host host0, pid 1000): step 3, collective 40"),
                               HasSubstr("rank 1 (host host1, pid 1001): step 2, collective 41")));
}

TEST_F(ControlStreamTest, EveryReplicaHasItsOwnRanks) {
  auto started = StartGroup(GroupOptions(1));
  RemoteGroupOptions options = GroupOptions(1);
  options.replica = 1;
  Queue<absl::StatusOr<scheduler::StepResult>> results;
  RemoteWorkerGroup other(*server_, std::move(options));
  auto other_started = std::async(std::launch::async, [&] {
    return other.Start(
        [&](absl::StatusOr<scheduler::StepResult> r) { results.Push(std::move(r)); });
  });
  WorkerIdentity identity = Identity(0, 1);
  identity.replica = 1;
  identity.host = "elsewhere";
  auto second = WorkerClient::Connect(ClientOptions(), identity);
  ASSERT_TRUE(second.ok()) << second.status();
  auto first = Join(0, 1);
  ASSERT_TRUE((*second)->ReportReady(1, 1, 7).ok());
  ASSERT_TRUE(first->ReportReady(1, 1, 5).ok());
  EXPECT_EQ(started.get()->kv_blocks(), 5);
  const auto info = other_started.get();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->kv_blocks(), 7);
  EXPECT_EQ(info->ranks[0].host, "elsewhere");
  EXPECT_EQ(other.Health()[0].replica, 1);

  ASSERT_TRUE(other.Submit(Plan(1)).ok());
  EXPECT_EQ((*(*second)->NextPlan())->number, 1u);
  ASSERT_TRUE((*second)->SendResult(Result(1)).ok());
  EXPECT_EQ(*results.Pop(), Result(1));
  // One's end is not the other's.
  second->reset();
  EXPECT_FALSE(results.Pop().ok());
  other.Stop();
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  EXPECT_EQ((*first->NextPlan())->number, 1u);
  ASSERT_TRUE(first->SendResult(Result(1)).ok());
  EXPECT_EQ(*results_.Pop(), Result(1));
  EXPECT_EQ(results_.size(), 0u);
  first.reset();
}

TEST_F(ControlStreamTest, ARankOfAReplicaThatIsNotThereIsRefused) {
  WorkerIdentity identity = Identity(0, 1);
  identity.replica = 2;
  EXPECT_THAT(Text(RefusalOf(identity)),
              HasSubstr("it is of replica 2, this coordinator has replicas 0 to 1"));
}

TEST_F(ControlStreamTest, AResultOfAnotherEpochIsDiscarded) {
  StartTwo(GroupOptions(2));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  scheduler::StepResult stale = Result(1);
  stale.epoch = 6;
  ASSERT_TRUE(clients_[0]->SendResult(stale).ok());
  ASSERT_TRUE(clients_[0]->SendResult(Result(1)).ok());
  EXPECT_EQ(*results_.Pop(), Result(1));
}

TEST_F(ControlStreamTest, APlanOfAnotherEpochIsNotSubmitted) {
  StartTwo(GroupOptions(2));
  scheduler::StepPlan plan = Plan(1);
  plan.epoch = 8;
  EXPECT_EQ(group_->Submit(plan).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlStreamTest, LoadProgressIsSummedOverRanks) {
  Queue<std::pair<int64_t, int64_t>> progress;
  RemoteGroupOptions options = GroupOptions(2);
  options.on_progress = [&](int64_t loaded, int64_t total) { progress.Push({loaded, total}); };
  auto started = StartGroup(std::move(options));
  auto first = Join(0, 2);
  auto second = Join(1, 2);
  first->ReportProgress(10, 10);
  EXPECT_EQ(progress.Pop(), std::make_pair(int64_t{10}, int64_t{10}));
  second->ReportProgress(30, 30);
  EXPECT_EQ(progress.Pop(), std::make_pair(int64_t{40}, int64_t{40}));
  first.reset();
  second.reset();
  group_->Stop();
}

TEST_F(ControlStreamTest, ARankThatIsEarlyWaitsForTheGroup) {
  auto joined = std::async(std::launch::async, [this] { return Join(0, 1); });
  auto started = StartGroup(GroupOptions(1));
  auto client = joined.get();
  ASSERT_TRUE(client->ReportReady(1, 1, 1).ok());
  EXPECT_TRUE(started.get().ok());
  client.reset();
}

TEST_F(ControlStreamTest, ARankThatIsEarlierThanTheServerWaitsForIt) {
  address_ = server_->address();
  server_.reset();
  auto joined = std::async(std::launch::async, [options = ClientOptions()] {
    return WorkerClient::Connect(options, Identity(0, 1));
  });
  Listen(address_);
  auto started = StartGroup(GroupOptions(1));
  auto client = joined.get();
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->ReportReady(1, 1, 1).ok());
  EXPECT_TRUE(started.get().ok());
  client->reset();
}

TEST_F(ControlStreamTest, NobodyThereIsUnavailableNamingTheAddress) {
  address_ = server_->address();
  server_.reset();
  WorkerClientOptions options = ClientOptions();
  options.connect_timeout = absl::Milliseconds(100);
  const absl::Status status = WorkerClient::Connect(options, Identity(0, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status), HasSubstr(address_));
}

TEST_F(ControlStreamTest, NoGroupUntilTheDeadlineSaysSo) {
  WorkerClientOptions options = ClientOptions();
  options.connect_timeout = absl::Milliseconds(500);
  const absl::Status status = WorkerClient::Connect(options, Identity(0, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(status), HasSubstr("not waiting for workers yet"));
}

TEST_F(ControlStreamTest, AServerHoldsOneGroupOfAReplicaAtATime) {
  StartTwo(GroupOptions(2));
  RemoteWorkerGroup second(*server_, GroupOptions(2));
  EXPECT_EQ(second.Start([](absl::StatusOr<scheduler::StepResult>) {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ControlStreamTest, AfterAGroupANewOneMayCome) {
  StartTwo(GroupOptions(2));
  clients_.clear();
  EXPECT_FALSE(results_.Pop().ok());
  group_->Stop();
  RemoteGroupOptions options = GroupOptions(2);
  StartTwo(std::move(options));
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  EXPECT_TRUE((*clients_[0]->NextPlan()).has_value());
}

TEST_F(ControlStreamTest, PortInUseIsNamed) {
  ControlServerOptions options;
  options.listen = server_->address();
  options.token = "secret";
  const absl::Status status = ControlServer::Listen(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(status), HasSubstr(server_->address()));
}

TEST_F(ControlStreamTest, AnEmptyTokenIsRefused) {
  EXPECT_EQ(ControlServer::Listen(ControlServerOptions()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Accepts any rank and says nothing more; can vanish without a farewell, as a killed coordinator.
class VanishingCoordinator final : public v1::Control::Service {
 public:
  VanishingCoordinator() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  void Vanish() { server_->Shutdown(std::chrono::system_clock::now()); }

 private:
  grpc::Status Connect(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>* stream) override {
    v1::WorkerMessage message;
    v1::CoordinatorMessage accepted;
    accepted.mutable_accepted()->set_epoch(1);
    if (stream->Read(&message)) stream->Write(accepted);
    while (stream->Read(&message)) {
    }
    return grpc::Status::OK;
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST(WorkerClientTest, ACoordinatorThatVanishesIsReportedOnce) {
  VanishingCoordinator coordinator;
  Queue<absl::Status> told;
  WorkerClientOptions options;
  options.coordinator = coordinator.address();
  options.token = "secret";
  options.on_disconnect = [&](const absl::Status& status) { told.Push(status); };
  auto client = WorkerClient::Connect(options, WorkerIdentity());
  ASSERT_TRUE(client.ok()) << client.status();
  coordinator.Vanish();
  const absl::Status status = told.Pop();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status), HasSubstr(coordinator.address()));
  EXPECT_EQ((*client)->NextPlan().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE((*client)->SendResult(scheduler::StepResult()).ok());
  client->reset();
  EXPECT_EQ(told.size(), 0u);
}

TEST(WorkerClientTest, LeavingByItselfIsNoDisconnect) {
  VanishingCoordinator coordinator;
  Queue<absl::Status> told;
  WorkerClientOptions options;
  options.coordinator = coordinator.address();
  options.token = "secret";
  options.on_disconnect = [&](const absl::Status& status) { told.Push(status); };
  auto client = WorkerClient::Connect(options, WorkerIdentity());
  ASSERT_TRUE(client.ok()) << client.status();
  client->reset();
  EXPECT_EQ(told.size(), 0u);
}

}  // namespace
}  // namespace phalanx::control
