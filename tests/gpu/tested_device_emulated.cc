#include "tests/gpu/tested_device.h"

namespace phalanx::testing {

const bool kSlowDevice = true;

kernels::CudaOptions TestedDevice() { return {.device = 0, .pack_threads = 1}; }

}  // namespace phalanx::testing
