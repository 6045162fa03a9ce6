#include "launcher/exit_code.h"

#include <cerrno>
#include <csignal>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

int End(int64_t prompts, int64_t failed, const absl::Status& first, std::string* said) {
  CaptureStderr();
  const int code = EndOfPrompts("test", {prompts, failed, first});
  *said = GetCapturedStderr();
  return code;
}

TEST(EndOfPrompts, TellsSomeThatFailedFromAll) {
  const absl::Status too_long = absl::InvalidArgumentError("too long");
  std::string said;
  EXPECT_EQ(End(2, 0, absl::OkStatus(), &said), kExitDone);
  EXPECT_EQ(said, "");
  EXPECT_EQ(End(3, 2, too_long, &said), kExitFailedItems);
  EXPECT_EQ(said, "phalanx test: 2 of 3 prompts failed, the first with: too long\n");
  EXPECT_EQ(End(1, 1, too_long, &said), kExitUsage);
  EXPECT_EQ(said, "phalanx test: too long\n");
  EXPECT_EQ(End(2, 2, absl::ResourceExhaustedError("no room"), &said), kExitFailed);
}

TEST(EndOfPrompts, IsAFailureWhereNobodyAnswersAnyMore) {
  std::string said;
  EXPECT_EQ(End(3, 1, absl::UnavailableError("the workers are gone"), &said), kExitFailed);
  EXPECT_THAT(said, HasSubstr("the workers are gone"));
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
