// How calls over NCCL end that cannot succeed. Nobody sleeps: timeouts of a few milliseconds expire
// while the others wait to be told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "tests/comm/nccl_ranks.h"

namespace phalanx::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

const std::vector<int64_t> kBytes = {4, 4, 4};

// A group of three fake ranks and what each uses.
struct Rank {
  NcclCommunicator& group;
  FakeDevice& device;
  kernels::Buffer all;
  absl::Status AllGather() { return group.AllGather(all.data(), all.as<char>() + 64, kBytes); }
  // Waits for the stream, then says why results may not be believed.
  std::string Reason() {
    device.Synchronize();
    return group.abort_reason().value_or("nothing");
  }
};

std::vector<absl::Status> RunThree(const std::function<absl::Status(Rank&)>& fn,
                                   const NcclOptions& options = QuickOptions()) {
  auto statuses = RunNccl(
      3,
      [&](NcclCommunicator& group, FakeDevice& device) {
        Rank rank{group, device, Floats(device, 64, 1)};
        return fn(rank);
      },
      options);
  SetFakeNcclFaults({});
  EXPECT_EQ(LiveFakeNcclComms(), 0);
  return statuses;
}

// What an aborted group says to every kind of call.
void ExpectEnded(Rank& rank, const std::string& why) {
  NcclCommunicator& group = rank.group;
  float* data = rank.all.as<float>();
  std::string message;
  const ReducePlan plan{{1, 1, 1}, {0, 1, -1, 2, -1}};
  const float* part = data;
  for (const absl::Status& status :
       {group.AllReduce(plan, {&part, 1}, data, 1),
        group.ReduceScatter(plan, {&part, 1}, data, {1, 1, 1}),
        group.AllReduceOr(rank.all.as<uint32_t>(), 1), rank.AllGather(),
        group.Gather(data, data, kBytes, 0), group.AllToAll(data, kBytes, data, kBytes),
        group.Broadcast(data, 4, 0), group.BroadcastMessage(message, 0), group.Send(data, 4, 0, 0),
        group.Recv(data, 4, 0, 0), group.Barrier(), group.Split(0, 0).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    EXPECT_THAT(Text(status), HasSubstr(why));
  }
}

TEST(NcclFaults, ARankThatNeverComesIsNamedOnTheOthers) {
  std::latch waiting(1);
  std::latch others_done(2);
  const auto statuses = RunThree([&](Rank& rank) -> absl::Status {
    if (absl::Status status = rank.group.Barrier(); !status.ok()) return status;
    if (rank.group.rank() == 2) {
      others_done.wait();
    } else {
      // Rank 1 has no limit of its own.
      if (rank.group.rank() == 0) waiting.wait();
      rank.group.set_timeout(rank.group.rank() == 0 ? absl::Milliseconds(20)
                                                    : absl::InfiniteDuration());
      EXPECT_TRUE(rank.AllGather().ok());
      if (rank.group.rank() == 1) waiting.count_down();
    }
    const std::string reason = rank.Reason();
    if (rank.group.rank() < 2) others_done.count_down();
    EXPECT_THAT(reason, HasSubstr("rank 0 of 3: AllGather (collective 2): waited "));
    EXPECT_THAT(reason, HasSubstr("on the device: rank 2 has not come (last in Barrier, "
                                  "collective 1)"));
    ExpectEnded(rank, "rank 2 has not come");
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(NcclFaults, ARankThatLeftIsNamed) {
  std::latch left(1);
  const auto statuses = testing::RunRanks(2, [&](Communicator& host) -> absl::Status {
    FakeDevice device(absl::StrCat("GPU-", host.rank()));
    auto group = NcclCommunicator::Create(host, device, FakeNcclLibrary(), QuickOptions());
    if (!group.ok()) return group.status();
    if (host.rank() == 1) {
      group->reset();
      left.count_down();
      return absl::OkStatus();
    }
    left.wait();
    const kernels::Buffer memory = Floats(device, 1, 1);
    (*group)->set_timeout(absl::Milliseconds(10));
    if (absl::Status status = (*group)->Broadcast(memory.data(), 4, 0); !status.ok()) {
      return status;
    }
    device.Synchronize();
    EXPECT_THAT((*group)->abort_reason().value_or(""),
                AllOf(HasSubstr("Broadcast (collective 1): waited "),
                      HasSubstr("not all members answered"), HasSubstr("rank 1 left the group")));
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

// Ranks 1 and 2 make their call with no limit, then rank 0 makes its own, which expires.
std::string ReasonAfterRankZero(const std::function<absl::Status(Rank&)>& call) {
  std::latch waiting(2);
  std::latch done(1);
  std::string reason;
  RunThree([&](Rank& rank) -> absl::Status {
    if (rank.group.rank() == 0) waiting.wait();
    rank.group.set_timeout(rank.group.rank() == 0 ? absl::Milliseconds(20)
                                                  : absl::InfiniteDuration());
    const absl::Status status = call(rank);
    EXPECT_TRUE(status.ok()) << status;
    if (rank.group.rank() > 0) waiting.count_down();
    if (rank.group.rank() > 0) {
      done.wait();
    } else {
      reason = rank.Reason();
      done.count_down();
    }
    return status;
  });
  return reason;
}

TEST(NcclFaults, DifferentCollectivesAreToldApart) {
  const std::string reason = ReasonAfterRankZero([](Rank& rank) {
    return rank.group.rank() == 2 ? rank.group.Broadcast(rank.all.data(), 4, 2) : rank.AllGather();
  });
  EXPECT_THAT(reason, AllOf(HasSubstr("on the device: rank 2 is in Broadcast (collective 1)"),
                            Not(HasSubstr("rank 1"))));
}

TEST(NcclFaults, DifferentSizesAreToldApart) {
  const std::string reason = ReasonAfterRankZero([](Rank& rank) {
    return rank.group.Broadcast(rank.all.data(), rank.group.rank() == 1 ? 8 : 4, 0);
  });
  EXPECT_THAT(reason, AllOf(HasSubstr("on the device: rank 1 called it with other sizes"),
                            Not(HasSubstr("rank 2"))));
}

TEST(NcclFaults, AMessageWithoutAReceiverNamesTheReceiver) {
  std::latch done(1);
  RunThree([&](Rank& rank) -> absl::Status {
    if (rank.group.rank() != 0) {
      done.wait();
    } else {
      rank.group.set_timeout(absl::Milliseconds(20));
      EXPECT_TRUE(rank.group.Send(rank.all.data(), 4, 1, 0).ok());
      EXPECT_THAT(rank.Reason(), AllOf(HasSubstr("rank 0 of 3: Send (after collective 0): waited "),
                                       HasSubstr("rank 1 has not come"), Not(HasSubstr("rank 2"))));
      done.count_down();
    }
    return absl::OkStatus();
  });
}

TEST(NcclFaults, AHangInAnotherGroupIsTold) {
  // Rank 1 hangs in the group of ranks 1 and 2, and has its call of the group of all behind that.
  std::latch waiting(1);
  std::latch others_done(1);
  RunThree([&](Rank& rank) -> absl::Status {
    auto pair = rank.group.Split(rank.group.rank() == 0 ? 0 : 1, 0);
    if (!pair.ok()) return pair.status();
    if (rank.group.rank() == 1) {
      (*pair)->set_timeout(absl::InfiniteDuration());
      EXPECT_TRUE((*pair)->Broadcast(rank.all.data(), 4, 0).ok());
    }
    if (rank.group.rank() == 0) waiting.wait();
    if (rank.group.rank() == 2) {
      others_done.wait();
    } else {
      rank.group.set_timeout(rank.group.rank() == 0 ? absl::Milliseconds(20)
                                                    : absl::InfiniteDuration());
      EXPECT_TRUE(rank.AllGather().ok());
    }
    if (rank.group.rank() == 1) waiting.count_down();
    EXPECT_THAT(rank.Reason(),
                AllOf(HasSubstr("rank 0 of 3: AllGather (collective 2)"),
                      HasSubstr("rank 1 waits on its device in another group's Broadcast"),
                      HasSubstr("rank 2 has not come (last in Split, collective 1)")));
    if (rank.group.rank() == 0) others_done.count_down();
    return absl::OkStatus();
  });
}

TEST(NcclFaults, AGroupBesideAnotherIsNotBlamedForItsHang) {
  // Rank 0 hangs in the first group, with no limit, and is in the second, whose limit is short,
  // right behind it. Rank 1 is in the second alone.
  std::latch waiting(1);
  std::latch done(1);
  const auto statuses = testing::RunRanks(2, [&](Communicator& host) -> absl::Status {
    FakeDevice device(absl::StrCat("GPU-", host.rank()));
    const kernels::Buffer memory = Floats(device, 1, 1);
    const std::unique_ptr<Communicator> second_host = *host.Split(0, host.rank());
    auto first = NcclCommunicator::Create(host, device, FakeNcclLibrary(), QuickOptions());
    if (!first.ok()) return first.status();
    NcclOptions options = QuickOptions();
    options.beside = first->get();
    auto second = NcclCommunicator::Create(*second_host, device, FakeNcclLibrary(), options);
    if (!second.ok()) return second.status();
    (*first)->set_timeout(absl::InfiniteDuration());
    (*second)->set_timeout(host.rank() == 0 ? absl::Milliseconds(1) : absl::Milliseconds(20));
    if (host.rank() == 0) {
      EXPECT_TRUE((*first)->Broadcast(memory.data(), 4, 0).ok());
    } else {
      waiting.wait();
    }
    EXPECT_TRUE((*second)->Broadcast(memory.data(), 4, 1).ok());
    if (host.rank() == 0) {
      waiting.count_down();
    } else {
      device.Synchronize();
      EXPECT_THAT((*second)->abort_reason().value_or(""),
                  AllOf(HasSubstr("rank 1 of 2: Broadcast (collective 1)"),
                        HasSubstr("rank 0 waits on its device in another group's Broadcast")));
      (*first)->Abort("seen enough");
      done.count_down();
    }
    done.wait();
    device.Synchronize();
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(NcclFaults, AbortFromAnotherThreadEndsAHang) {
  for (const int aborting : {0, 2}) {
    std::latch waiting(2);
    std::latch aborted(1);
    RunThree([&](Rank& rank) -> absl::Status {
      rank.group.set_timeout(absl::InfiniteDuration());
      std::thread aborter;
      if (rank.group.rank() == aborting) {
        aborter = std::thread([&] {
          waiting.wait();
          rank.group.Abort("the operator pulled the plug");
          aborted.count_down();
        });
      }
      if (rank.group.rank() < 2) {
        EXPECT_TRUE(rank.AllGather().ok());
        waiting.count_down();
        EXPECT_THAT(rank.Reason(), HasSubstr("the operator pulled the plug"));
      }
      aborted.wait();
      if (aborter.joinable()) aborter.join();
      ExpectEnded(rank, "the operator pulled the plug");
      return absl::OkStatus();
    });
  }
}

TEST(NcclFaults, AbortEndsTwoGroupsThatHangOnOneStream) {
  // Freeing the one waits for the device, where the other hangs.
  std::latch waiting(2);
  RunThree([&](Rank& rank) -> absl::Status {
    rank.group.set_timeout(absl::InfiniteDuration());
    auto split = rank.group.Split(0, 0);
    if (!split.ok()) return split.status();
    if (rank.group.rank() < 2) {
      EXPECT_TRUE((*split)->AllGather(rank.all.data(), rank.all.as<char>() + 64, kBytes).ok());
      EXPECT_TRUE(rank.AllGather().ok());
      waiting.count_down();
    } else {
      waiting.wait();
      rank.group.Abort("enough of both");
    }
    EXPECT_THAT(rank.Reason(), HasSubstr("enough of both"));
    EXPECT_THAT((*split)->abort_reason().value_or(""), HasSubstr("enough of both"));
    EXPECT_EQ((*split)->Barrier().code(), absl::StatusCode::kAborted);
    return absl::OkStatus();
  });
}

TEST(NcclFaults, AGroupThatHangsExpiresWhileAnotherIsBeingFreed) {
  // Rank 0 aborts the split, which waits for its device; the device hangs in the group.
  std::latch others_ready(2);
  std::latch others_done(1);
  RunThree([&](Rank& rank) -> absl::Status {
    auto split = rank.group.Split(rank.group.rank() == 0 ? 0 : 1, 0);
    if (!split.ok()) return split.status();
    // So that freeing it has a stream to wait for.
    EXPECT_TRUE((*split)
                    ->Gather(rank.all.data(), rank.all.as<char>() + 64,
                             std::vector<int64_t>((*split)->size(), 4), 0)
                    .ok());
    if (rank.group.rank() != 0) {
      others_ready.count_down();
      others_done.wait();
      return absl::OkStatus();
    }
    others_ready.wait();
    rank.group.set_timeout(absl::Milliseconds(100));
    EXPECT_TRUE(rank.AllGather().ok());
    (*split)->Abort("no more of this one");
    EXPECT_THAT(rank.Reason(), HasSubstr("rank 1 has not come"));
    others_done.count_down();
    return absl::OkStatus();
  });
}

TEST(NcclFaults, LeavingWhileACallHangsEndsByItsTimeout) {
  std::latch done(1);
  const auto statuses = testing::RunRanks(2, [&](Communicator& host) -> absl::Status {
    FakeDevice device(absl::StrCat("GPU-", host.rank()));
    const kernels::Buffer memory = Floats(device, 1, 1);
    auto group = NcclCommunicator::Create(host, device, FakeNcclLibrary(), QuickOptions());
    if (!group.ok()) return group.status();
    if (host.rank() == 0) {
      (*group)->set_timeout(absl::Milliseconds(20));
      EXPECT_TRUE((*group)->Broadcast(memory.data(), 4, 0).ok());
      group->reset();
      done.count_down();
    }
    done.wait();
    EXPECT_THAT(host.abort_reason().value_or(""), HasSubstr("rank 0 of 2: "));
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(LiveFakeNcclComms(), 0);
}

TEST(NcclFaults, LeavingLetsWhatIsEnqueuedFinish) {
  std::latch enqueued(1);
  const auto statuses = RunThree([&](Rank& rank) -> absl::Status {
    if (rank.group.rank() > 0) enqueued.wait();
    absl::Status status = rank.AllGather();
    if (rank.group.rank() > 0) {
      EXPECT_EQ(rank.Reason(), "nothing");
    } else {
      enqueued.count_down();  // and leaves
    }
    return status;
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(NcclFaults, AbortOfASplitLeavesTheEnclosingGroupAlone) {
  const auto statuses = RunThree([](Rank& rank) -> absl::Status {
    auto split = rank.group.Split(0, 0);
    if (!split.ok()) return split.status();
    EXPECT_TRUE(rank.group.Barrier().ok());  // all are through the split
    (*split)->Abort("only here");
    EXPECT_EQ((*split)->Broadcast(rank.all.data(), 4, 0).code(), absl::StatusCode::kAborted);
    if (absl::Status status = rank.AllGather(); !status.ok()) return status;
    EXPECT_EQ(rank.Reason(), "nothing");
    return rank.group.Barrier();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(NcclFaults, AnErrorInTheBackgroundEndsAHangAndIsTold) {
  RunThree([](Rank& rank) -> absl::Status {
    rank.group.set_timeout(absl::InfiniteDuration());
    if (rank.group.rank() < 2) {
      EXPECT_TRUE(rank.AllGather().ok());
    }
    absl::Status together = rank.group.Barrier();
    EXPECT_TRUE(together.ok() || absl::IsAborted(together)) << together;
    if (rank.group.rank() == 1) BreakFakeNccl(1);
    if (rank.group.rank() < 2) {
      const std::string reason = rank.Reason();
      EXPECT_THAT(reason, AllOf(HasSubstr("rank 1 of 3: AllGather (collective 1): NCCL 2.28.9: "),
                                HasSubstr("remote process exited"),
                                HasSubstr("the fake cable was pulled")));
    }
    return absl::OkStatus();
  });
}

TEST(NcclFaults, CallsThatStayInProgressExpire) {
  SetFakeNcclFaults({.never_enqueues = 0});
  const auto statuses = RunThree([](Rank& rank) -> absl::Status {
    rank.group.set_timeout(absl::Milliseconds(20));
    absl::Status status = rank.AllGather();
    EXPECT_THAT(rank.Reason(), HasSubstr("AllGather (collective 1): waited "));
    return status;
  });
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Text(statuses[0]),
              HasSubstr("rank 0 of 3: AllGather (collective 1): aborted: rank "));
}

TEST(NcclFaults, AStartThatStaysInProgressExpires) {
  SetFakeNcclFaults({.never_starts = 1});
  const auto statuses = testing::RunRanks(3, [](Communicator& host) -> absl::Status {
    FakeDevice device(absl::StrCat("GPU-", host.rank()));
    NcclOptions options = QuickOptions();
    options.startup_timeout = host.rank() == 1 ? absl::Milliseconds(20) : absl::InfiniteDuration();
    return NcclCommunicator::Create(host, device, FakeNcclLibrary(), options).status();
  });
  SetFakeNcclFaults({});
  EXPECT_EQ(LiveFakeNcclComms(), 0);
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(statuses[1]),
              AllOf(HasSubstr("rank 1 of 3: NCCL is still in progress after "),
                    HasSubstr("connecting the group"), HasSubstr("NCCL_SOCKET_IFNAME")));
}

TEST(NcclFaults, AStartThatFailsEndsAllMembers) {
  SetFakeNcclFaults({.fails_to_start = 2});
  auto statuses = RunThree([](Rank& rank) {
    rank.group.set_timeout(absl::InfiniteDuration());
    return rank.AllGather();
  });
  EXPECT_EQ(statuses[2].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(statuses[2]), HasSubstr("rank 2 of 3: NCCL 2.28.9: connecting the group: "));
  SetFakeNcclFaults({.no_unique_id = true});
  statuses = RunThree([](Rank& rank) { return rank.AllGather(); });
  for (const absl::Status& status : statuses) {
    EXPECT_THAT(Text(status), HasSubstr("NCCL on rank 0: starting a group"));
  }
}

TEST(NcclFaults, AHangInACapturedGraphIsSeenIfItsLaunchIsWatched) {
  std::latch done(1);
  RunThree([&](Rank& rank) -> absl::Status {
    if (rank.group.rank() != 0) {
      done.wait();
      return absl::OkStatus();
    }
    rank.group.set_timeout(absl::Milliseconds(20));
    rank.device.set_capturing(true);
    EXPECT_TRUE(rank.AllGather().ok());
    rank.device.set_capturing(false);
    rank.group.WatchProgress("a decode step's graph");
    EXPECT_THAT(rank.Reason(),
                AllOf(HasSubstr("a decode step's graph (collective 2): waited "),
                      HasSubstr("rank 1 has not come (last in nothing yet, collective 0)")));
    done.count_down();
    return absl::OkStatus();
  });
}

// Create() on every rank, and whether the host's group still works.
std::vector<absl::Status> RunCreate(
    int n, const std::function<std::string(int)>& device_id,
    const std::function<absl::StatusOr<std::shared_ptr<const nccl::Library>>(int)>& library) {
  return testing::RunRanks(n, [&](Communicator& host) -> absl::Status {
    FakeDevice device(device_id(host.rank()));
    auto group = NcclCommunicator::Create(host, device, library(host.rank()), QuickOptions());
    EXPECT_TRUE(host.Barrier().ok());
    return group.status();
  });
}

TEST(NcclFaults, WhatCannotBeAGroupIsRefusedOnAllRanksBeforeNcclIsAsked) {
  const auto own_gpu = [](int rank) { return absl::StrCat("GPU-", rank); };
  const auto fake = [](int) -> absl::StatusOr<std::shared_ptr<const nccl::Library>> {
    return FakeNcclLibrary();
  };
  struct {
    std::vector<absl::Status> statuses;
    std::vector<std::string> texts;
  } const cases[] = {
      {RunCreate(
           3, [](int rank) { return rank == 0 ? "GPU-a" : "GPU-b"; }, fake),
       {"rank 1 on ", "and rank 2 on ", "share the GPU GPU-b", "one GPU per rank",
        "--device-comm staged"}},
      {RunCreate(
           2, [](int rank) { return rank == 0 ? "GPU-a" : ""; }, fake),
       {"rank 1 on ", " has no GPU"}},
      {RunCreate(3, own_gpu,
                 [&](int rank) -> absl::StatusOr<std::shared_ptr<const nccl::Library>> {
                   if (rank == 1) return absl::FailedPreconditionError("not installed here");
                   return FakeNcclLibrary();
                 }),
       {"rank 1 on ", " has no NCCL: not installed here"}},
      {RunCreate(2, own_gpu,
                 [&](int rank) -> absl::StatusOr<std::shared_ptr<const nccl::Library>> {
                   return FakeNcclLibrary(22300 + rank);
                 }),
       {"rank 1 on ", "has version 2.23.1", "rank 0 on ", "has 2.23.0"}},
  };
  for (const auto& [statuses, texts] : cases) {
    for (const absl::Status& status : statuses) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      for (const std::string& text : texts) EXPECT_THAT(Text(status), HasSubstr(text));
    }
  }
  EXPECT_EQ(LiveFakeNcclComms(), 0);
}

}  // namespace
}  // namespace phalanx::comm
