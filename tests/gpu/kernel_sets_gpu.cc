#include <iostream>

#include "gtest/gtest.h"
#include "kernels/cuda/cublas_library.h"
#include "tests/gpu/tested_device.h"
#include "tests/kernels/host_memory_kernels.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {
namespace {

std::unique_ptr<Kernels> OnDevice(Numerics numerics) {
  CudaOptions options = testing::TestedDevice();
  options.numerics = numerics;
  auto kernels = CreateCudaKernels(options);
  EXPECT_TRUE(kernels.ok()) << kernels.status();
  return std::make_unique<HostMemoryKernels>(*std::move(kernels));
}

}  // namespace

const bool kBf16HasCpuBits = false;
const TestSize kTestSize = TestSize::kLarge;

std::vector<KernelSet> KernelSets() {
  return {{"cuda", [](int /*threads*/) { return OnDevice(Numerics::kExact); }}};
}

std::vector<KernelSet> FastKernelSets() {
  // Tests are listed where there is no device, too.
  if (const auto library = cuda::cublas::LoadLibrary(); !library.ok()) {
    std::cerr << "profile fast is left out: " << library.status().message() << "\n";
    return {};
  }
  return {{"cuda_fast", [](int /*threads*/) { return OnDevice(Numerics::kFast); }, 16}};
}

std::vector<NamedKernels> AllKernels() {
  std::vector<NamedKernels> all;
  all.push_back({"cuda", KernelSets()[0].make(1)});
  return all;
}

}  // namespace phalanx::kernels
