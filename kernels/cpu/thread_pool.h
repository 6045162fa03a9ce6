// A fixed set of compute threads that sleep while there is nothing to do.
#ifndef PHALANX_KERNELS_CPU_THREAD_POOL_H_
#define PHALANX_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace phalanx::kernels {

// Runs one loop at a time. The calling thread takes part, so `threads` - 1 are started. A late
// thread holds nothing up: a loop ends when its chunks are done, not when every thread has woken,
// so a pool larger than the machine still works.
//
// Calls come from one thread at a time. Results must not depend on which thread runs a chunk.
class ThreadPool {
 public:
  // `threads` >= 1. `spin_microseconds`: how long an idle thread polls before it sleeps on a futex;
  // worth it only while no more compute threads than cores exist on the machine. 0: sleep at once.
  explicit ThreadPool(int threads, int spin_microseconds = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end) for disjoint ranges that cover [0, count), at most a few per thread.
  // `min_chunk` >= 1: every begin is a multiple of it, and so is every end but `count`. Each call
  // runs under ScopedFpEnvironment. Returns when all have returned. Small counts run on the caller
  // alone. Calling it from inside fn is a programmer error and ends the process.
  void ParallelFor(int64_t count, int64_t min_chunk,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

 private:
  using Function = absl::FunctionRef<void(int64_t, int64_t)>;

  void WorkerLoop();
  // Claims and runs chunks of the current loop until none is left.
  void RunChunks();
  bool Spin(const std::atomic<uint32_t>& word, uint32_t while_equal) const;

  const int spin_microseconds_;
  std::vector<std::thread> workers_;

  // The current loop; written by the caller while no chunk is claimed or claimable.
  const Function* function_ = nullptr;
  int64_t count_ = 0;
  int64_t chunk_ = 0;
  uint32_t num_chunks_ = 0;

  alignas(64) std::atomic<uint32_t> unclaimed_{0};   // chunks nobody has taken yet
  alignas(64) std::atomic<uint32_t> unfinished_{0};  // futex word of the caller
  alignas(64) std::atomic<uint32_t> generation_{0};  // futex word of the workers
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_THREAD_POOL_H_
