// `phalanx bench kernels`: how near MatMul comes to the machine's limits, as ratios within one run.
#ifndef PHALANX_KERNELS_BENCH_KERNEL_BENCH_H_
#define PHALANX_KERNELS_BENCH_KERNEL_BENCH_H_

#include <ostream>

#include "absl/status/status.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

struct KernelBenchOptions {
  int threads = 1;
  CpuPath path = AvailableCpuPaths().back();
  int pairs = 7;       // interleaved pairs of limit and measurement; odd counts have a clear median
  bool quick = false;  // less memory and time, for tests: the figures mean little
  bool json = false;   // one JSON object in place of the table
};

// On the linear layers of Llama-3.2-1B (hidden 2048, intermediate 8192, 32 heads, 8 KV heads of 64,
// vocabulary 128256) with random BF16 weights, K leaves as at tensor parallelism 1:
//   decode: bytes of packed weights read per second at one row, over the best read bandwidth found;
//   prefill: floating-point operations per second at 512 rows, over those of the path's matrix unit
//   (FMA or TDPBF16PS) on registers.
// Needs about 1.6 GB (quick: 0.5 GB). INVALID_ARGUMENT for bad options or a path that the machine
// lacks; RESOURCE_EXHAUSTED without that memory.
absl::Status RunKernelBench(const KernelBenchOptions& options, std::ostream& out);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_BENCH_KERNEL_BENCH_H_
