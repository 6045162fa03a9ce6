// Sleeping on a 32-bit word, in this process's memory or in memory shared between processes. See
// futex(2).
#ifndef PHALANX_COMM_SHM_FUTEX_H_
#define PHALANX_COMM_SHM_FUTEX_H_

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

namespace phalanx::comm {

// Sleeps while `*word` is `expected`, at most `timeout`. Returns early on a wake-up, a signal or
// for no reason: the caller checks its condition again. `shared`: the word lies in memory that
// several processes map.
inline void FutexWait(std::atomic<uint32_t>* word, uint32_t expected,
                      std::chrono::nanoseconds timeout, bool shared) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  const int64_t ns = timeout.count() < 0 ? 0 : timeout.count();
  timespec ts;
  ts.tv_sec = static_cast<time_t>(ns / 1000000000);
  ts.tv_nsec = static_cast<long>(ns % 1000000000);
  syscall(SYS_futex, word, shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, expected, &ts, nullptr, 0);
}

// Wakes everyone who sleeps on `word`.
inline void FutexWakeAll(std::atomic<uint32_t>* word, bool shared) {
  syscall(SYS_futex, word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Tells the core that this is a spin loop.
inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_SHM_FUTEX_H_
