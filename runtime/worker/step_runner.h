// Runs a rank's plans one after the other and hands on their results. Where the device works by
// itself, results are waited for on a thread of their own: the next plan is enqueued while the
// device works on the one before, and the device doesn't wait for the host.
#ifndef PHALANX_RUNTIME_WORKER_STEP_RUNNER_H_
#define PHALANX_RUNTIME_WORKER_STEP_RUNNER_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "runtime/scheduler/step_plan.h"
#include "runtime/worker/step_executor.h"

namespace phalanx::worker {

class StepRunner {
 public:
  struct Callbacks {
    // On the rank that gives results, in the plans' order. An error ends the runner. May be called
    // while Run() is.
    std::function<absl::Status(scheduler::StepResult)> result;
    // A plan for which Run() returned OK has failed: called once, from the runner's thread.
    std::function<void(const absl::Status&)> failure;
  };

  // `executor` is borrowed and used by nobody else.
  StepRunner(StepExecutor& executor, Callbacks callbacks);
  ~StepRunner() { (void)Stop(); }
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  // Returns when the plan is done or, where the device works by itself, enqueued. The error of this
  // plan or of an earlier one, with its number.
  absl::Status Run(const scheduler::StepPlan& plan);
  // Waits for what is under way and gives the error of the first plan that failed, if one has.
  absl::Status Stop();
  // The same without waiting, of plans for which Run() had returned OK.
  absl::Status failure();

 private:
  absl::Status FinishOldest(uint64_t number);
  void FinishAll();

  StepExecutor& executor_;
  const Callbacks callbacks_;
  std::thread finisher_;  // only where plans finish later
  // Not absl::Mutex: the system's Abseil is not instrumented, and ThreadSanitizer takes what it
  // guards for unguarded.
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<uint64_t> started_;  // numbers of plans that aren't finished
  absl::Status failure_;
  bool stopping_ = false;
};

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_STEP_RUNNER_H_
