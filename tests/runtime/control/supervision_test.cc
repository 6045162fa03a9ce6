// How a worker group finds out that it is dead, what it says, and that nothing of it is heard
// afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <future>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/runtime/control/child_processes.h"
#include "tests/runtime/control/control_fixture.h"

namespace phalanx::control {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class SupervisionTest : public ChildProcesses, public ControlStreamTest {
 protected:
  // A rank of two that is process `pid` of this host, started by `launcher`; ready.
  void JoinAs(int rank, pid_t pid, pid_t launcher) {
    WorkerIdentity identity = Identity(rank, 2);
    identity.host = Host();
    identity.pid = pid;
    identity.launcher_pid = launcher;
    auto client = WorkerClient::Connect(ClientOptions(), identity);
    ASSERT_TRUE(client.ok()) << client.status();
    clients_.push_back(*std::move(client));
    ASSERT_TRUE(clients_.back()->ReportReady(1, 1, 1).ok());
  }

  // Two ranks that have said in a heartbeat that they are in step 6, rank r in collective 40 + r.
  void StartTwoInStepSix(RemoteGroupOptions options) {
    auto started = StartGroup(std::move(options));
    for (int rank = 0; rank < 2; ++rank) {
      WorkerClientOptions client = ClientOptions();
      client.collective_number = [rank] { return 40 + rank; };
      clients_.push_back(Join(rank, 2, client));
      clients_.back()->NoteStep(6);
      ASSERT_TRUE(clients_.back()->ReportReady(1, 1, 1).ok());
    }
    ASSERT_TRUE(started.get().ok());
    const auto heard = [&](int rank) {
      const std::vector<RankHealth> health = group_->Health();
      return health[rank].step == 6 && health[rank].collective == 40u + rank;
    };
    while (!heard(0) || !heard(1)) std::this_thread::yield();
  }
};

TEST_F(SupervisionTest, ALostRankIsNamedWithItsLastStepAndCollective) {
  StartTwoInStepSix(GroupOptions(2));
  ASSERT_TRUE(group_->Submit(Plan(7)).ok());
  clients_[1].reset();
  EXPECT_THAT(Text(results_.Pop().status()),
              HasSubstr("lost rank 1 (host host1, pid 1001) at step 7 (last heard of in step 6, "
                        "collective 41)"));
}

TEST_F(SupervisionTest, APeersReportOfADeathWaitsForTheEndOfTheDead) {
  RemoteGroupOptions options = GroupOptions(2);
  options.naming_patience = absl::Hours(1);
  auto started = StartGroup(std::move(options));
  const pid_t dying = Child();
  JoinAs(0, Child(), 0);
  JoinAs(1, dying, 0);
  ASSERT_TRUE(started.get().ok());
  // Most likely before the end of rank 1, at the latest right after it.
  auto reported = std::async(std::launch::async, [&] {
    clients_[0]->SendError(absl::UnavailableError("rank 1 died"), 7);
  });
  Kill(dying);
  EXPECT_THAT(Text(results_.Pop().status()),
              HasSubstr(absl::StrCat("lost rank 1 (host ", Host(), ", pid ", dying, ")")));
  reported.get();
}

TEST_F(SupervisionTest, ALauncherThatDiedBeforeItsRanksIsNamedInTheirPlace) {
  RemoteGroupOptions options = GroupOptions(2);
  options.launch = [] { return absl::OkStatus(); };
  auto started = StartGroup(std::move(options));
  const pid_t launcher = Child();
  const std::array<pid_t, 2> pids = {Child(), Child()};
  for (int rank = 0; rank < 2; ++rank) JoinAs(rank, pids[rank], launcher);
  ASSERT_TRUE(started.get().ok());
  Kill(launcher);
  Kill(pids[1]);
  clients_[1].reset();
  EXPECT_THAT(Text(results_.Pop().status()),
              HasSubstr(absl::StrCat("the launcher (host ", Host(), ", pid ", launcher, ")")));
}

TEST_F(SupervisionTest, AShellThatRanksWereStartedFromByHandMayEnd) {
  auto started = StartGroup(GroupOptions(2));
  const pid_t shell = Child();
  const std::array<pid_t, 2> pids = {Child(), Child()};
  for (int rank = 0; rank < 2; ++rank) JoinAs(rank, pids[rank], shell);
  ASSERT_TRUE(started.get().ok());
  Kill(shell);
  Kill(pids[1]);
  clients_[1].reset();
  EXPECT_THAT(Text(results_.Pop().status()), HasSubstr("lost rank 1"));
}

TEST_F(SupervisionTest, ASilentRankIsFoundAndNamed) {
  RemoteGroupOptions options = GroupOptions(2);
  options.heartbeat_timeout = absl::Milliseconds(1);
  auto started = StartGroup(std::move(options));
  WorkerClientOptions silent = ClientOptions();
  silent.heartbeat_interval = absl::Hours(1);
  clients_.push_back(Join(0, 2, silent));
  const absl::Status status = started.get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status),
              AllOf(HasSubstr("rank 0 (host host0, pid 1000) was not heard of for 1ms"),
                    HasSubstr("while the group started")));
}

