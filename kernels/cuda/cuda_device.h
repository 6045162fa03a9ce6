// The CUDA backend as the rest of the project sees it. These functions exist in every build; one
// without CUDA (PHALANX_CUDA=OFF, or AUTO where no toolkit was found) answers with a status.
#ifndef PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
#define PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

// Whether this build has the CUDA backend.
bool BuiltWithCuda();

// Devices of this machine, at least one. FAILED_PRECONDITION where this build has no CUDA, where
// there is no driver, or where it is too old; NOT_FOUND where there is no device.
absl::StatusOr<int> CudaDeviceCount();

struct CudaOptions {
  int device = 0;        // as CUDA counts them
  int pack_threads = 4;  // threads of the host that pack weights
  // How much of the device's memory is taken at the start, for all that Allocate gives and for the
  // ops' scratch: in bytes, or as a fraction (above 0, up to 1) of all that the device has, less
  // what is held of it already. One of the two; neither: each allocation is the driver's. What the
  // driver needs itself (code, graphs, other libraries) comes on top.
  int64_t memory_bytes = 0;
  double memory_fraction = 0;
  // Steps are replayed as CUDA graphs (step_graphs.h). Without, each kernel is launched by itself,
  // with the same results.
  bool graphs = true;
};
// Fails as CudaDeviceCount does; INVALID_ARGUMENT where there is no such device, or it is older
// than sm_80; INVALID_ARGUMENT or RESOURCE_EXHAUSTED where it can't give the memory asked for.
absl::StatusOr<std::unique_ptr<Kernels>> CreateCudaKernels(const CudaOptions& options);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
