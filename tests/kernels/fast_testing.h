// Shared by the tests of profile `fast` on a device that has it.
#ifndef PHALANX_TESTS_KERNELS_FAST_TESTING_H_
#define PHALANX_TESTS_KERNELS_FAST_TESTING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {

// Both profiles of one device; skipped where it has one alone.
class FastBesideExact : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<KernelSet> sets = FastKernelSets();
    if (sets.empty()) GTEST_SKIP() << "this device has no profile fast here";
    exact_ = KernelSets()[0].make(1);
    fast_ = sets[0].make(1);
    most_rows_ = sets[0].most_ordered_rows;
  }

  std::unique_ptr<Kernels> exact_;
  std::unique_ptr<Kernels> fast_;
  int64_t most_rows_ = 0;  // of products in exact's order
};

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_FAST_TESTING_H_
