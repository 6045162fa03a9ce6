#include "kernels/cuda/cuda_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr char kWhatToDo[] = "use more ranks, a smaller KV cache, or a device with more memory";

// Null where the device hasn't got `bytes` > 0.
void* MallocDevice(int device, int64_t bytes) {
  CheckCuda(cudaSetDevice(device), "choosing the device");
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  CheckCuda(error, "cudaMalloc");
  return data;
}

absl::Status OutOfMemory(int device, int64_t bytes) {
  size_t available = 0;
  size_t total = 0;
  (void)cudaMemGetInfo(&available, &total);
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot allocate ", bytes, " bytes on CUDA device ", device, " (", available,
                   " of ", total, " bytes are free); ", kWhatToDo));
}

}  // namespace

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  int device = -1;
  (void)cudaGetDevice(&device);
  PHALANX_CHECK(false) << "CUDA device " << device << ", " << what << ": "
                       << cudaGetErrorString(error) << " (" << cudaGetErrorName(error)
                       << "); the device's context is lost, so this rank ends";
}

absl::StatusOr<std::shared_ptr<DeviceMemory>> DeviceMemory::Create(int device,
                                                                   int64_t arena_bytes) {
  void* region = nullptr;
  if (arena_bytes > 0) {
    region = MallocDevice(device, arena_bytes);
    if (region == nullptr) return OutOfMemory(device, arena_bytes);
  }
  return std::shared_ptr<DeviceMemory>(new DeviceMemory(device, region, arena_bytes));
}

DeviceMemory::~DeviceMemory() {
  // After a lost context freeing fails, too; there is nothing left to free then.
  if (region_ != nullptr && cudaSetDevice(device_) == cudaSuccess) (void)cudaFree(region_);
}

absl::StatusOr<Buffer> DeviceMemory::Allocate(int64_t bytes, Arena::Side side) {
  PHALANX_CHECK(bytes >= 0) << "allocation of " << bytes << " bytes";
  if (region_ == nullptr) {
    void* data = MallocDevice(device_, std::max<int64_t>(bytes, 1));
    if (data == nullptr) return OutOfMemory(device_, bytes);
    return Buffer(data, static_cast<size_t>(bytes), [device = device_](void* p) {
      if (cudaSetDevice(device) == cudaSuccess) (void)cudaFree(p);
    });
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::StatusOr<int64_t> offset = arena_.Allocate(bytes, side);
  if (!offset.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("CUDA device ", device_, ", this rank's share: ", offset.status().message(),
                     "; ", kWhatToDo));
  }
  return Buffer(region_ + *offset, static_cast<size_t>(bytes),
                [self = shared_from_this()](void* p) {
                  const std::lock_guard<std::mutex> guard(self->mutex_);
                  self->arena_.Free(static_cast<char*>(p) - self->region_);
                });
}

absl::StatusOr<Buffer> AllocatePinned(int64_t bytes) {
  PHALANX_CHECK(bytes >= 0) << "allocation of " << bytes << " bytes";
  void* data = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&data, static_cast<size_t>(std::max<int64_t>(bytes, 1)), cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes,
                     " bytes of pinned host memory; see the machine's free memory and its limit "
                     "on locked memory (ulimit -l)"));
  }
  CheckCuda(error, "allocating pinned host memory");
  return Buffer(data, static_cast<size_t>(bytes), [](void* p) { (void)cudaFreeHost(p); });
}

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    absl::StrAppend(&text, absl::Hex(static_cast<unsigned char>(uuid.bytes[i]), absl::kZeroPad2));
  }
  return text;
}

OwnedStream::OwnedStream(int device) : device_(device) {
  CheckCuda(cudaSetDevice(device), "choosing the device");
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

OwnedStream::~OwnedStream() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamDestroy(stream_);
}

EventMarker::EventMarker(int device, cudaStream_t stream) : device_(device) {
  CheckCuda(cudaSetDevice(device), "choosing the device");
  // Who waits sleeps, and leaves the core to who enqueues.
  CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
            "creating an event");
  CheckCuda(cudaEventRecord(event_, stream), "recording an event");
}

EventMarker::~EventMarker() { (void)cudaEventDestroy(event_); }

bool EventMarker::Passed() const {
  (void)cudaSetDevice(device_);
  if (cudaEventQuery(event_) != cudaErrorNotReady) return true;
  (void)cudaGetLastError();  // no fault, and this thread's next launch is not to find it
  return false;
}

void EventMarker::Wait() const {
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  CheckCuda(cudaEventSynchronize(event_), "waiting for the device");
}

int64_t DeviceMemory::LargestFree() const {
  if (region_ != nullptr) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return arena_.largest_free();
  }
  size_t available = 0;
  size_t total = 0;
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  CheckCuda(cudaMemGetInfo(&available, &total), "asking for free memory");
  return static_cast<int64_t>(available);
}

