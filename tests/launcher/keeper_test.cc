// The keeper of packed weights: what it keeps for whom, and what it lets go.
#include "launcher/keeper.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "launcher/keeper_store.h"
#include "launcher/machine.h"
#include "runtime/model/weight_arena.h"

namespace phalanx::launcher {
namespace {

using Keys = std::vector<std::string>;

v1::KeeperRequest From(int replica, uint64_t epoch) {
  v1::KeeperRequest request;
  request.set_replica(replica);
  request.set_epoch(epoch);
  return request;
}

class KeptWeightsTest : public ::testing::Test {
 protected:
  bool Find(int replica, uint64_t epoch, const Keys& keys, const std::string& key) {
    v1::KeeperRequest request = From(replica, epoch);
    for (const std::string& one : keys) request.mutable_find()->add_keys(one);
    request.mutable_find()->set_key(key);
    const auto [reply, fd] = kept_.Handle(request, Descriptor());
    EXPECT_EQ(reply.found(), fd >= 0);
    error_ = reply.error();
    agreed_ = reply.agreed();
    return reply.found();
  }
  void Keep(int replica, uint64_t epoch, const std::string& key) {
    v1::KeeperRequest request = From(replica, epoch);
    request.mutable_keep()->set_key(key);
    error_ = kept_.Handle(request, Descriptor(memfd_create("w", 0))).first.error();
  }
  void Agreed(int replica, uint64_t epoch, uint64_t content) {
    v1::KeeperRequest request = From(replica, epoch);
    request.mutable_agreed()->set_content(content);
    error_ = kept_.Handle(request, Descriptor()).first.error();
  }

  KeptWeights kept_;
  std::string error_;
  uint64_t agreed_ = 0;
};

TEST_F(KeptWeightsTest, ANewGroupOfTheSameLayoutFindsWhatTheOldOnePacked) {
  EXPECT_FALSE(Find(0, 1, {"a", "b"}, "a"));
  EXPECT_FALSE(Find(0, 1, {"a", "b"}, "b"));
  Keep(0, 1, "a");
  Keep(0, 1, "b");
  Agreed(0, 1, 77);
  EXPECT_TRUE(Find(0, 2, {"a", "b"}, "a"));
  EXPECT_EQ(agreed_, 77u);
  EXPECT_TRUE(Find(0, 2, {"a", "b"}, "b"));
}

TEST_F(KeptWeightsTest, WhatNoGroupHasAgreedOnIsFoundWithoutAgreement) {
  Keep(0, 1, "a");
  EXPECT_TRUE(Find(0, 2, {"a"}, "a"));
  EXPECT_EQ(agreed_, 0u);
}

TEST_F(KeptWeightsTest, AnotherLayoutLetsTheFirstGoBeforeItPacks) {
  Keep(0, 1, "a");
  Keep(0, 1, "b");
  EXPECT_FALSE(Find(0, 2, {"whole"}, "whole"));
  EXPECT_EQ(kept_.size(), 0u);
}

TEST_F(KeptWeightsTest, ARankThatHasMovedAwayIsForgottenOnceItsGroupIsUp) {
  Keep(0, 1, "a");
  Keep(0, 1, "b");
  EXPECT_TRUE(Find(0, 2, {"a", "b"}, "a"));  // b's rank is on another host now
  EXPECT_EQ(kept_.size(), 2u);
  Agreed(0, 2, 5);
  EXPECT_EQ(kept_.size(), 1u);
}

TEST_F(KeptWeightsTest, ReplicasShareAnEntryAndEachHoldsIt) {
  Keep(0, 1, "a");
  EXPECT_TRUE(Find(1, 1, {"a"}, "a"));
  EXPECT_FALSE(Find(0, 2, {"other"}, "other"));  // replica 0 has another layout now
  EXPECT_TRUE(Find(1, 2, {"a"}, "a"));
  Agreed(0, 2, 9);
  EXPECT_TRUE(Find(1, 3, {"a"}, "a"));
  EXPECT_EQ(agreed_, 0u) << "another replica's agreement is no agreement on this";
  EXPECT_FALSE(Find(1, 4, {"other"}, "other"));
  EXPECT_EQ(kept_.size(), 0u);
}

TEST_F(KeptWeightsTest, AGroupThatWasReplacedIsTurnedAway) {
  Keep(0, 2, "a");
  Keep(0, 1, "b");
  EXPECT_TRUE(absl::StrContains(error_, "was replaced")) << error_;
  EXPECT_FALSE(Find(0, 1, {"b"}, "b"));
  EXPECT_EQ(kept_.size(), 1u);
  EXPECT_TRUE(Find(0, 2, {"a"}, "a"));
}

TEST_F(KeptWeightsTest, ADamagedEntryIsDroppedOnRequest) {
  Keep(0, 1, "a");
  v1::KeeperRequest request = From(0, 2);
  request.mutable_drop()->set_key("a");
  kept_.Handle(request, Descriptor());
  EXPECT_EQ(kept_.size(), 0u);
}

TEST_F(KeptWeightsTest, WeightsWithoutADescriptorAndUnknownRequestsAreRefused) {
  v1::KeeperRequest request = From(0, 1);
  request.mutable_keep()->set_key("a");
  EXPECT_FALSE(kept_.Handle(request, Descriptor()).first.error().empty());
  EXPECT_FALSE(kept_.Handle(From(0, 1), Descriptor()).first.error().empty());
  EXPECT_EQ(kept_.size(), 0u);
}

// A keeper as a thread.
class TestKeeper {
 public:
  explicit TestKeeper(const std::string& name) {
    absl::StatusOr<Descriptor> listener = ListenAsKeeper(name);
    EXPECT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    std::array<int, 2> pipe_ends;
    EXPECT_EQ(pipe(pipe_ends.data()), 0);
    stop_ = Descriptor(pipe_ends[0]);
    write_ = Descriptor(pipe_ends[1]);
    thread_ = std::thread([this] { ServeRanks(listener_.get(), stop_.get(), kept_); });
  }
  ~TestKeeper() {
    EXPECT_EQ(write(write_.get(), "x", 1), 1);
    thread_.join();
  }

