// A watcher learns of the coordinator's end, and of nothing else.
#include "runtime/control/watch.h"

#include <memory>
#include <utility>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "runtime/control/control_server.h"

namespace phalanx::control {
namespace {

std::unique_ptr<ControlServer> Serve() {
  ControlServerOptions options;
  options.token = "secret";
  auto server = ControlServer::Listen(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

TEST(Watch, TellsOfTheCoordinatorsEnd) {
  std::unique_ptr<ControlServer> server = Serve();
  absl::Notification gone;
  WatchOptions options;
  options.coordinator = server->address();
  options.token = "secret";
  options.on_gone = [&gone] { gone.Notify(); };
  const auto watch = CoordinatorWatch::Connect(options);
  ASSERT_TRUE(watch.ok()) << watch.status();
  EXPECT_FALSE(gone.HasBeenNotified());
  server.reset();
  gone.WaitForNotification();
}

TEST(Watch, IsSilentWhenItIsEndedItself) {
  std::unique_ptr<ControlServer> server = Serve();
  bool called = false;
  WatchOptions options;
  options.coordinator = server->address();
  options.token = "secret";
  options.on_gone = [&called] { called = true; };
  auto watch = CoordinatorWatch::Connect(options);
  ASSERT_TRUE(watch.ok()) << watch.status();
  watch->reset();
  server.reset();  // waits for its streams' ends
  EXPECT_FALSE(called);
}

TEST(Watch, NeedsTheToken) {
  std::unique_ptr<ControlServer> server = Serve();
  WatchOptions options;
  options.coordinator = server->address();
  options.token = "guess";
  const auto watch = CoordinatorWatch::Connect(options);
  EXPECT_TRUE(absl::IsPermissionDenied(watch.status())) << watch.status();
}

TEST(Watch, NamesACoordinatorThatIsNotThere) {
  WatchOptions options;
  options.coordinator = "127.0.0.1:1";
  options.connect_timeout = absl::Milliseconds(50);
  const auto watch = CoordinatorWatch::Connect(options);
  EXPECT_TRUE(absl::IsUnavailable(watch.status())) << watch.status();
}

}  // namespace
}  // namespace phalanx::control
