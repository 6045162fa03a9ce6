// A device's own clock on the steps of an engine: CUDA events on the ops' stream, around the work
// of each step.
#ifndef PHALANX_TESTS_GPU_STEP_CLOCK_H_
#define PHALANX_TESTS_GPU_STEP_CLOCK_H_

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_device.h"

namespace phalanx::timing {

// One step, in seconds of the device.
struct DeviceStep {
  double gap = 0;    // from the end of the step before to the beginning of this one's first work
  double span = 0;   // from there to the end of its last work
  double waits = 0;  // of the span: from where the host waited to the first work after it
  int num_waits = 0;
  // The device had run out of work when this step's first was enqueued. `gap` is then short by what
  // the launch itself takes the host, for the event comes right before it.
  bool late = false;
};

class StepClock : public kernels::StepObserver {
 public:
  explicit StepClock(int device) : device_(device) {}
  ~StepClock() override;
  StepClock(const StepClock&) = delete;
  StepClock& operator=(const StepClock&) = delete;

  // Off at first. While no step is under way.
  void TurnOn(bool on) { on_ = on; }
  // The steps since the last call, once the device has passed them; the first has no gap. While no
  // step is under way.
  std::vector<DeviceStep> Take();

  void WorkBegins(void* stream) override;
  void WorkEnds(void* stream) override;
  void StepEnds() override;

 private:
  using Work = std::pair<cudaEvent_t, cudaEvent_t>;  // its beginning and end
  struct Step {
    std::vector<Work> work;
    bool late = false;
  };

  cudaEvent_t Record(void* stream);

  const int device_;
  std::atomic<bool> on_ = false;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<cudaEvent_t> unused_;
  std::vector<Step> steps_;
  Step step_;  // under way
};

// What the clock itself, and what an engine puts between two steps, take of a device that has more
// to do: medians, in seconds.
struct EventTimes {
  double pair = 0;  // between two events with nothing between them
  // The same with two events without a time between them, as an engine marks a step's end and the
  // end of what its arguments were read from: a gap in which nobody was waited for.
  double with_marks = 0;
};
// `bytes`: enough that zeroing them takes the device longer than enqueueing takes the host.
EventTimes MeasureEvents(kernels::Kernels& kernels, int64_t bytes);

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_STEP_CLOCK_H_
