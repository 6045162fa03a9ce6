// Loops that keep one core's matrix unit busy on registers alone.
#ifndef PHALANX_KERNELS_BENCH_PEAK_H_
#define PHALANX_KERNELS_BENCH_PEAK_H_

#include <cstdint>

namespace phalanx::kernels::bench {

struct PeakLoop {
  const char* instruction;
  int64_t flops_per_iteration;  // a multiply and an add count as two
  void (*run)(int64_t iterations);
};

const PeakLoop& PeakPortable();
// Each runs only where the machine has the instructions.
const PeakLoop& PeakAvx2();
const PeakLoop& PeakAvx512();
const PeakLoop& PeakAmx();

}  // namespace phalanx::kernels::bench

#endif  // PHALANX_KERNELS_BENCH_PEAK_H_
