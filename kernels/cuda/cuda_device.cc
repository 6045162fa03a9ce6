#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cublas_library.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_memory.h"
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
  std::shared_ptr<const cuda::cublas::Library> library;
  if (options.numerics == Numerics::kFast) {
    auto loaded = cuda::cublas::LoadLibrary();
    if (!loaded.ok()) return loaded.status();
    library = *std::move(loaded);
  }
  size_t available = 0;
  size_t total = 0;
  cudaError_t error = cudaSetDevice(options.device);
  if (error == cudaSuccess) error = cudaMemGetInfo(&available, &total);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA device ", options.device,
                                                      " can't be used: ", cudaGetErrorString(error),
                                                      "; check nvidia-smi for who holds it"));
  }
  const absl::StatusOr<int64_t> arena_bytes = cuda::ArenaBytes(
      {options.memory_bytes, options.memory_fraction, options.memory_is_shared}, options.device,
      static_cast<int64_t>(available), static_cast<int64_t>(total));
  if (!arena_bytes.ok()) return arena_bytes.status();
  auto memory = cuda::DeviceMemory::Create(options.device, *arena_bytes);
  if (!memory.ok()) return memory.status();
  auto kernels = std::make_unique<CudaKernels>(options, *std::move(memory));
  if (library != nullptr) {
    if (absl::Status status = kernels->UseLibrary(std::move(library)); !status.ok()) return status;
  }
  return kernels;
}

}  // namespace phalanx::kernels
