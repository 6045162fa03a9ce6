// Copies and zeros on the device, as kernels: a graph's kernel can be given any arguments, while
// its 2D copies and its memsets can't be given other sizes (the driver refuses).
#ifndef PHALANX_KERNELS_CUDA_MOVES_H_
#define PHALANX_KERNELS_CUDA_MOVES_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/recorder.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// `rows` runs of `width` bytes; runs begin `pitch` bytes after each other.
struct ByteRows {
  void* data = nullptr;
  int64_t pitch = 0;
  int64_t width = 0;
  int64_t rows = 0;
};
// `bytes` in one run.
inline ByteRows OneRun(void* data, int64_t bytes) { return {data, bytes, bytes, 1}; }
ByteRows BytesOf(TensorView t);

// out = in, of out's width and rows. They don't overlap.
cudaError_t CopyBytes(const void* in, int64_t in_pitch, ByteRows out, cudaStream_t stream);
// What is between the runs stays.
cudaError_t ZeroBytes(ByteRows out, cudaStream_t stream);

// An upload as the launch of a kernel that reads the host's memory: its arguments are `to`, `from`
// and `words`. A copy engine does the same, but it and the kernels before and after wait for each
// other, microseconds each time, and no kernel can be started early behind it.
struct UploadLaunch {
  const void* kernel = nullptr;
  dim3 grid;
  dim3 threads;
  void* to = nullptr;
  const void* from = nullptr;
  int64_t words = 0;  // of 16 bytes
};
// Precondition: a multiple of 16 bytes, aligned to 16 on both sides, from pinned memory.
UploadLaunch LaunchOf(const Upload& upload);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_MOVES_H_
