// Ranks as threads of one process, for tests.
#ifndef PHALANX_TESTS_TESTING_RANK_THREADS_H_
#define PHALANX_TESTS_TESTING_RANK_THREADS_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "comm/local/local_group.h"

namespace phalanx::testing {

using RankFn = std::function<absl::Status(comm::Communicator&)>;

// Runs `fn` once for each of `n` ranks, each in a thread with its communicator, and returns what
// each returned, by rank. A rank that returns leaves its group, so the others' calls that still
// wait for it end with UNAVAILABLE rather than hang.
inline std::vector<absl::Status> RunRanks(int n, const RankFn& fn,
                                          const comm::LocalGroupOptions& options = {}) {
  std::vector<std::unique_ptr<comm::Communicator>> group = comm::CreateLocalGroup(n, options);
  std::vector<absl::Status> statuses(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&group, &statuses, &fn, r] {
      std::unique_ptr<comm::Communicator> communicator = std::move(group[r]);
      statuses[r] = fn(*communicator);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_RANK_THREADS_H_
