// The CUDA backend as the rest of the project sees it. These functions exist in every build; one
// without CUDA (PHALANX_CUDA=OFF, or AUTO where no toolkit was found) answers with a status.
#ifndef PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
#define PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_

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
};
// Fails as CudaDeviceCount does; INVALID_ARGUMENT where there is no such device, or it is older
// than sm_80.
absl::StatusOr<std::unique_ptr<Kernels>> CreateCudaKernels(const CudaOptions& options);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
