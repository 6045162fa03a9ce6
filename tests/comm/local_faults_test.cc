// How calls end that cannot succeed: deadlines, aborts, ranks that leave, calls that do not match.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <latch>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::comm {
namespace {

using ::phalanx::testing::RunRanks;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::HasSubstr;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

int Count(const std::vector<absl::Status>& statuses, absl::StatusCode code) {
  return static_cast<int>(std::count_if(statuses.begin(), statuses.end(),
                                        [&](const auto& status) { return status.code() == code; }));
}

TEST(LocalFaults, DeadlineNamesTheRanksThatHaveNotArrived) {
  std::latch others_done(2);
  const auto statuses = RunRanks(3, [&](Communicator& group) -> absl::Status {
    absl::Status status = group.Barrier();
    if (!status.ok()) return status;
    if (group.rank() == 2) {
      others_done.wait();
      return group.Barrier();
    }
    group.set_timeout(absl::Milliseconds(30));
    const std::vector<int64_t> bytes(3, 0);
    status = group.AllGather(nullptr, nullptr, bytes);
    others_done.count_down();
    return status;
  });
  EXPECT_GE(Count(statuses, absl::StatusCode::kDeadlineExceeded), 1);
  for (int r = 0; r < 2; ++r) {
    EXPECT_THAT(statuses[r].code(),
                AnyOf(absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kAborted));
    EXPECT_THAT(Text(statuses[r]),
                AllOf(HasSubstr(absl::StrCat("rank ", r, " of 3: AllGather (collective 2): ")),
                      HasSubstr("for rank 2 (last in Barrier, collective 1)")));
  }
  // The one that came late is told why.
  EXPECT_EQ(statuses[2].code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Text(statuses[2]), HasSubstr("AllGather (collective 2)"));
}

TEST(LocalFaults, DeadlineOfRecvNamesThePeer) {
  std::latch done(1);
  const auto statuses = RunRanks(2, [&](Communicator& group) -> absl::Status {
    if (group.rank() == 1) {
      done.wait();
      return absl::OkStatus();
    }
    group.set_timeout(absl::Milliseconds(20));
    char byte = 0;
    const absl::Status status = group.Recv(&byte, 1, 1, 4);
    done.count_down();
    return status;
  });
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(statuses[0]), AllOf(HasSubstr("Recv"), HasSubstr("rank 1 has not sent")));
}

TEST(LocalFaults, DeadlineOfSendNamesThePeerThatDoesNotReceive) {
  std::latch done(1);
  const auto statuses = RunRanks(2, [&](Communicator& group) -> absl::Status {
    if (group.rank() == 1) {
      done.wait();
      return absl::OkStatus();
    }
    group.set_timeout(absl::Milliseconds(20));
    const std::string large(1 << 20, 'x');
    const absl::Status status = group.Send(large.data(), large.size(), 1, 0);
    done.count_down();
    return status;
  });
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(statuses[0]), AllOf(HasSubstr("Send"), HasSubstr("rank 1 has not received")));
}

