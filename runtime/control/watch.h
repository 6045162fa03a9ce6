// Watching the coordinator: what keeps a process that is no rank from outliving it.
#ifndef PHALANX_RUNTIME_CONTROL_WATCH_H_
#define PHALANX_RUNTIME_CONTROL_WATCH_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace phalanx::control {

struct WatchOptions {
  std::string coordinator;  // "HOST:PORT"
  std::string token;
  absl::Duration connect_timeout = absl::Seconds(10);
  // A coordinator that answers no ping for their sum counts as gone.
  absl::Duration keepalive_time = absl::Seconds(4);
  absl::Duration keepalive_timeout = absl::Seconds(5);
  // Called once, from a thread of the watch, when the coordinator is gone; not after the destructor
  // has begun.
  std::function<void()> on_gone;
};

class CoordinatorWatch {
 public:
  // UNAVAILABLE: nobody answers there within connect_timeout. PERMISSION_DENIED: the token is
  // wrong.
  static absl::StatusOr<std::unique_ptr<CoordinatorWatch>> Connect(const WatchOptions& options);
  ~CoordinatorWatch();
  CoordinatorWatch(const CoordinatorWatch&) = delete;
  CoordinatorWatch& operator=(const CoordinatorWatch&) = delete;

 private:
  class Impl;
  explicit CoordinatorWatch(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_WATCH_H_
