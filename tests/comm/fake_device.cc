#include "tests/comm/fake_device.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::comm {
namespace {

struct Allocation {
  int64_t bytes;
  std::unique_ptr<char[]> memory;
};

std::mutex allocations_mutex;
std::map<const char*, Allocation>& Allocations() {
  static auto* allocations = new std::map<const char*, Allocation>();
  return *allocations;
}

class FakeMarker : public kernels::Marker {
 public:
  FakeMarker(std::shared_ptr<FakeStream> stream)
      : stream_(std::move(stream)), place_(stream_->enqueued()) {}
  bool Passed() const override { return stream_->Finished(place_); }

 private:
  const std::shared_ptr<FakeStream> stream_;
  const uint64_t place_;
};

}  // namespace

FakeStream::FakeStream() : thread_([this] { Run(); }) {}

FakeStream::~FakeStream() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t FakeStream::Enqueue(std::function<void()> work) {
  std::lock_guard<std::mutex> lock(mutex_);
  work_.push_back(std::move(work));
  changed_.notify_all();
  return ++enqueued_;
}

uint64_t FakeStream::enqueued() {
  std::lock_guard<std::mutex> lock(mutex_);
  return enqueued_;
}

bool FakeStream::Finished(uint64_t place) {
  std::lock_guard<std::mutex> lock(mutex_);
  return finished_ >= place;
}

void FakeStream::Synchronize() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t place = enqueued_;
  changed_.wait(lock, [&] { return finished_ >= place; });
}

void FakeStream::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !work_.empty(); });
    if (work_.empty()) return;
    std::function<void()> work = std::move(work_.front());
    work_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
    ++finished_;
    changed_.notify_all();
  }
}

void* Behind(const void* address, int64_t bytes) {
  const char* at = static_cast<const char*>(address);
  std::lock_guard<std::mutex> lock(allocations_mutex);
  auto it = Allocations().upper_bound(at);
  PHALANX_CHECK(it != Allocations().begin()) << "no memory of a device";
  const auto& [begin, allocation] = *--it;
  PHALANX_CHECK(at + bytes <= begin + allocation.bytes)
      << bytes << " bytes at " << at - begin << " of " << allocation.bytes;
  return allocation.memory.get() + (at - begin);
}

FakeDevice::FakeDevice(std::string id)
    : CpuKernels({.threads = 1}), id_(std::move(id)), stream_(std::make_shared<FakeStream>()) {}

FakeDevice::~FakeDevice() { Synchronize(); }

absl::StatusOr<kernels::Buffer> FakeDevice::Allocate(int64_t bytes) {
  ++allocations_;
  const size_t mapped = static_cast<size_t>(bytes) + 1;
  void* address = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  PHALANX_CHECK(address != MAP_FAILED) << "mmap of " << mapped << " bytes";
  {
    std::lock_guard<std::mutex> lock(allocations_mutex);
    Allocations()[static_cast<const char*>(address)] = {
        bytes, std::make_unique<char[]>(static_cast<size_t>(bytes))};
  }
  // As cudaFree, freeing waits for the device.
  return kernels::Buffer(address, static_cast<size_t>(bytes), [stream = stream_, mapped](void* p) {
    stream->Synchronize();
    std::lock_guard<std::mutex> lock(allocations_mutex);
    Allocations().erase(static_cast<const char*>(p));
    munmap(p, mapped);
  });
}

absl::StatusOr<kernels::Buffer> FakeDevice::AllocateHost(int64_t bytes) {
  if (host_memory_gone_) return absl::ResourceExhaustedError("no host memory");
  return CpuKernels::AllocateHost(bytes);
}

void FakeDevice::CopyIn(void* device, const void* host, int64_t bytes) {
  if (bytes <= 0) return;
  void* to = Behind(device, bytes);
  std::vector<char> staged(static_cast<const char*>(host), static_cast<const char*>(host) + bytes);
  stream_->Enqueue(
      [to, staged = std::move(staged)] { std::memcpy(to, staged.data(), staged.size()); });
}

void FakeDevice::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0) return;
  const void* from = Behind(device, bytes);
  Synchronize();
  std::memcpy(host, from, static_cast<size_t>(bytes));
}

std::unique_ptr<kernels::Marker> FakeDevice::Mark() {
  if (capturing_) return nullptr;
  return std::make_unique<FakeMarker>(stream_);
}

void FakeDevice::Zero(void* memory, int64_t bytes) {
  if (bytes <= 0) return;
  stream_->Enqueue([to = Behind(memory, bytes), bytes] { std::memset(to, 0, bytes); });
}

void FakeDevice::CopyRows(kernels::TensorView in, kernels::TensorView out) {
  if (out.rows == 0 || out.cols == 0) return;
  const int64_t size = kernels::SizeOf(out.dtype);
  in.data = Behind(in.data, ((out.rows - 1) * in.stride + out.cols) * size);
  out.data = Behind(out.data, ((out.rows - 1) * out.stride + out.cols) * size);
  stream_->Enqueue([this, in, out] { CpuKernels::CopyRows(in, out); });
}

void FakeDevice::AddParts(absl::Span<const float* const> operands, absl::Span<const int> program,
                          float* out, int64_t count) {
  PHALANX_CHECK(operands.size() <= kernels::kMaxAddends) << operands.size() << " operands";
  if (count == 0) return;
  std::vector<const float*> behind;
  for (const float* operand : operands) {
    PHALANX_CHECK(operand == out || operand + count <= out || out + count <= operand)
        << "a sum over one of its operands, shifted";
    behind.push_back(static_cast<const float*>(Behind(operand, count * 4)));
  }
  auto* to = static_cast<float*>(Behind(out, count * 4));
  stream_->Enqueue([this, behind = std::move(behind), to, count,
                    program = std::vector<int>(program.begin(), program.end())] {
    CpuKernels::AddParts(behind, program, to, count);
  });
}

void FakeDevice::OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  if (count == 0) return;
  auto* to = static_cast<uint32_t*>(Behind(data, count * 4));
  auto* from = static_cast<const uint32_t*>(Behind(other, count * 4));
  stream_->Enqueue([this, to, from, count] { CpuKernels::OrInto(to, from, count); });
}

}  // namespace phalanx::comm
