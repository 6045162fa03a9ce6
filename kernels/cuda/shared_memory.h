// Dynamic shared memory that together with the static may exceed 48 KiB, which a kernel must be
// allowed first.
#ifndef PHALANX_KERNELS_CUDA_SHARED_MEMORY_H_
#define PHALANX_KERNELS_CUDA_SHARED_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>

namespace phalanx::kernels::cuda {

// Lets blocks of `kernel` have `bytes` on the calling thread's device. What is allowed never
// shrinks: other instances and other graphs of the process launch the same kernel.
// Every kernel, also one without shared memory, asks for multiprocessors that give as much of their
// memory to it as they can. Else the driver chooses for each kernel by itself, and blocks that want
// different shares don't stand on one multiprocessor: no kernel would start early
// (launch_order.cuh) on those where the one before still runs. (Volta Tuning Guide, 1.4.3.2, has
// that hint for this.)
cudaError_t AllowShared(const void* kernel, size_t bytes);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_SHARED_MEMORY_H_
