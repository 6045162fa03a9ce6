#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device_errors.h"

namespace phalanx::kernels {

bool BuiltWithCuda() { return true; }

absl::StatusOr<int> CudaDeviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) (void)cudaGetLastError();
  cuda::DeviceQuery query;
  query.no_device = error == cudaErrorNoDevice || (error == cudaSuccess && count == 0);
  query.no_driver = error == cudaErrorInsufficientDriver;
  if (query.no_driver) (void)cudaDriverGetVersion(&query.driver_version);
  if (error != cudaSuccess) query.error = cudaGetErrorString(error);
  query.runtime_version = CUDART_VERSION;
  absl::Status status = cuda::ExplainDevices(query);
  if (!status.ok()) return status;
  return count;
}

absl::StatusOr<std::unique_ptr<Kernels>> CreateCudaKernels(const CudaOptions& options) {
  const absl::StatusOr<int> count = CudaDeviceCount();
  if (!count.ok()) return count.status();
  if (absl::Status status = cuda::CheckDeviceIndex(options.device, *count); !status.ok()) {
    return status;
  }
  int major = 0;
  int minor = 0;
  for (const auto& [attribute, value] : {std::pair{cudaDevAttrComputeCapabilityMajor, &major},
                                         std::pair{cudaDevAttrComputeCapabilityMinor, &minor}}) {
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, options.device);
        error != cudaSuccess) {
      return absl::InternalError(absl::StrCat(
          "CUDA device ", options.device, " says nothing of itself: ", cudaGetErrorString(error)));
    }
  }
  if (absl::Status status = cuda::CheckCapability(options.device, major, minor); !status.ok()) {
    return status;
  }
  return std::make_unique<CudaKernels>(options);
}

}  // namespace phalanx::kernels
