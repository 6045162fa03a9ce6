#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/moves.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

// Pitches and width in units of T; `in` null: zeros.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    MoveKernel(const T* in, int64_t in_pitch, T* out, int64_t out_pitch, int64_t width,
               int64_t count) {
  BeginInTurn();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = width == count ? 0 : i / width;
    const int64_t column = i - row * width;
    T value = {};
    if (in != nullptr) value = in[row * in_pitch + column];
    out[row * out_pitch + column] = value;
  }
}

template <typename T>
cudaError_t Move(const void* in, int64_t in_pitch, const ByteRows& out, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t width = out.width / kSize;
  const int64_t count = width * out.rows;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return Launch(MoveKernel<T>,
                dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks)), kThreads,
                0, stream, static_cast<const T*>(in), in_pitch / kSize, static_cast<T*>(out.data),
                out.pitch / kSize, width, count);
}

// By the widest unit that everything is a multiple of.
cudaError_t MoveRows(const void* in, int64_t in_pitch, const ByteRows& out, cudaStream_t stream) {
  if (out.width == 0 || out.rows == 0) return cudaSuccess;
  const uint64_t all = reinterpret_cast<uintptr_t>(in) | reinterpret_cast<uintptr_t>(out.data) |
                       static_cast<uint64_t>(in_pitch | out.pitch | out.width);
  if (all % 16 == 0) return Move<uint4>(in, in_pitch, out, stream);
  if (all % 4 == 0) return Move<uint32_t>(in, in_pitch, out, stream);
  if (all % 2 == 0) return Move<uint16_t>(in, in_pitch, out, stream);
  return Move<uint8_t>(in, in_pitch, out, stream);
}

__global__ void __launch_bounds__(kThreads)
    UploadKernel(uint4* to, const uint4* from, int64_t words) {
  BeginInTurn();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  // Not from a cache: the host wrote other words there once.
  if (i < words) to[i] = __ldcv(from + i);
}

}  // namespace

UploadLaunch LaunchOf(const Upload& upload) {
  UploadLaunch launch;
  launch.kernel = AddressOf(UploadKernel);
  launch.to = upload.to;
  launch.from = upload.from;
  launch.words = upload.bytes / 16;
  launch.grid = dim3(static_cast<unsigned>((launch.words + kThreads - 1) / kThreads));
  launch.threads = dim3(kThreads);
  return launch;
}

ByteRows BytesOf(TensorView t) {
  const int64_t size = SizeOf(t.dtype);
  // One row of any stride is a run.
  return {t.data, (t.rows == 1 ? t.cols : t.stride) * size, t.cols * size, t.rows};
}

cudaError_t CopyBytes(const void* in, int64_t in_pitch, ByteRows out, cudaStream_t stream) {
  return MoveRows(in, in_pitch, out, stream);
}

cudaError_t ZeroBytes(ByteRows out, cudaStream_t stream) {
  return MoveRows(nullptr, 0, out, stream);
}

}  // namespace phalanx::kernels::cuda
