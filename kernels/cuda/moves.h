// Copies and zeros on the device, as kernels: a graph's kernel can be given any arguments, while
// its 2D copies and its memsets can't be given other sizes (the driver refuses).
#ifndef PHALANX_KERNELS_CUDA_MOVES_H_
#define PHALANX_KERNELS_CUDA_MOVES_H_

#include <cuda_runtime_api.h>

#include <cstdint>

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

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_MOVES_H_
