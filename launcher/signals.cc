#include "launcher/signals.h"

#include <pthread.h>

namespace phalanx::launcher {

// SIGUSR2 to the thread itself ends it, if ends_ is set: anybody may send one.
StopOnSignal::StopOnSignal(std::function<void(int signal)> on_signal) {
  sigemptyset(&signals_);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) sigaddset(&signals_, signal);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  thread_ = std::thread([this, on_signal = std::move(on_signal)] {
    int signal = 0;
    while (!ends_ && sigwait(&signals_, &signal) == 0) {
      if (signal != SIGUSR2) on_signal(signal);
    }
  });
}

StopOnSignal::~StopOnSignal() {
  ends_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR2);
  thread_.join();
}

}  // namespace phalanx::launcher
