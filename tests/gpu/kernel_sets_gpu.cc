#include "gtest/gtest.h"
#include "tests/gpu/tested_device.h"
#include "tests/kernels/host_memory_kernels.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {

const bool kBf16HasCpuBits = false;
const TestSize kTestSize = TestSize::kLarge;

std::vector<KernelSet> KernelSets() {
  return {{"cuda", [](int /*threads*/) -> std::unique_ptr<Kernels> {
             auto kernels = CreateCudaKernels(testing::TestedDevice());
             EXPECT_TRUE(kernels.ok()) << kernels.status();
             return std::make_unique<HostMemoryKernels>(*std::move(kernels));
           }}};
}

std::vector<NamedKernels> AllKernels() {
  std::vector<NamedKernels> all;
  all.push_back({"cuda", KernelSets()[0].make(1)});
  return all;
}

}  // namespace phalanx::kernels