absl::Status DeviceScratch::TryGrow(int64_t bytes) {
  // The old one first: the new one may need its place. In an arena the stream's order keeps who
  // still reads it from harm; of cudaFree only some say that it waits.
  if (buffer_.data() != nullptr && !memory_->has_arena()) {
    CheckCuda(cudaDeviceSynchronize(), "waiting for the device");
  }
  buffer_ = Buffer();
  absl::StatusOr<Buffer> grown =
      memory_->Allocate(std::max<int64_t>(bytes, 4096), Arena::Side::kBack);
  if (!grown.ok()) {
    return absl::Status(grown.status().code(),
                        absl::StrCat("scratch memory for ", what_, ": ", grown.status().message()));
  }
  buffer_ = *std::move(grown);
  return absl::OkStatus();
}

void DeviceScratch::Grow(int64_t bytes) {
  const absl::Status status = TryGrow(bytes);
  PHALANX_CHECK(status.ok()) << status.message();
}

Staging::Staging(int device, cudaStream_t stream, std::shared_ptr<DeviceMemory> memory,
                 int64_t half_bytes, std::function<void()> flush)
    : device_(device),
      stream_(stream),
      source_(std::move(memory)),
      flush_(std::move(flush)),
      ring_(half_bytes) {
  for (cudaEvent_t& event : left_) {
    CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  Allocate();
}

Staging::~Staging() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamSynchronize(stream_);
  (void)cudaFreeHost(memory_.host);
  for (const Memory& memory : outgrown_) (void)cudaFreeHost(memory.host);
  for (cudaEvent_t event : left_) (void)cudaEventDestroy(event);
}

void Staging::Allocate() {
  const int64_t bytes = 2 * ring_.half_bytes();
  void* host = nullptr;
  CheckCuda(cudaHostAlloc(&host, static_cast<size_t>(bytes), cudaHostAllocDefault),
            "allocating pinned host memory");
  memory_.host = static_cast<char*>(host);
  absl::StatusOr<Buffer> device = source_->Allocate(bytes, Arena::Side::kBack);
  PHALANX_CHECK(device.ok()) << "memory for what ops bring: " << device.status().message();
  memory_.device = *std::move(device);
}

void Staging::Turn(bool step_begins) {
  // What is still to be copied from this half is enqueued before the half is left.
  if (deferred_) flush_();
  CheckCuda(cudaEventRecord(left_[ring_.host_half()], stream_), "recording an event");
  ring_.Turn(step_begins);
  CheckCuda(cudaEventSynchronize(left_[ring_.host_half()]), "waiting for a staged copy");
  contents_.Clear();
  uploaded_ = 0;
  ++turns_;
}

void Staging::BeginStep(bool deferred) {
  Turn(/*step_begins=*/true);
  in_step_ = true;
  deferred_ = deferred;
}

void Staging::EndStep() {
  in_step_ = false;
  deferred_ = false;
}

int64_t Staging::Place(int64_t bytes) {
  if (bytes > ring_.most_bytes()) {
    if (deferred_) flush_();
    outgrown_.push_back(std::exchange(memory_, {}));
    ring_ = StagingRing(StagingRing::HalfFor(bytes));
    Allocate();
    contents_.Clear();
    uploaded_ = 0;
    ++turns_;
  }
  int64_t offset = ring_.Place(bytes);
  if (offset < 0) {
    Turn(/*step_begins=*/false);
    offset = ring_.Place(bytes);
  }
  return offset;
}

void* Staging::Put(Staged kind, const void* host, int64_t bytes) {
  if (bytes == 0) return device_half();
  if (in_step_) {
    const int64_t known = contents_.Find(kind, host, bytes, host_half());
    if (known >= 0) return device_half() + known;
  }
  const int64_t offset = Place(bytes);
  std::memcpy(host_half() + offset, host, static_cast<size_t>(bytes));
  if (in_step_) contents_.Add(kind, host, bytes, offset);
  if (!deferred_) {
    CheckCuda(cudaMemcpyAsync(device_half() + offset, host_half() + offset,
                              static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
              "staging an op's arguments");
  }
  return device_half() + offset;
}

void Staging::CopyTo(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  const int64_t offset = Place(bytes);
  std::memcpy(host_half() + offset, host, static_cast<size_t>(bytes));
  CheckCuda(cudaMemcpyAsync(device, host_half() + offset, static_cast<size_t>(bytes),
                            cudaMemcpyHostToDevice, stream_),
            "copying to the device");
}

Upload Staging::TakeUpload() {
  Upload upload;
  if (!deferred_ || ring_.used() == uploaded_) return upload;
  upload.to = device_half() + uploaded_;
  upload.from = host_half() + uploaded_;
  upload.bytes = ring_.used() - uploaded_;
  uploaded_ = ring_.used();
  return upload;
}

}  // namespace phalanx::kernels::cuda