 private:
  Descriptor listener_;
  Descriptor stop_;
  Descriptor write_;
  KeptWeights kept_;
  std::thread thread_;
};

class StoreTest : public ::testing::Test {
 protected:
  KeeperStoreOptions Options(uint64_t epoch) {
    KeeperStoreOptions options;
    options.socket_name = name_;
    options.epoch = epoch;
    options.warn = [this](const std::string& why) { warnings_.push_back(why); };
    return options;
  }
  // A rank's end of the keeper's socket.
  int Connected() {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    name_.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name_.size());
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    return fd;
  }
  std::shared_ptr<model::WeightArena> MakeArena(const std::string& key, char value) {
    auto arena = model::WeightArena::Create(key, 1 << 20);
    EXPECT_TRUE(arena.ok()) << arena.status();
    absl::StatusOr<kernels::Buffer> piece = (*arena)->Take("piece", 1000);
    EXPECT_TRUE(piece.ok());
    std::memset(piece->data(), value, 1000);
    EXPECT_TRUE((*arena)->Seal({}, 1).ok());
    return *std::move(arena);
  }

  const std::string name_ = absl::StrCat("phalanx-keeper-test-", RandomToken().substr(0, 16));
  std::vector<std::string> warnings_;
};

TEST_F(StoreTest, WhatOneRankKeepsTheNextOneMaps) {
  TestKeeper keeper(name_);
  {
    KeeperStore store(Options(1));
    EXPECT_EQ(store.Find({"a", "b"}, 1).arena, nullptr);
    store.Keep(*MakeArena("b", 'x'));
    store.Agreed(123);
  }
  KeeperStore store(Options(2));
  const model::WeightStore::Found found = store.Find({"a", "b"}, 1);
  ASSERT_NE(found.arena, nullptr);
  EXPECT_EQ(found.agreed, 123u);
  const absl::StatusOr<kernels::Buffer> piece = found.arena->Take("piece", 1000);
  ASSERT_TRUE(piece.ok()) << piece.status();
  EXPECT_EQ(std::string(piece->as<char>(), 1000), std::string(1000, 'x'));
  EXPECT_TRUE(warnings_.empty()) << warnings_[0];
}

TEST_F(StoreTest, DamagedWeightsAreReportedDroppedAndReplaced) {
  TestKeeper keeper(name_);
  {
    // Under a key that is not theirs, so that what is found is not what was asked for.
    KeeperStore store(Options(1));
    ASSERT_EQ(store.Find({"a"}, 0).arena, nullptr);
    Descriptor socket(Connected());
    v1::KeeperRequest request = From(0, 1);
    request.mutable_keep()->set_key("a");
    std::string reply;
    Descriptor none;
    ASSERT_TRUE(
        SendMessage(socket.get(), request.SerializeAsString(), MakeArena("another", 'x')->fd())
            .ok());
    ASSERT_TRUE(ReceiveMessage(socket.get(), &reply, &none).ok());
  }
  KeeperStore store(Options(2));
  EXPECT_EQ(store.Find({"a"}, 0).arena, nullptr);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_TRUE(absl::StrContains(warnings_[0], "packing them again")) << warnings_[0];
  store.Keep(*MakeArena("a", 'y'));
  KeeperStore next(Options(3));
  EXPECT_NE(next.Find({"a"}, 0).arena, nullptr);
}

TEST_F(StoreTest, TheFirstRankStartsAKeeperAndWaitsForItOnlyWhenItHasPacked) {
  std::unique_ptr<TestKeeper> keeper;
  KeeperStoreOptions options = Options(1);
  int started = 0;
  options.start_keeper = [&] {
    ++started;
    keeper = std::make_unique<TestKeeper>(name_);
    return absl::OkStatus();
  };
  KeeperStore store(options);
  EXPECT_EQ(store.Find({"a"}, 0).arena, nullptr);
  EXPECT_EQ(started, 1);
  store.Keep(*MakeArena("a", 'z'));
  EXPECT_TRUE(warnings_.empty());
  KeeperStore next(Options(2));
  EXPECT_NE(next.Find({"a"}, 0).arena, nullptr);
}

TEST_F(StoreTest, WithoutAKeeperARankSaysSoOnceAndGoesOn) {
  KeeperStoreOptions options = Options(1);
  options.start_timeout = absl::ZeroDuration();
  KeeperStore store(options);
  EXPECT_EQ(store.Find({"a"}, 0).arena, nullptr);
  store.Keep(*MakeArena("a", 'z'));
  store.Agreed(1);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_TRUE(absl::StrContains(warnings_[0], "no keeper answers")) << warnings_[0];
}

TEST_F(StoreTest, ASecondKeeperIsTurnedAway) {
  TestKeeper keeper(name_);
  EXPECT_TRUE(absl::IsAlreadyExists(ListenAsKeeper(name_).status()));
}

TEST(KeeperMessages, OfAbsurdLengthAreRefused) {
  std::array<int, 2> ends;
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  const Descriptor one(ends[0]);
  const Descriptor other(ends[1]);
  ASSERT_EQ(write(one.get(), "\xff\xff\xff\xff", 4), 4);
  std::string message;
  Descriptor fd;
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveMessage(other.get(), &message, &fd)));
}

