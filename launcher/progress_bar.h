// How far loading is: a bar on stderr, on a terminal only, and a text for `phalanx status`.
#ifndef PHALANX_LAUNCHER_PROGRESS_BAR_H_
#define PHALANX_LAUNCHER_PROGRESS_BAR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace phalanx::launcher {

// Shows itself only when loading has taken a second; thread-safe.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  void Update(int64_t done, int64_t total);

 private:
  const std::string label_;
  const bool terminal_;
  const absl::Time start_;
  absl::Mutex mutex_;
  absl::Time last_ ABSL_GUARDED_BY(mutex_);
  bool shown_ ABSL_GUARDED_BY(mutex_) = false;
};

// The bytes of all replicas as one; thread-safe.
class LoadingProgress {
 public:
  explicit LoadingProgress(int replicas) : parts_(replicas) {}
  void Update(int replica, int64_t done, int64_t total);
  // "1.2 GiB of 2.5 GiB loaded"; "starting the ranks" before any has told.
  std::string Message() const;

 private:
  struct Bytes {
    int64_t done = 0;
    int64_t total = 0;
  };
  Bytes Sum() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::vector<Bytes> parts_ ABSL_GUARDED_BY(mutex_);  // by replica
  ProgressBar bar_{"loading"};
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PROGRESS_BAR_H_
