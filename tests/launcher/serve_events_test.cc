#include "launcher/serve_events.h"

#include <future>
#include <thread>

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

TEST(ServeEvents, AReplicaThatChangesWhileAStartIsStoppedIsNotWaitedForInVain) {
  ServeEvents events;
  std::promise<void> stopping;
  std::thread replica([&] {
    stopping.get_future().wait();
    events.ReplicaChanged();
  });
  // As a coordinator's Stop() does, it waits for the replica's loop.
  EXPECT_TRUE(events.SetStart([&](int signal) {
    EXPECT_EQ(signal, 15);
    stopping.set_value();
    replica.join();
  }));
  EXPECT_EQ(events.signal(), 0);
  events.RequestStop(15);
  EXPECT_EQ(events.signal(), 15);
  EXPECT_FALSE(events.SetStart(nullptr));
  EXPECT_FALSE(events.AwaitChange());
}

TEST(ServeEvents, AStartIsOverWhenNobodyStopsItAnyMore) {
  ServeEvents events;
  std::promise<void> stopping;
  bool stopped = false;
  EXPECT_TRUE(events.SetStart([&](int) {
    stopping.set_value();
    std::this_thread::yield();
    stopped = true;
  }));
  std::thread signals([&] { events.RequestStop(2); });
  stopping.get_future().wait();
  EXPECT_FALSE(events.SetStart(nullptr));
  EXPECT_TRUE(stopped);
  signals.join();
}

TEST(ServeEvents, ChangesAreSeenOnce) {
  ServeEvents events;
  EXPECT_TRUE(events.SetStart(nullptr));
  events.ReplicaChanged();
  events.ReplicaChanged();
  EXPECT_TRUE(events.AwaitChange());
  std::thread replica([&] { events.ReplicaChanged(); });
  EXPECT_TRUE(events.AwaitChange());
  replica.join();
  events.RequestStop(15);  // nothing starts
  EXPECT_FALSE(events.AwaitChange());
}

}  // namespace
}  // namespace phalanx::launcher
