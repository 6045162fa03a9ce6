#include "gtest/gtest.h"
#include "tests/kernels/host_memory_kernels.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {

const bool kBf16HasCpuBits = true;
const TestSize kTestSize = TestSize::kMedium;

std::vector<KernelSet> KernelSets() {
  return {{"copied", [](int threads) -> std::unique_ptr<Kernels> {
             CpuOptions options;
             options.threads = threads;
             auto kernels = CreateCpuKernels(options);
             EXPECT_TRUE(kernels.ok()) << kernels.status();
             return std::make_unique<HostMemoryKernels>(*std::move(kernels));
           }}};
}

std::vector<KernelSet> FastKernelSets() { return {}; }

std::vector<NamedKernels> AllKernels() {
  std::vector<NamedKernels> all;
  all.push_back({"copied", KernelSets()[0].make(2)});
  return all;
}

}  // namespace phalanx::kernels
