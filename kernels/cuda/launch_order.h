// Whether kernels may be started early (launch_order.cuh).
#ifndef PHALANX_KERNELS_CUDA_LAUNCH_ORDER_H_
#define PHALANX_KERNELS_CUDA_LAUNCH_ORDER_H_

#include <cuda_runtime_api.h>

namespace phalanx::kernels::cuda {

// Sets `*waits` to whether the code that the calling thread's device runs has the kernels' waits:
// it may be older than the device, where a build names other architectures.
cudaError_t KernelsWait(bool* waits);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LAUNCH_ORDER_H_
