// A device whose memory the host can't touch and whose work happens later, on the CPU: what a
// communicator for devices must not rely on shows without a GPU.
#ifndef PHALANX_TESTS_COMM_FAKE_DEVICE_H_
#define PHALANX_TESTS_COMM_FAKE_DEVICE_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/cpu/cpu_kernels.h"

namespace phalanx::comm {

// Runs what is enqueued, in order, on a thread of its own.
class FakeStream {
 public:
  FakeStream();
  // Finishes what was enqueued.
  ~FakeStream();
  // The place of `work` in the order, from 1.
  uint64_t Enqueue(std::function<void()> work);
  uint64_t enqueued();
  bool Finished(uint64_t place);
  void Synchronize();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  uint64_t enqueued_ = 0;
  uint64_t finished_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

// What lies behind [address, address + bytes) of a fake device's memory, for work on its stream.
// Ends the process if that is not all inside one allocation.
void* Behind(const void* address, int64_t bytes);

// Addresses of its memory fault when the host uses them. Has the ops that communicators use.
class FakeDevice : public kernels::CpuKernels {
 public:
  explicit FakeDevice(std::string id);
  ~FakeDevice() override;

  absl::StatusOr<kernels::Buffer> Allocate(int64_t bytes) override;
  // Fails if told to.
  absl::StatusOr<kernels::Buffer> AllocateHost(int64_t bytes) override;
  void CopyIn(void* device, const void* host, int64_t bytes) override;
  void CopyOut(void* host, const void* device, int64_t bytes) override;
  void Synchronize() override { stream_->Synchronize(); }
  bool host_accessible() const override { return false; }
  std::string DeviceId() const override { return id_; }
  void* native_stream() override { return stream_.get(); }
  std::unique_ptr<kernels::Marker> Mark() override;
  void Zero(void* memory, int64_t bytes) override;
  void CopyRows(kernels::TensorView in, kernels::TensorView out) override;
  void AddParts(absl::Span<const float* const> operands, absl::Span<const int> program, float* out,
                int64_t count) override;
  void OrInto(uint32_t* data, const uint32_t* other, int64_t count) override;

  void set_host_memory_gone() { host_memory_gone_ = true; }
  // As if a graph were captured: Mark() returns null.
  void set_capturing(bool capturing) { capturing_ = capturing; }
  int64_t allocations() const { return allocations_; }
  FakeStream& stream() { return *stream_; }

 private:
  const std::string id_;
  const std::shared_ptr<FakeStream> stream_;
  bool host_memory_gone_ = false;
  bool capturing_ = false;
  int64_t allocations_ = 0;
};

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_FAKE_DEVICE_H_
