// A build without CUDA.
#include "absl/status/status.h"
#include "kernels/cuda/cuda_device.h"

namespace phalanx::kernels {
namespace {

absl::Status NotBuilt() {
  return absl::FailedPreconditionError(
      "no CUDA device: this binary was built without CUDA; use --device cpu, or configure with "
      "-DPHALANX_CUDA=ON on a machine with a CUDA toolkit and build again");
}

}  // namespace

bool BuiltWithCuda() { return false; }

absl::StatusOr<int> CudaDeviceCount() { return NotBuilt(); }

absl::StatusOr<std::unique_ptr<Kernels>> CreateCudaKernels(const CudaOptions& /*options*/) {
  return NotBuilt();
}

}  // namespace phalanx::kernels