TEST(KeeperMessages, CarryADescriptorOrNone) {
  std::array<int, 2> ends;
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  const Descriptor one(ends[0]);
  Descriptor other(ends[1]);
  const Descriptor memory(memfd_create("m", 0));
  ASSERT_EQ(write(memory.get(), "hello", 5), 5);
  ASSERT_TRUE(SendMessage(one.get(), "with", memory.get()).ok());
  ASSERT_TRUE(SendMessage(one.get(), "", -1).ok());
  std::string message;
  Descriptor fd;
  ASSERT_TRUE(ReceiveMessage(other.get(), &message, &fd).ok());
  EXPECT_EQ(message, "with");
  ASSERT_TRUE(fd.valid());
  std::array<char, 5> text;
  EXPECT_EQ(pread(fd.get(), text.data(), 5, 0), 5);
  EXPECT_EQ(std::string(text.data(), 5), "hello");
  Descriptor none;
  ASSERT_TRUE(ReceiveMessage(other.get(), &message, &none).ok());
  EXPECT_EQ(message, "");
  EXPECT_FALSE(none.valid());
  other = Descriptor();
  EXPECT_TRUE(absl::IsUnavailable(SendMessage(one.get(), "nobody", -1)));
}

}  // namespace
}  // namespace phalanx::launcher
