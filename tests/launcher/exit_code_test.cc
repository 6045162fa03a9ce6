#include "launcher/exit_code.h"

#include <cerrno>
#include <csignal>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

int End(const std::vector<absl::Status>& prompts, bool abandoned, std::string* said) {
  CaptureStderr();
  const int code = EndOfPrompts("test", prompts, abandoned);
  *said = GetCapturedStderr();
  return code;
}

const absl::Status kAnswered;
const absl::Status kTooLong = absl::InvalidArgumentError("too long");
const absl::Status kNoRoom = absl::ResourceExhaustedError("no room");
const absl::Status kGone = absl::UnavailableError("the workers are gone");

TEST(EndOfPrompts, TellsSomeThatFailedFromAll) {
  std::string said;
  EXPECT_EQ(End({kAnswered, kAnswered}, false, &said), kExitDone);
  EXPECT_EQ(said, "");
  EXPECT_EQ(End({kTooLong, kAnswered, kNoRoom}, false, &said), kExitFailedItems);
  EXPECT_EQ(said, "phalanx test: 2 of 3 prompts failed, the first with: too long\n");
  EXPECT_EQ(End({kGone, kTooLong, kAnswered}, false, &said), kExitFailedItems);  // others are there
  EXPECT_EQ(End({kTooLong}, false, &said), kExitUsage);
  EXPECT_EQ(said, "phalanx test: too long\n");
  EXPECT_EQ(End({kNoRoom, kTooLong}, false, &said), kExitFailed);
}

TEST(EndOfPrompts, IsAFailureWhereNobodyAnswersAnyMore) {
  std::string said;
  EXPECT_EQ(End({kTooLong, kAnswered, kGone, kGone}, true, &said), kExitFailed);
  EXPECT_EQ(said, "phalanx test: 3 of 4 prompts failed, the last with: the workers are gone\n");
}

// Throws where nobody catches.
template <typename Error>
void ThrowUncaught(const Error& error) {
  ExplainRefusedResources();
  std::thread([&error] { throw error; }).join();
}

TEST(ExplainRefusedResources, NamesTheLimitAndLeavesFaultsOfTheProgramToTheirCoreDump) {
  EXPECT_EXIT(ThrowUncaught(std::system_error(EAGAIN, std::generic_category())),
              ::testing::ExitedWithCode(kExitFailed), "no more threads; .*ulimit -u");
  EXPECT_EXIT(ThrowUncaught(std::bad_alloc()), ::testing::ExitedWithCode(kExitFailed),
              "no more memory");
  EXPECT_EXIT(ThrowUncaught(std::logic_error("some invariant")), ::testing::KilledBySignal(SIGABRT),
              "a fault of the program: some invariant");
}

}  // namespace
}  // namespace phalanx::launcher
