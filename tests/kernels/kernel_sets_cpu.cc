#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {

const bool kBf16HasCpuBits = true;
const TestSize kTestSize = TestSize::kMedium;

std::vector<KernelSet> KernelSets() {
  std::vector<KernelSet> sets;
  for (const CpuPath path : AvailableCpuPaths()) {
    sets.push_back({std::string(Name(path)), [path](int threads) {
                      auto kernels = CreateCpuKernels({threads, path});
                      EXPECT_TRUE(kernels.ok()) << kernels.status();
                      return *std::move(kernels);
                    }});
    // Where there are no vectors large tests take minutes.
    if (path == CpuPath::kPortable) sets.back().size = TestSize::kSmall;
  }
  return sets;
}

std::vector<KernelSet> FastKernelSets() { return {}; }

std::vector<NamedKernels> AllKernels() {
  std::vector<NamedKernels> all;
  for (const KernelSet& set : KernelSets()) {
    for (const int threads : {1, 2, 3}) {
      all.push_back({absl::StrCat(set.name, " x", threads), set.make(threads)});
    }
  }
  return all;
}

}  // namespace phalanx::kernels
