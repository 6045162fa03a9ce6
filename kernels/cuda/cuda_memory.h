// Memory on and for one device: the arena or plain allocations, growing scratch, and the way of
// small host arrays to the device.
#ifndef PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_
#define PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/staging.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// Ends the process where `error` is one: a CUDA error in a step can't be got over, since the
// device's context is lost with it.
void CheckCuda(cudaError_t error, const char* what);

// What an instance takes of its device: one region taken at the start (Arena), or each piece by
// itself. Buffers keep it alive.
class DeviceMemory : public std::enable_shared_from_this<DeviceMemory> {
 public:
  // `arena_bytes` 0: no arena. RESOURCE_EXHAUSTED where the device hasn't got them.
  static absl::StatusOr<std::shared_ptr<DeviceMemory>> Create(int device, int64_t arena_bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Aligned to 256 bytes; holds anything. RESOURCE_EXHAUSTED names the bytes asked for and what is
  // free. A piece of an arena that was given back may be given out while the device still works
  // with it: one stream must see all that is done with the memory.
  absl::StatusOr<Buffer> Allocate(int64_t bytes, Arena::Side side = Arena::Side::kFront);
  // Bytes of the largest buffer that Allocate could give now.
  int64_t LargestFree() const;
  bool has_arena() const { return region_ != nullptr; }

 private:
  DeviceMemory(int device, void* region, int64_t bytes)
      : device_(device), region_(static_cast<char*>(region)), arena_(bytes) {}

  const int device_;
  char* const region_;  // of `arena_`, or null
  // A weight may be let go by another thread.
  mutable std::mutex mutex_;
  Arena arena_;
};

// Pinned host memory, for copies to and from any device.
absl::StatusOr<Buffer> AllocatePinned(int64_t bytes);

// "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx".
std::string UuidText(const cudaUUID_t& uuid);

// A stream of a device, beside the default one.
class OwnedStream {
 public:
  explicit OwnedStream(int device);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  const int device_;
  cudaStream_t stream_ = nullptr;
};

// An event recorded on a stream.
class EventMarker : public Marker {
 public:
  EventMarker(int device, cudaStream_t stream);
  ~EventMarker() override;
  EventMarker(const EventMarker&) = delete;
  EventMarker& operator=(const EventMarker&) = delete;
  // True after an error, too: the context is lost, and nothing runs any more.
  bool Passed() const override;
  void Wait() const override;

 private:
  const int device_;
  cudaEvent_t event_ = nullptr;
};

// Device memory that grows to the largest request and is kept: the steps after the first of a shape
// allocate nothing.
class DeviceScratch {
 public:
  // `what` it is for, in errors.
  DeviceScratch(std::shared_ptr<DeviceMemory> memory, std::string what)
      : memory_(std::move(memory)), what_(std::move(what)) {}
  bool Holds(int64_t bytes) const { return buffer_.data() != nullptr && this->bytes() >= bytes; }
  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }
  void* data() const { return buffer_.data(); }
  // At least `bytes`; what it held is lost. Everything that uses it must have been enqueued. Ends
  // the process where the device hasn't got them, naming what for and what is free.
  void Grow(int64_t bytes);
  // As Grow, with RESOURCE_EXHAUSTED where the device hasn't got them.
  absl::Status TryGrow(int64_t bytes);

 private:
  std::shared_ptr<DeviceMemory> memory_;
  std::string what_;
  Buffer buffer_;
};

// Pinned host memory and its twin on the device (StagingRing).
class Staging {
 public:
  // `flush` enqueues what was recorded, TakeUpload()'s with it.
  Staging(int device, cudaStream_t stream, std::shared_ptr<DeviceMemory> memory, int64_t half_bytes,
          std::function<void()> flush);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // In a step equal arrays of a kind are staged once. With `deferred` nothing is copied before
  // TakeUpload. Waits until the device has taken what the step before the last one staged.
  void BeginStep(bool deferred);
  void EndStep();

  // Copies `bytes` to the device in the stream's order; the host's may go at once. Outside a step
  // valid for the op at hand, in a step as long as turns() doesn't change.
  void* Put(Staged kind, const void* host, int64_t bytes);
  template <typename T>
  const T* Put(Staged kind, absl::Span<const T> values) {
    return static_cast<const T*>(
        Put(kind, values.data(), static_cast<int64_t>(values.size() * sizeof(T))));
  }
  // As Put, to memory of the caller's. Not in a deferred step.
  void CopyTo(void* device, const void* host, int64_t bytes);
  // What was put since the last one, as one copy.
  Upload TakeUpload();
  // Requests of at most this many bytes don't make the ring grow.
  int64_t most_bytes() const { return ring_.most_bytes(); }
  int64_t turns() const { return turns_; }

 private:
  struct Memory {
    char* host = nullptr;
    Buffer device;
  };

  // Room for `bytes` in the halves in use, which may turn or grow.
  int64_t Place(int64_t bytes);
  void Turn(bool step_begins);
  void Allocate();
  char* host_half() const { return memory_.host + ring_.host_half() * ring_.half_bytes(); }
  char* device_half() const {
    return memory_.device.as<char>() + ring_.device_half() * ring_.half_bytes();
  }

  const int device_;
  const cudaStream_t stream_;
  const std::shared_ptr<DeviceMemory> source_;
  const std::function<void()> flush_;
  StagingRing ring_;
  Memory memory_;
  // Rings that were outgrown, for what was staged in them for an op that isn't enqueued yet. Rings
  // double, so all of them together are smaller than the one in use.
  std::vector<Memory> outgrown_;
  cudaEvent_t left_[2] = {nullptr, nullptr};  // recorded when a half of the host's was left
  StagedContents contents_;
  bool in_step_ = false;
  bool deferred_ = false;
  int64_t uploaded_ = 0;  // of the halves in use, what TakeUpload gave
  int64_t turns_ = 0;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_CUDA_MEMORY_H_
