// phalanx_kernel_bench_main [--threads N] [--path NAME] [--pairs N] [--quick] [--json]
#include <cstdlib>
#include <iostream>
#include <string>

#include "kernels/bench/kernel_bench.h"

int main(int argc, char** argv) {
  phalanx::kernels::KernelBenchOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--json") {
      options.json = true;
    } else if (flag == "--threads" && value != nullptr) {
      options.threads = std::atoi(value);
      ++i;
    } else if (flag == "--pairs" && value != nullptr) {
      options.pairs = std::atoi(value);
      ++i;
    } else if (flag == "--path" && value != nullptr) {
      bool known = false;
      for (const auto path : phalanx::kernels::AvailableCpuPaths()) {
        if (phalanx::kernels::Name(path) == value) {
          options.path = path;
          known = true;
        }
      }
      if (!known) {
        std::cerr << "this machine has no CPU path " << value << "\n";
        return 2;
      }
      ++i;
    } else {
      std::cerr << "unknown flag or missing value: " << flag << "\n";
      return 2;
    }
  }
  const absl::Status status = phalanx::kernels::RunKernelBench(options, std::cout);
  if (!status.ok()) {
    std::cerr << status.message() << "\n";
    return absl::IsInvalidArgument(status) ? 2 : 1;
  }
  return 0;
}
