// The shared segment between processes: how it is found, and what a killed process leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/group/group_communicator.h"
#include "comm/shm/segment.h"

namespace phalanx::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// For groups whose segment is inherited through fork(); makes nothing itself.
class InheritedFabric : public Fabric {
 public:
  absl::StatusOr<Offered> Offer(int) override {
    return absl::FailedPreconditionError("the segment is inherited");
  }
  absl::StatusOr<std::shared_ptr<Segment>> Accept(const SegmentTicket&) override {
    return absl::FailedPreconditionError("the segment is inherited");
  }
  void Withdraw(const Offered&) override {}
  std::shared_ptr<RemoteStreams> OpenStreams(uint32_t, const std::vector<int>&) override {
    return nullptr;
  }
  uint32_t next_context() const override { return 0; }
  void UseContextsBelow(uint32_t) override {}
  bool ContextFits(uint32_t) const override { return true; }
  WaitPolicy wait_policy() const override { return {}; }
};

// Runs `rank(r, group)` for ranks 1 .. n - 1 in processes of their own and for rank 0 here. The
// others' processes end with code 0 if `rank` returns true.
void RunProcesses(int n, const std::function<bool(int, Communicator&)>& rank,
                  std::vector<int>* wait_statuses) {
  auto segment = Segment::CreateShared({.members = n, .slot_bytes = 4096, .ring_bytes = 256});
  ASSERT_TRUE(segment.ok()) << segment.status();
  const auto join = [&](int r) {
    GroupCommunicator::Spec spec;
    spec.fabric = std::make_shared<InheritedFabric>();
    spec.rank = r;
    for (int i = 0; i < n; ++i) spec.members.push_back({i, 0});
    spec.segment = *segment;
    spec.timeout = absl::InfiniteDuration();
    return std::make_unique<GroupCommunicator>(spec);
  };
  std::vector<pid_t> children;
  for (int r = 1; r < n; ++r) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      bool good = false;
      {
        const auto group = join(r);
        good = rank(r, *group);
      }
      _exit(good ? 0 : 1);
    }
    children.push_back(pid);
  }
  {
    const auto group = join(0);
    EXPECT_TRUE(rank(0, *group));
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    wait_statuses->push_back(status);
  }
}

TEST(SharedMemory, AKilledProcessEndsTheOthersCallsAndIsNamed) {
  for (const bool in_collective : {true, false}) {
    std::vector<int> wait_statuses;
    RunProcesses(
        3,
        [&](int r, Communicator& group) {
          if (!group.Barrier().ok()) return false;
          if (r == 2) raise(SIGKILL);
          std::string message;
          // Rank 1 is alive and silent: that rank 2 died must end this wait for rank 1, too.
          const absl::Status status =
              in_collective ? group.Barrier() : group.BroadcastMessage(message, r == 0 ? 1 : 0);
          EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsAborted(status)) << status;
          EXPECT_THAT(std::string(status.message()),
                      AllOf(HasSubstr("rank 2 died (pid "), HasSubstr("last in Barrier")));
          return !status.ok() && !::testing::Test::HasFailure();
        },
        &wait_statuses);
    ASSERT_EQ(wait_statuses.size(), 2);
    EXPECT_TRUE(WIFEXITED(wait_statuses[0]) && WEXITSTATUS(wait_statuses[0]) == 0);
    EXPECT_TRUE(WIFSIGNALED(wait_statuses[1]) && WTERMSIG(wait_statuses[1]) == SIGKILL);
  }
}

TEST(SharedMemory, AbortCrossesProcesses) {
  std::vector<int> wait_statuses;
  RunProcesses(
      3,
      [](int r, Communicator& group) {
        if (!group.Barrier().ok()) return false;
        if (r == 1) {
          group.Abort("rank 1 has seen enough");
          return true;
        }
        std::string message;
        const absl::Status status = r == 0 ? group.Barrier() : group.BroadcastMessage(message, 0);
        return absl::IsAborted(status) &&
               status.message().find("rank 1 has seen enough") != absl::string_view::npos;
      },
      &wait_statuses);
  for (const int status : wait_statuses) EXPECT_EQ(status, 0);
}

TEST(SharedMemory, IsFoundByTicketUntilItIsSealed) {
  auto made = Segment::CreateShared({.members = 2});
  ASSERT_TRUE(made.ok()) << made.status();
  const SegmentTicket ticket = (*made)->ticket();
  auto opened = Segment::Open(ticket);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->members(), 2);
  (*made)->slot(1, 1)[17] = 5;
  EXPECT_EQ((*opened)->slot(1, 1)[17], 5);

  SegmentTicket wrong = ticket;
  ++wrong.nonce;
  EXPECT_EQ(Segment::Open(wrong).status().code(), absl::StatusCode::kFailedPrecondition);
  (*made)->Seal();
  EXPECT_EQ(Segment::Open(ticket).status().code(), absl::StatusCode::kFailedPrecondition);
  // The mapping outlives its maker.
  made->reset();
  EXPECT_EQ((*opened)->slot(1, 1)[17], 5);
}

TEST(SharedMemory, ATicketThatNamesSomethingElseIsRefused) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  SegmentTicket ticket;
  ticket.pid = getpid();
  ticket.fd = ends[0];
  EXPECT_EQ(Segment::Open(ticket).status().code(), absl::StatusCode::kFailedPrecondition);
  close(ends[0]);
  close(ends[1]);
}

TEST(SharedMemory, AZombieIsNotAlive) {
  const pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    pause();
    _exit(0);
  }
  EXPECT_TRUE(ProcessAlive(pid, 0));
  EXPECT_FALSE(ProcessAlive(pid, 1));  // another process, now with its pid
  kill(pid, SIGKILL);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, pid, &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(ProcessAlive(pid, 0));
  ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
  EXPECT_FALSE(ProcessAlive(pid, 0));
}

}  // namespace
}  // namespace phalanx::comm
