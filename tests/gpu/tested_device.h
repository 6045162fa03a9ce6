// Which device the decoder's tests run on: a GPU, or in every build the emulated one
// (tests/kernels/emulation). Each test executable links one tested_device_*.cc.
#ifndef PHALANX_TESTS_GPU_TESTED_DEVICE_H_
#define PHALANX_TESTS_GPU_TESTED_DEVICE_H_

#include "kernels/cuda/cuda_device.h"

namespace phalanx::testing {

// A device that is thousands of times slower than a CPU: few models, few tokens, few layouts.
extern const bool kSlowDevice;

// For one of several ranks on the device.
kernels::CudaOptions TestedDevice();

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_GPU_TESTED_DEVICE_H_
