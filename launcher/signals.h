// Signals that ask a command to stop, taken by a thread of their own.
#ifndef PHALANX_LAUNCHER_SIGNALS_H_
#define PHALANX_LAUNCHER_SIGNALS_H_

#include <atomic>
#include <csignal>
#include <functional>
#include <thread>
#include <utility>

namespace phalanx::launcher {

// Blocks SIGINT, SIGTERM and SIGUSR1 in the calling thread (and those it starts later) and calls
// `on_signal` for each from a thread of its own, where anything may be done. Make it before other
// threads. SIGUSR2, which it uses itself, is ignored meanwhile.
class StopOnSignal {
 public:
  explicit StopOnSignal(std::function<void(int signal)> on_signal);
  ~StopOnSignal();
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

 private:
  sigset_t signals_;
  std::atomic<bool> ends_ = false;
  std::thread thread_;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_SIGNALS_H_
