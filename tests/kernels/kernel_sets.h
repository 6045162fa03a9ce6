// Which op sets a test's body runs on. Each test executable links one kernel_sets_*.cc: the CPU's
// paths, a CPU behind HostMemoryKernels (which checks that adapter without a GPU), or a GPU.
#ifndef PHALANX_TESTS_KERNELS_KERNEL_SETS_H_
#define PHALANX_TESTS_KERNELS_KERNEL_SETS_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::kernels {

// Whether products of BF16 (matmul, attention) have the reference's bits here, too. Everything else
// has them on every device, but in profile `fast` (FastKernelSets).
extern const bool kBf16HasCpuBits;
inline bool HasCpuBits(DType type) { return kBf16HasCpuBits || type != DType::kBF16; }

// How much of a large test is worth its time here.
enum class TestSize { kSmall, kMedium, kLarge };
extern const TestSize kTestSize;
// `few` where a test has to be small, else `all`.
template <typename T>
std::vector<T> Sized(std::vector<T> few, std::vector<T> all) {
  return kTestSize == TestSize::kSmall ? std::move(few) : std::move(all);
}

struct NamedKernels {
  std::string name;
  std::unique_ptr<Kernels> kernels;
};
// For the CPU: every path of this machine with 1, 2 and 3 threads.
std::vector<NamedKernels> AllKernels();

struct KernelSet {
  std::string name;  // letters and digits
  std::function<std::unique_ptr<Kernels>(int threads)> make;
  // Products of more rows are added in a library's order: neither the reference's bits nor R1 are
  // promised for them.
  int64_t most_ordered_rows = std::numeric_limits<int64_t>::max();
  TestSize size = kTestSize;  // of large tests

  bool Orders(int64_t rows) const { return rows <= most_ordered_rows; }
};
// One of each path or device.
std::vector<KernelSet> KernelSets();
// Profile `fast` of the device, where it has one.
std::vector<KernelSet> FastKernelSets();
// What tests of products run on: all of the above.
inline std::vector<KernelSet> MatMulSets() {
  std::vector<KernelSet> sets = KernelSets();
  for (KernelSet& set : FastKernelSets()) sets.push_back(std::move(set));
  return sets;
}
inline std::ostream& operator<<(std::ostream& out, const KernelSet& set) { return out << set.name; }

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_KERNEL_SETS_H_
