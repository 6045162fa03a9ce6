// What the signals' thread and the replicas' loops tell the main thread of `phalanx serve`.
#ifndef PHALANX_LAUNCHER_SERVE_EVENTS_H_
#define PHALANX_LAUNCHER_SERVE_EVENTS_H_

#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace phalanx::launcher {

class ServeEvents {
 public:
  // A signal asks for the end. A start that is under way is stopped, for which this waits.
  void RequestStop(int signal) {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
      signal_ = signal;
    }
    absl::MutexLock lock(&start_mutex_);
    if (stop_start_) stop_start_(signal);
  }

  // A start is under way, which `stop` ends; null: it is over, and so is any call of its `stop`.
  // False: a signal has asked for the end.
  bool SetStart(std::function<void(int signal)> stop) {
    {
      absl::MutexLock lock(&start_mutex_);
      stop_start_ = std::move(stop);
    }
    absl::MutexLock lock(&mutex_);
    return !stop_;
  }

  // From a replica's loop, for whose end the stop of a start waits.
  void ReplicaChanged() {
    absl::MutexLock lock(&mutex_);
    changed_ = true;
  }

  // That asked for the end; 0: none has.
  int signal() {
    absl::MutexLock lock(&mutex_);
    return signal_;
  }

  // Waits until a replica has changed since the last time; false: a signal asks for the end.
  bool AwaitChange() {
    const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stop_ || changed_; };
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&has_news));
    changed_ = false;
    return !stop_;
  }

 private:
  // Two, since the one is held while a start is stopped and replicas' loops take the other.
  absl::Mutex start_mutex_;
  std::function<void(int signal)> stop_start_ ABSL_GUARDED_BY(start_mutex_);
  absl::Mutex mutex_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int signal_ ABSL_GUARDED_BY(mutex_) = 0;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_SERVE_EVENTS_H_
