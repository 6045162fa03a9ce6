// How plans overlap: a device that works by itself is given the next plan while it works.
#include "runtime/worker/step_runner.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::worker {
namespace {

using scheduler::StepPlan;
using scheduler::StepResult;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A device whose plans end when the test says so.
class FakeDevice : public StepExecutor {
 public:
  explicit FakeDevice(bool later, bool gives = true) : later_(later), gives_(gives) {}

  absl::Status Start(const StepPlan& plan) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (plan.number == fails_to_start_) return absl::InternalError("no such block");
    started_.push_back(plan.number);
    most_unfinished_ = std::max(most_unfinished_, started_.size() - finished_);
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> Finish() override {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t number = started_[finished_];
    changed_.wait(lock, [&] { return !later_ || ended_ >= number; });
    ++finished_;
    if (number == fails_to_finish_) return absl::AbortedError("rank 1 is gone");
    StepResult result;
    result.number = number;
    return result;
  }
  bool gives_results() const override { return gives_; }
  bool finishes_later() const override { return later_; }

  // Plans up to this number have ended on the device.
  void End(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = number;
    changed_.notify_all();
  }
  // Returns once `count` plans have been started.
  void AwaitStarted(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return started_.size() >= count; });
  }
  void FailToStart(uint64_t number) { fails_to_start_ = number; }
  void FailToFinish(uint64_t number) { fails_to_finish_ = number; }
  size_t most_unfinished() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return most_unfinished_;
  }

 private:
  const bool later_;
  const bool gives_;
  uint64_t fails_to_start_ = 0;
  uint64_t fails_to_finish_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<uint64_t> started_;
  size_t finished_ = 0;
  uint64_t ended_ = 0;
  size_t most_unfinished_ = 0;
};

// What a runner has told.
class Told {
 public:
  StepRunner::Callbacks callbacks() {
    return {[this](const StepResult& result) {
              const std::lock_guard<std::mutex> lock(mutex_);
              if (result.number == refused_) return absl::UnavailableError("nobody listens");
              results_.push_back(result.number);
              changed_.notify_all();
              return absl::OkStatus();
            },
            [this](const absl::Status& status) {
              const std::lock_guard<std::mutex> lock(mutex_);
              failures_.emplace_back(status.message());
              changed_.notify_all();
            }};
  }
  void AwaitResults(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return results_.size() >= count; });
  }
  void AwaitFailure() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !failures_.empty(); });
  }
  void Refuse(uint64_t number) { refused_ = number; }
  std::vector<uint64_t> results() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return results_;
  }
  std::vector<std::string> failures() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return failures_;
  }

 private:
  uint64_t refused_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<uint64_t> results_;
  std::vector<std::string> failures_;
};

StepPlan Plan(uint64_t number) {
  StepPlan plan;
  plan.number = number;
  return plan;
}

TEST(StepRunner, GivesAResultBeforeRunReturnsWhereNothingIsLeftToWaitFor) {
  FakeDevice cpu(/*later=*/false);
  Told told;
  StepRunner runner(cpu, told.callbacks());
  for (uint64_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(runner.Run(Plan(i)).ok());
    EXPECT_EQ(told.results().size(), i);
  }
  EXPECT_EQ(cpu.most_unfinished(), 1u);
  EXPECT_TRUE(runner.Stop().ok());
}

TEST(StepRunner, RanksThatDoNotSampleGiveNoResult) {
  FakeDevice cpu(/*later=*/false, /*gives=*/false);
  Told told;
  StepRunner runner(cpu, told.callbacks());
  ASSERT_TRUE(runner.Run(Plan(1)).ok());
  EXPECT_TRUE(told.results().empty());
}

TEST(StepRunner, StartsAPlanWhileTheOneBeforeItRunsButNoThird) {
  FakeDevice gpu(/*later=*/true);
  Told told;
  StepRunner runner(gpu, told.callbacks());
  ASSERT_TRUE(runner.Run(Plan(1)).ok());
  ASSERT_TRUE(runner.Run(Plan(2)).ok());
  EXPECT_TRUE(told.results().empty());
  std::thread third([&] { EXPECT_TRUE(runner.Run(Plan(3)).ok()); });
  gpu.End(1);
  gpu.AwaitStarted(3);
  third.join();
  gpu.End(3);
  told.AwaitResults(3);
  EXPECT_THAT(told.results(), ElementsAre(1, 2, 3));
  EXPECT_EQ(gpu.most_unfinished(), 2u);
}

TEST(StepRunner, StopWaitsForWhatIsUnderWay) {
  FakeDevice gpu(/*later=*/true);
  Told told;
  StepRunner runner(gpu, told.callbacks());
  ASSERT_TRUE(runner.Run(Plan(1)).ok());
  ASSERT_TRUE(runner.Run(Plan(2)).ok());
  std::thread device([&] { gpu.End(2); });
  EXPECT_TRUE(runner.Stop().ok());
  device.join();
  EXPECT_THAT(told.results(), ElementsAre(1, 2));
}

TEST(StepRunner, APlanThatDoesNotStartIsNamed) {
  for (const bool later : {false, true}) {
    FakeDevice device(later);
    device.FailToStart(2);
    Told told;
    StepRunner runner(device, told.callbacks());
    ASSERT_TRUE(runner.Run(Plan(1)).ok());
    device.End(1);
    EXPECT_THAT(std::string(runner.Run(Plan(2)).message()), HasSubstr("step 2: no such block"));
    EXPECT_TRUE(runner.Stop().ok());
    EXPECT_THAT(told.results(), ElementsAre(1));
    EXPECT_TRUE(told.failures().empty());
  }
}

TEST(StepRunner, APlanThatFailsOnTheDeviceIsToldOnceAndEndsTheRunner) {
  FakeDevice gpu(/*later=*/true);
  gpu.FailToFinish(1);
  Told told;
  StepRunner runner(gpu, told.callbacks());
  ASSERT_TRUE(runner.Run(Plan(1)).ok());
  ASSERT_TRUE(runner.Run(Plan(2)).ok());
  gpu.End(2);
  told.AwaitFailure();
  const absl::Status after = runner.Run(Plan(3));
  EXPECT_EQ(after.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(after.message()), HasSubstr("step 1: rank 1 is gone"));
  EXPECT_EQ(runner.Stop(), after);
  EXPECT_TRUE(told.results().empty());
  EXPECT_EQ(told.failures().size(), 1u);
}

TEST(StepRunner, AResultThatNobodyTakesEndsTheRunner) {
  FakeDevice gpu(/*later=*/true);
  Told told;
  told.Refuse(1);
  StepRunner runner(gpu, told.callbacks());
  ASSERT_TRUE(runner.Run(Plan(1)).ok());
  gpu.End(1);
  told.AwaitFailure();
  EXPECT_EQ(runner.Run(Plan(2)).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace phalanx::worker
