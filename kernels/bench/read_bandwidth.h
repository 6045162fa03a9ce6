// The machine's best read bandwidth: several streams a thread, with and without software prefetch.
#ifndef PHALANX_KERNELS_BENCH_READ_BANDWIDTH_H_
#define PHALANX_KERNELS_BENCH_READ_BANDWIDTH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels::bench {

struct ReadPattern {
  int streams = 1;             // read side by side by each thread
  int64_t prefetch_bytes = 0;  // distance ahead; 0: hardware prefetch only
  std::string Describe() const;
};

// The patterns that are tried.
std::vector<ReadPattern> ReadPatterns();

// Reads `bytes` at `data` once, by all threads of the pool.
void ReadAll(ThreadPool& pool, const ReadPattern& pattern, const void* data, int64_t bytes);

}  // namespace phalanx::kernels::bench

#endif  // PHALANX_KERNELS_BENCH_READ_BANDWIDTH_H_
