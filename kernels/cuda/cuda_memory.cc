#include "kernels/cuda/cuda_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels::cuda {

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  int device = -1;
  (void)cudaGetDevice(&device);
  PHALANX_CHECK(false) << "CUDA device " << device << ", " << what << ": "
                       << cudaGetErrorString(error) << " (" << cudaGetErrorName(error)
                       << "); the device's context is lost, so this rank ends";
}

absl::StatusOr<Buffer> AllocateDevice(int device, int64_t bytes, cudaStream_t stream) {
  PHALANX_CHECK(bytes >= 0) << "allocation of " << bytes << " bytes";
  CheckCuda(cudaSetDevice(device), "choosing the device");
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    size_t available = 0;
    size_t total = 0;
    (void)cudaMemGetInfo(&available, &total);
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot allocate ", bytes, " bytes on CUDA device ", device, " (", available, " of ", total,
        " bytes are free); use more ranks, a smaller KV cache, or a device with more memory"));
  }
  CheckCuda(error, "cudaMalloc");
  CheckCuda(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream), "zeroing memory");
  return Buffer(data, static_cast<size_t>(bytes), [device](void* p) {
    // After a lost context freeing fails, too; there is nothing left to free then.
    if (cudaSetDevice(device) == cudaSuccess) (void)cudaFree(p);
  });
}

void* DeviceScratch::AtLeast(int64_t bytes) {
  if (static_cast<int64_t>(memory_.bytes()) < bytes || memory_.data() == nullptr) {
    // The old one may still be read. cudaFree waits for that.
    memory_ = Buffer();
    CheckCuda(cudaSetDevice(device_), "choosing the device");
    absl::StatusOr<Buffer> grown = AllocateDevice(device_, std::max<int64_t>(bytes, 4096), nullptr);
    PHALANX_CHECK(grown.ok()) << "scratch memory of an op: " << grown.status().message();
    CheckCuda(cudaDeviceSynchronize(), "growing scratch memory");
    memory_ = *std::move(grown);
  }
  return memory_.data();
}

Staging::Staging(int device, cudaStream_t stream, int64_t half_bytes)
    : device_(device), stream_(stream), ring_(half_bytes) {
  for (cudaEvent_t& event : left_) {
    CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  Allocate();
}

Staging::~Staging() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamSynchronize(stream_);
  outgrown_.emplace_back(host_, on_device_);
  for (const auto& [host, on_device] : outgrown_) {
    (void)cudaFree(on_device);
    (void)cudaFreeHost(host);
  }
  for (cudaEvent_t event : left_) (void)cudaEventDestroy(event);
}

void Staging::Allocate() {
  void* host = nullptr;
  CheckCuda(cudaHostAlloc(&host, static_cast<size_t>(ring_.bytes()), cudaHostAllocDefault),
            "allocating pinned host memory");
  host_ = static_cast<char*>(host);
  void* on_device = nullptr;
  CheckCuda(cudaMalloc(&on_device, static_cast<size_t>(ring_.bytes())), "allocating staging");
  on_device_ = static_cast<char*>(on_device);
}

int64_t Staging::Place(int64_t bytes) {
  StagingRing::Placement place = ring_.Place(bytes);
  if (place.offset < 0) {
    outgrown_.emplace_back(host_, on_device_);
    ring_ = StagingRing(StagingRing::GrownHalf(bytes));
    Allocate();
    place = ring_.Place(bytes);
  }
  if (place.entered) {
    CheckCuda(cudaEventRecord(left_[1 - place.half], stream_), "recording an event");
    CheckCuda(cudaEventSynchronize(left_[place.half]), "waiting for a staged copy's readers");
  }
  return place.offset;
}

void* Staging::Put(const void* host, int64_t bytes) {
  const int64_t offset = Place(bytes);
  if (bytes == 0) return on_device_ + offset;
  std::memcpy(host_ + offset, host, static_cast<size_t>(bytes));
  CheckCuda(cudaMemcpyAsync(on_device_ + offset, host_ + offset, static_cast<size_t>(bytes),
                            cudaMemcpyHostToDevice, stream_),
            "staging an op's arguments");
  return on_device_ + offset;
}

void Staging::CopyTo(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  const int64_t offset = Place(bytes);
  std::memcpy(host_ + offset, host, static_cast<size_t>(bytes));
  CheckCuda(cudaMemcpyAsync(device, host_ + offset, static_cast<size_t>(bytes),
                            cudaMemcpyHostToDevice, stream_),
            "copying to the device");
}

}  // namespace phalanx::kernels::cuda
