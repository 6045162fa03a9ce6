#include "tests/gpu/step_clock.h"

#include <memory>

#include "kernels/check.h"
#include "tests/gpu/times.h"

namespace phalanx::timing {
namespace {

void Check(cudaError_t error, const char* what) {
  PHALANX_CHECK(error == cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

double Seconds(cudaEvent_t begin, cudaEvent_t end) {
  float milliseconds = 0;
  Check(cudaEventElapsedTime(&milliseconds, begin, end), "reading a time");
  return milliseconds / 1e3;
}

}  // namespace

StepClock::~StepClock() {
  Take();
  for (cudaEvent_t event : unused_) (void)cudaEventDestroy(event);
}

cudaEvent_t StepClock::Record(void* stream) {
  cudaEvent_t event = nullptr;
  if (unused_.empty()) {
    Check(cudaEventCreate(&event), "creating an event");
  } else {
    event = unused_.back();
    unused_.pop_back();
  }
  Check(cudaEventRecord(event, static_cast<cudaStream_t>(stream)), "recording an event");
  return event;
}

void StepClock::WorkBegins(void* stream) {
  if (!on_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (step_.work.empty() && !steps_.empty() && !steps_.back().work.empty()) {
    const cudaError_t passed = cudaEventQuery(steps_.back().work.back().second);
    step_.late = passed == cudaSuccess;
    if (passed == cudaErrorNotReady) {
      (void)cudaGetLastError();  // no fault, and the next launch is not to find it
    } else {
      Check(passed, "asking for an event");
    }
  }
  step_.work.push_back({Record(stream), nullptr});
}

void StepClock::WorkEnds(void* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  // Not where the clock was turned on in the middle.
  if (step_.work.empty() || step_.work.back().second != nullptr) return;
  step_.work.back().second = Record(stream);
}

void StepClock::StepEnds() {
  if (!on_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  steps_.push_back(std::exchange(step_, {}));
}

std::vector<DeviceStep> StepClock::Take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Check(cudaSetDevice(device_), "choosing the device");
  std::vector<DeviceStep> out;
  cudaEvent_t last = nullptr;
  for (const Step& step : steps_) {
    DeviceStep& found = out.emplace_back();
    found.late = step.late;
    if (step.work.empty()) continue;
    Check(cudaEventSynchronize(step.work.back().second), "waiting for an event");
    if (last != nullptr) found.gap = Seconds(last, step.work.front().first);
    last = step.work.back().second;
    found.span = Seconds(step.work.front().first, last);
    for (size_t i = 1; i < step.work.size(); ++i) {
      found.waits += Seconds(step.work[i - 1].second, step.work[i].first);
      ++found.num_waits;
    }
  }
  for (const Step& step : steps_) {
    for (const auto& [begin, end] : step.work) unused_.insert(unused_.end(), {begin, end});
  }
  steps_.clear();
  return out;
}

EventTimes MeasureEvents(kernels::Kernels& kernels, int64_t bytes) {
  constexpr int kTimes = 33;
  auto memory = kernels.Allocate(bytes);
  PHALANX_CHECK(memory.ok()) << memory.status().message();
  std::vector<std::unique_ptr<kernels::Marker>> markers;
  const auto measure = [&](bool marks) {
    std::vector<std::pair<cudaEvent_t, cudaEvent_t>> events(kTimes);
    for (auto& [begin, end] : events) {
      kernels.Zero(memory->data(), bytes);
      const auto stream = static_cast<cudaStream_t>(kernels.native_stream());
      for (cudaEvent_t* event : {&begin, &end}) {
        Check(cudaEventCreate(event), "creating an event");
      }
      Check(cudaEventRecord(begin, stream), "recording an event");
      for (int i = 0; marks && i < 2; ++i) markers.push_back(kernels.Mark());
      Check(cudaEventRecord(end, stream), "recording an event");
    }
    kernels.Synchronize();
    std::vector<double> seconds;
    for (const auto& [begin, end] : events) {
      seconds.push_back(Seconds(begin, end));
      Check(cudaEventDestroy(begin), "destroying an event");
      Check(cudaEventDestroy(end), "destroying an event");
    }
    return TimesOf(seconds).median;
  };
  measure(true);
  EventTimes times;
  times.pair = measure(false);
  times.with_marks = measure(true);
  return times;
}

}  // namespace phalanx::timing
