#include <iostream>

#include "gtest/gtest.h"
#include "tests/gpu/tested_device.h"

namespace phalanx::testing {

const bool kSlowDevice = false;

kernels::CudaOptions TestedDevice() { return {.device = 0, .pack_threads = 1}; }

}  // namespace phalanx::testing

// Where there is no device nothing runs, and CTest counts the executable as skipped by this line.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const auto count = phalanx::kernels::CudaDeviceCount(); !count.ok()) {
    std::cout << "skipped: " << count.status().message() << std::endl;
    return 0;
  }
  return RUN_ALL_TESTS();
}
