// Memory on and for one device: allocations, growing scratch, and the way of small host arrays to
// the device.
#ifndef PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_
#define PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/staging.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// Ends the process where `error` is one: a CUDA error in a step can't be got over, since the
// device's context is lost with it.
void CheckCuda(cudaError_t error, const char* what);

// Zeroed memory on `device`, whose error names the bytes and what is free.
absl::StatusOr<Buffer> AllocateDevice(int device, int64_t bytes, cudaStream_t stream);

// Device memory that grows to the largest request and is kept: the steps after the first of a shape
// allocate nothing.
class DeviceScratch {
 public:
  explicit DeviceScratch(int device) : device_(device) {}
  // At least `bytes`, aligned to 256; what it held is lost. Growing waits for the device.
  void* AtLeast(int64_t bytes);

 private:
  const int device_;
  Buffer memory_;
};

// Pinned host memory and its twin on the device (StagingRing).
class Staging {
 public:
  Staging(int device, cudaStream_t stream, int64_t half_bytes);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Copies `bytes` to the device in the stream's order; the host's may go at once. Valid for
  // what is enqueued until many more requests have been made: for the op at hand.
  void* Put(const void* host, int64_t bytes);
  template <typename T>
  const T* Put(absl::Span<const T> values) {
    return static_cast<const T*>(
        Put(values.data(), static_cast<int64_t>(values.size() * sizeof(T))));
  }
  // As Put, to memory of the caller's.
  void CopyTo(void* device, const void* host, int64_t bytes);
  // Requests of at most this many bytes never wait for the device to grow the ring.
  int64_t half_bytes() const { return ring_.half_bytes(); }

 private:
  // Pinned memory for `bytes` and its offset.
  int64_t Place(int64_t bytes);
  void Allocate();

  const int device_;
  const cudaStream_t stream_;
  StagingRing ring_;
  char* host_ = nullptr;
  char* on_device_ = nullptr;
  // Rings that were outgrown, for what was staged in them for an op that isn't enqueued yet. Rings
  // double, so all of them together are smaller than the one in use.
  std::vector<std::pair<char*, char*>> outgrown_;
  cudaEvent_t left_[2] = {nullptr, nullptr};  // recorded when a half was left
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_
