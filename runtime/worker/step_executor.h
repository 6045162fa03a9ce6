// How a rank's plans are computed, in two calls. Worker is the one of a rank with a device.
#ifndef PHALANX_RUNTIME_WORKER_STEP_EXECUTOR_H_
#define PHALANX_RUNTIME_WORKER_STEP_EXECUTOR_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::worker {

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;

  // Start is collective: every rank of the group calls it with the same plan. It returns when the
  // plan is computed or, where the device works by itself, enqueued, as far as nothing on the way
  // needs the host; the next plan may then be started and feed what this one chooses.
  // Precondition: fewer than kMostStarted plans are unfinished.
  static constexpr int kMostStarted = 2;
  virtual absl::Status Start(const scheduler::StepPlan& plan) = 0;
  // Waits for the oldest plan that was started and gives its result, which is filled where
  // gives_results() says so and otherwise holds epoch and number alone. May be called by another
  // thread than Start, one at a time.
  virtual absl::StatusOr<scheduler::StepResult> Finish() = 0;

  virtual bool gives_results() const = 0;
  // Whether Finish waits for the device.
  virtual bool finishes_later() const = 0;
};

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_STEP_EXECUTOR_H_
