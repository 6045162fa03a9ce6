#include "kernels/cpu/thread_pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>

#include "kernels/check.h"
#include "kernels/cpu/fp_environment.h"

namespace phalanx::kernels {
namespace {

// Chunks per thread: enough that a thread which loses its core for a moment doesn't hold up all.
constexpr int64_t kChunksPerThread = 4;

thread_local bool inside_parallel_for = false;

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void FutexWait(std::atomic<uint32_t>& word, uint32_t while_equal) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, while_equal, nullptr,
          nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word, int threads) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, threads, nullptr,
          nullptr, 0);
}

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_microseconds) : spin_microseconds_(spin_microseconds) {
  PHALANX_CHECK(threads >= 1) << "a thread pool of " << threads << " threads";
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  generation_.fetch_add(1);
  FutexWake(generation_, INT_MAX);
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::Spin(const std::atomic<uint32_t>& word, uint32_t while_equal) const {
  if (spin_microseconds_ == 0) return word.load(std::memory_order_acquire) != while_equal;
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::microseconds(spin_microseconds_);
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != while_equal) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

void ThreadPool::RunChunks() {
  uint32_t left = unclaimed_.load(std::memory_order_acquire);
  while (left != 0) {
    // Winning a chunk keeps the loop's fields in place until `unfinished_` says it is done. (A
    // thread that slept since an earlier loop takes part in the current one like any other.)
    if (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
      continue;
    }
    const int64_t begin = static_cast<int64_t>(num_chunks_ - left) * chunk_;
    (*function_)(begin, std::min(begin + chunk_, count_));
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) FutexWake(unfinished_, 1);
    left = unclaimed_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop() {
  ScopedFpEnvironment environment;
  inside_parallel_for = true;
  uint32_t seen = 0;
  while (true) {
    if (!Spin(generation_, seen)) {
      sleepers_.fetch_add(1);
      while (generation_.load() == seen) FutexWait(generation_, seen);
      sleepers_.fetch_sub(1);
    }
    seen = generation_.load();
    if (stopping_.load()) return;
    RunChunks();
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t min_chunk, Function fn) {
  PHALANX_CHECK(!inside_parallel_for) << "ParallelFor was called from inside a ParallelFor";
  PHALANX_CHECK(min_chunk >= 1) << "min_chunk is " << min_chunk;
  if (count <= 0) return;
  ScopedFpEnvironment environment;
  inside_parallel_for = true;
  // The fewest units of min_chunk that keep the number of chunks within a few per thread.
  const int64_t units = (count + min_chunk - 1) / min_chunk;
  const int64_t wanted = size() == 1 ? 1 : std::min(units, size() * kChunksPerThread);
  const int64_t chunk = (units + wanted - 1) / wanted * min_chunk;
  const auto num_chunks = static_cast<uint32_t>((count + chunk - 1) / chunk);
  if (num_chunks == 1) {
    fn(0, count);
    inside_parallel_for = false;
    return;
  }
  function_ = &fn;
  count_ = count;
  chunk_ = chunk;
  num_chunks_ = num_chunks;
  unfinished_.store(num_chunks, std::memory_order_relaxed);
  unclaimed_.store(num_chunks, std::memory_order_release);
  generation_.fetch_add(1);
  if (sleepers_.load() != 0) {
    FutexWake(generation_, static_cast<int>(std::min<int64_t>(num_chunks - 1, size() - 1)));
  }
  RunChunks();
  uint32_t left = unfinished_.load(std::memory_order_acquire);
  while (left != 0) {
    if (!Spin(unfinished_, left)) FutexWait(unfinished_, left);
    left = unfinished_.load(std::memory_order_acquire);
  }
  inside_parallel_for = false;
}

}  // namespace phalanx::kernels
