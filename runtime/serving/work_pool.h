// A few threads for requests too large to be parsed and tokenized on gRPC's own.
#ifndef PHALANX_RUNTIME_SERVING_WORK_POOL_H_
#define PHALANX_RUNTIME_SERVING_WORK_POOL_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace phalanx::serving {

class WorkPool {
 public:
  // `capacity`: jobs that may wait.
  WorkPool(int threads, size_t capacity);
  // Runs what is queued, then ends.
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // False: too many are waiting; the job will not run.
  bool Add(std::function<void()> job);

 private:
  void Run();

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_WORK_POOL_H_