TEST(LocalFaults, CallsAfterAnErrorEndAtOnce) {
  std::latch failed(1);
  const auto statuses = RunRanks(2, [&](Communicator& group) -> absl::Status {
    if (group.rank() == 0) {
      group.set_timeout(absl::Milliseconds(10));
      const absl::Status first = group.Barrier();
      EXPECT_EQ(first.code(), absl::StatusCode::kDeadlineExceeded);
      group.set_timeout(absl::InfiniteDuration());
      failed.count_down();
    } else {
      failed.wait();
      group.set_timeout(absl::InfiniteDuration());
    }
    std::string message;
    EXPECT_EQ(group.Barrier().code(), absl::StatusCode::kAborted);
    EXPECT_EQ(group.BroadcastMessage(message, 0).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(group.Send(nullptr, 0, 0, 0).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(group.Split(0, 0).status().code(), absl::StatusCode::kAborted);
    return absl::OkStatus();
  });
  EXPECT_EQ(Count(statuses, absl::StatusCode::kOk), 2);
}

TEST(LocalFaults, AbortEndsEveryKindOfWaiting) {
  // Each rank waits for something that never comes, with no deadline.
  std::latch waiting(4);
  std::vector<std::unique_ptr<Communicator>> group = CreateLocalGroup(5);
  std::vector<absl::Status> statuses(4);
  std::vector<std::thread> threads;
  for (int r = 0; r < 4; ++r) {
    threads.emplace_back([&, r] {
      group[r]->set_timeout(absl::InfiniteDuration());
      std::string message;
      const std::string large(1 << 20, 'x');
      waiting.count_down();
      if (r == 0) statuses[r] = group[r]->Barrier();
      if (r == 1) statuses[r] = group[r]->BroadcastMessage(message, 4);
      if (r == 2) statuses[r] = group[r]->Recv(message.data(), 0, 4, 0);
      if (r == 3) statuses[r] = group[r]->Send(large.data(), large.size(), 4, 0);
    });
  }
  waiting.wait();
  group[4]->Abort("the operator pulled the plug");
  group[4]->Abort("said again");
  for (std::thread& thread : threads) thread.join();
  for (int r = 0; r < 4; ++r) {
    EXPECT_EQ(statuses[r].code(), absl::StatusCode::kAborted) << r;
    EXPECT_THAT(Text(statuses[r]), HasSubstr("the operator pulled the plug")) << r;
  }
}

TEST(LocalFaults, AbortReachesGroupsMadeBySplit) {
  std::latch waiting(3);
  const auto statuses = RunRanks(4, [&](Communicator& world) -> absl::Status {
    world.set_timeout(absl::InfiniteDuration());
    // Rank 3 is in no group that the waiting ranks wait in.
    auto child = world.Split(world.rank() == 3 ? 1 : 0, 0);
    if (!child.ok()) return child.status();
    auto grandchild = (*child)->Split(0, 0);
    if (!grandchild.ok()) return grandchild.status();
    if (world.rank() == 3) {
      waiting.wait();
      world.Abort("rank 3 gives up");
      return (*grandchild)->Barrier();
    }
    waiting.count_down();
    std::string message;
    if (world.rank() == 2) {  // never says anything
      return (*grandchild)->Recv(message.data(), 0, 0, 0);
    }
    return (*grandchild)->BroadcastMessage(message, 2);
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    EXPECT_THAT(Text(status), HasSubstr("rank 3 gives up"));
  }
}

TEST(LocalFaults, AbortOfAGroupLeavesTheEnclosingOneAlone) {
  const auto statuses = RunRanks(2, [](Communicator& world) -> absl::Status {
    auto child = world.Split(0, 0);
    if (!child.ok()) return child.status();
    (*child)->Abort("only here");
    EXPECT_EQ((*child)->Barrier().code(), absl::StatusCode::kAborted);
    return world.Barrier();
  });
  EXPECT_EQ(Count(statuses, absl::StatusCode::kOk), 2);
}

TEST(LocalFaults, ARankThatLeavesEndsTheCallsThatNeedIt) {
  for (const std::string what : {"barrier", "message", "recv"}) {
    const auto statuses = RunRanks(4, [&](Communicator& group) -> absl::Status {
      group.set_timeout(absl::InfiniteDuration());
      if (absl::Status status = group.Barrier(); !status.ok()) return status;
      if (group.rank() == 1) return absl::OkStatus();
      std::string message;
      if (what == "message") return group.BroadcastMessage(message, 1);
      if (what == "recv") return group.Recv(nullptr, 0, 1, 0);
      return group.Barrier();
    });
    EXPECT_TRUE(statuses[1].ok());
    EXPECT_GE(Count(statuses, absl::StatusCode::kUnavailable), 1) << what;
    for (const int r : {0, 2, 3}) {
      EXPECT_THAT(statuses[r].code(),
                  AnyOf(absl::StatusCode::kUnavailable, absl::StatusCode::kAborted));
      EXPECT_THAT(Text(statuses[r]), HasSubstr("rank 1 left the group")) << what;
    }
  }
}

TEST(LocalFaults, WhatARankSentBeforeItLeftStillArrives) {
  const auto statuses = RunRanks(3, [](Communicator& group) -> absl::Status {
    std::string message = group.rank() == 0 ? "last words" : "";
    if (group.rank() == 0) {
      if (absl::Status status = group.Send("tail", 4, 1, 9); !status.ok()) return status;
      return group.BroadcastMessage(message, 0);
    }
    if (absl::Status status = group.BroadcastMessage(message, 0); !status.ok()) return status;
    EXPECT_EQ(message, "last words");
    char tail[4] = {};
    if (group.rank() != 1) return absl::OkStatus();
    absl::Status status = group.Recv(tail, 4, 0, 9);
    EXPECT_EQ(std::string(tail, 4), "tail");
    return status;
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(LocalFaults, DifferentCollectivesAreToldApart) {
  const auto statuses = RunRanks(3, [](Communicator& group) -> absl::Status {
    if (group.rank() == 2) return group.Barrier();
    uint32_t word = 0;
    return group.AllReduceOr(&word, 1);
  });
  EXPECT_GE(Count(statuses, absl::StatusCode::kInternal), 1);
  for (const absl::Status& status : statuses) {
    EXPECT_THAT(status.code(), AnyOf(absl::StatusCode::kInternal, absl::StatusCode::kAborted));
    EXPECT_THAT(Text(status), HasSubstr("must call the same collectives in the same order"));
  }
}

TEST(LocalFaults, DifferentArgumentsAreToldApart) {
  const auto statuses = RunRanks(2, [](Communicator& group) -> absl::Status {
    std::vector<uint32_t> words(5);
    return group.AllReduceOr(words.data(), 4 + group.rank());
  });
  EXPECT_GE(Count(statuses, absl::StatusCode::kInternal), 1);
  for (const absl::Status& status : statuses) {
    EXPECT_THAT(Text(status), HasSubstr("called it with other sizes"));
  }
}

TEST(LocalFaults, AMessageOfAnotherSizeIsRefused) {
  const auto statuses = RunRanks(2, [](Communicator& group) -> absl::Status {
    char data[8] = {};
    if (group.rank() == 0) return group.Send(data, 8, 1, 0);
    return group.Recv(data, 4, 0, 0);
  });
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Text(statuses[1]), HasSubstr("rank 0 sent 8 bytes, expected 4"));
}

TEST(LocalFaults, BadArgumentsAreRefused) {
  const auto refused = [](const std::function<absl::Status(Communicator&)>& call) {
    const auto group = CreateLocalGroup(1);
    return call(*group[0]);
  };
  const float x = 1;
  const float* part = &x;
  float out = 0;
  const auto reduce = [&](ReducePlan plan) {
    return refused([&, plan](Communicator& group) {
      return group.AllReduce(plan, {&part, 1}, &out, 1);
    });
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_TRUE(reduce({{1}, {0}}).ok());
  EXPECT_EQ(reduce({{1}, {}}).code(), kInvalid);
  EXPECT_EQ(reduce({{1}, {0, 0}}).code(), kInvalid);
  EXPECT_EQ(reduce({{1}, {0, -1}}).code(), kInvalid);
  EXPECT_EQ(reduce({{1}, {1}}).code(), kInvalid);
  EXPECT_EQ(reduce({{1}, {-2}}).code(), kInvalid);
  EXPECT_EQ(reduce({{2}, {0}}).code(), kInvalid);
  EXPECT_EQ(reduce({{-1}, {0}}).code(), kInvalid);
  EXPECT_EQ(reduce({{1, 0}, {0}}).code(), kInvalid);
  const std::vector<int64_t> negative = {-1};
  const std::vector<int64_t> two = {0, 0};
  EXPECT_EQ(refused([&](Communicator& g) { return g.AllGather(&x, &out, negative); }).code(),
            kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.AllGather(&x, &out, two); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.Broadcast(&out, 4, 1); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.Broadcast(&out, -4, 0); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.Send(&x, 4, -1, 0); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.Send(&x, 4, 0, -1); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.Recv(&out, -4, 0, 0); }).code(), kInvalid);
  EXPECT_EQ(refused([&](Communicator& g) { return g.AllReduceOr(nullptr, -1); }).code(), kInvalid);
}

TEST(LocalFaults, ARankMaySendToItself) {
  const auto group = CreateLocalGroup(1);
  int got = 0;
  const int want = 41;
  ASSERT_TRUE(group[0]->Send(&want, sizeof(want), 0, 2).ok());
  ASSERT_TRUE(group[0]->Recv(&got, sizeof(got), 0, 2).ok());
  EXPECT_THAT(got, Eq(want));
}

}  // namespace
}  // namespace phalanx::comm
