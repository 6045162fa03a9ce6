// A progress bar on stderr, on a terminal only.
#ifndef PHALANX_LAUNCHER_PROGRESS_BAR_H_
#define PHALANX_LAUNCHER_PROGRESS_BAR_H_

#include <cstdint>
#include <string>

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

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PROGRESS_BAR_H_