TEST_F(SupervisionTest, ASilentRankEndsARunningGroupToo) {
  RemoteGroupOptions options = GroupOptions(1);
  options.heartbeat_timeout = absl::Milliseconds(400);
  auto started = StartGroup(std::move(options));
  WorkerClientOptions silent = ClientOptions();
  silent.heartbeat_interval = absl::Hours(1);
  clients_.push_back(Join(0, 1, silent));
  ASSERT_TRUE(clients_[0]->ReportReady(1, 1, 1).ok());
  ASSERT_TRUE(started.get().ok());
  EXPECT_THAT(Text(results_.Pop().status()),
              AllOf(HasSubstr("rank 0 (host host0, pid 1000) was not heard of for 400ms, last in "
                              "step 0, collective 0"),
                    HasSubstr("--heartbeat-timeout")));
}

TEST_F(SupervisionTest, RanksThatWaitForEachOtherAreAHangNamingTheOneBehindFirst) {
  RemoteGroupOptions options = GroupOptions(2);
  options.hang_timeout = absl::Milliseconds(1);
  StartTwoInStepSix(std::move(options));
  ASSERT_TRUE(group_->Submit(Plan(7)).ok());
  EXPECT_THAT(Text(results_.Pop().status()),
              AllOf(HasSubstr("step 7 hangs"),
                    HasSubstr("rank 0 (host host0, pid 1000): step 6, collective 40; rank 1 (host "
                              "host1, pid 1001): step 6, collective 41")));
}

TEST_F(SupervisionTest, AnIdleGroupDoesNotHang) {
  RemoteGroupOptions options = GroupOptions(2);
  options.hang_timeout = absl::Milliseconds(1);
  StartTwoInStepSix(std::move(options));
  // Ten looks of the monitor.
  for (int i = 0; i < 20; ++i) {
    const auto before = group_->Health()[0].age;
    while (group_->Health()[0].age >= before) std::this_thread::yield();
  }
  EXPECT_EQ(results_.size(), 0u);
  group_->Stop();
  EXPECT_EQ(results_.size(), 0u);
}

TEST_F(SupervisionTest, ARankOfALaunchedGroupThatDiesWhileLoadingEndsTheStart) {
  RemoteGroupOptions options = GroupOptions(2);
  options.launch = [] { return absl::OkStatus(); };
  auto started = StartGroup(std::move(options));
  Join(1, 2).reset();
  const absl::Status status = started.get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status), HasSubstr("lost rank 1 (host host1, pid 1001) while it loaded"));
}

TEST_F(SupervisionTest, RanksThatNeverComeAreMissed) {
  RemoteGroupOptions options = GroupOptions(2);
  options.launch = [] { return absl::OkStatus(); };
  options.register_timeout = absl::Milliseconds(1);
  const absl::Status status = StartGroup(std::move(options)).get().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status), HasSubstr("2 of 2 ranks have not registered (0, 1)"));
}

TEST_F(SupervisionTest, ARankOfAnotherEpochIsRefusedWithBoth) {
  auto started = StartGroup(GroupOptions(1));
  WorkerIdentity late = Identity(0, 1);
  late.epoch = 6;
  EXPECT_THAT(Text(RefusalOf(late)),
              AllOf(HasSubstr("started for epoch 6"), HasSubstr("the group is at epoch 7")));
  WorkerIdentity right = Identity(0, 1);
  right.epoch = 7;
  auto client = WorkerClient::Connect(ClientOptions(), right);
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->ReportReady(1, 1, 1).ok());
  EXPECT_TRUE(started.get().ok());
}

TEST_F(SupervisionTest, ADeadGroupIsFencedWithoutAFarewell) {
  RemoteGroupOptions options = GroupOptions(2);
  options.stop_timeout = absl::Hours(1);  // a farewell would wait for rank 0
  Queue<bool> fences;
  options.terminate = [&](bool fence) { fences.Push(fence); };
  StartTwo(std::move(options));
  clients_[1].reset();
  EXPECT_FALSE(results_.Pop().ok());
  group_->Stop();
  EXPECT_TRUE(fences.Pop());
  // What is left of it learns that it is out.
  EXPECT_FALSE(clients_[0]->NextPlan().ok());
}

}  // namespace
}  // namespace phalanx::control
