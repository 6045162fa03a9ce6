// Starting kernels: every launch goes through here, and its error is returned. Where the calling
// thread records for the stream (recorder.h) the launch is noted, not made. (A test compiles the
// kernels for the host with a header of the same name in place of this one.)
#ifndef PHALANX_KERNELS_CUDA_LAUNCH_CUH_
#define PHALANX_KERNELS_CUDA_LAUNCH_CUH_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/recorder.h"
#include "kernels/cuda/shared_memory.h"

// A block's dynamic shared memory as `Type* name`, aligned to 16 bytes.
#define PHALANX_DYNAMIC_SHARED(Type, name)                          \
  extern __shared__ __align__(16) uint8_t phalanx_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(phalanx_dynamic_shared)

namespace phalanx::kernels::cuda {

// For launches that are made of parts (cuda_graph.h).
template <typename... Parameters>
const void* AddressOf(void (*kernel)(Parameters...)) {
  return reinterpret_cast<const void*>(kernel);
}

// grid: blocks, `threads` a block. `arguments` become the kernel's parameters.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (Recorder* const recorder = Recorder::Of(stream); recorder != nullptr) {
    recorder->Record(kernel, {grid.x, grid.y, grid.z}, threads, shared_bytes, arguments...);
    return cudaSuccess;
  }
  const cudaError_t error = AllowShared(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LAUNCH_CUH_
