#include "runtime/worker/step_runner.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace phalanx::worker {
namespace {

absl::Status OfStep(uint64_t number, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("step ", number, ": ", status.message()));
}

}  // namespace

StepRunner::StepRunner(StepExecutor& executor, Callbacks callbacks)
    : executor_(executor), callbacks_(std::move(callbacks)) {
  if (executor_.finishes_later()) finisher_ = std::thread([this] { FinishAll(); });
}

absl::Status StepRunner::Stop() {
  if (finisher_.joinable()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    finisher_.join();
  }
  return failure();
}

absl::Status StepRunner::failure() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

absl::Status StepRunner::Run(const scheduler::StepPlan& plan) {
  if (finisher_.joinable()) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] {
      return !failure_.ok() || started_.size() < static_cast<size_t>(StepExecutor::kMostStarted);
    });
    if (!failure_.ok()) return failure_;
  }
  if (absl::Status status = executor_.Start(plan); !status.ok()) return OfStep(plan.number, status);
  if (!finisher_.joinable()) return FinishOldest(plan.number);
  const std::lock_guard<std::mutex> lock(mutex_);
  started_.push_back(plan.number);
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status StepRunner::FinishOldest(uint64_t number) {
  absl::StatusOr<scheduler::StepResult> result = executor_.Finish();
  if (!result.ok()) return OfStep(number, result.status());
  if (!executor_.gives_results()) return absl::OkStatus();
  return callbacks_.result(*std::move(result));
}

void StepRunner::FinishAll() {
  while (true) {
    uint64_t number = 0;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !started_.empty(); });
      if (started_.empty()) return;
      number = started_.front();
    }
    absl::Status status = FinishOldest(number);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      started_.pop_front();
      failure_ = status;
      changed_.notify_all();
    }
    if (status.ok()) continue;
    callbacks_.failure(status);
    return;
  }
}

}  // namespace phalanx::worker
