#include "launcher/process.h"

#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;

TEST(Process, NamesAProgramThatIsNotThere) {
  const auto process = Process::Start({"no-such-program-here"}, {});
  EXPECT_EQ(process.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(process.status().message()), HasSubstr("no-such-program-here"));
}

TEST(Process, TellsItsExitCode) {
  const auto process = Process::Start({"sh", "-c", "exit 7"}, {});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE((*process)->Wait(absl::Seconds(60)));
  EXPECT_EQ((*process)->Ended(), "exited with code 7");
}

TEST(Process, PassesTheEnvironment) {
  const auto process = Process::Start({"sh", "-c", "test \"$PHALANX_TEST_WORD\" = moon"},
                                      {{"PHALANX_TEST_WORD", "moon"}});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE((*process)->Wait(absl::Seconds(60)));
  EXPECT_EQ((*process)->Ended(), "exited with code 0");
}

TEST(Process, IsStillRunningUntilItIsKilledThenNamesTheSignal) {
  const auto process = Process::Start({"cat", "/dev/zero"}, {});
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_FALSE((*process)->Ended().has_value());
  EXPECT_FALSE((*process)->Wait(absl::ZeroDuration()));
  (*process)->Kill(absl::Seconds(60));
  EXPECT_THAT((*process)->Ended().value_or("running"), HasSubstr("signal 15"));
}

TEST(Process, EndsAChildThatIgnoresSigterm) {
  const std::string ready = absl::StrCat(testing::TempDir(), "/process_test_", getpid());
  const auto process = Process::Start(
      {"sh", "-c", "trap '' TERM; : > \"$READY\"; while :; do :; done"}, {{"READY", ready}});
  ASSERT_TRUE(process.ok()) << process.status();
  // The signal counts only once it is ignored.
  while (!std::filesystem::exists(ready)) std::this_thread::yield();
  std::filesystem::remove(ready);
  (*process)->Kill(absl::Milliseconds(1));
  EXPECT_THAT((*process)->Ended().value_or("running"), HasSubstr("signal 9"));
}

}  // namespace
}  // namespace phalanx::launcher
