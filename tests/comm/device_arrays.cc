#include "tests/comm/device_arrays.h"

#include <deque>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace phalanx::comm {
namespace {

int64_t Sum(absl::Span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

class DeviceArrays : public Communicator {
 public:
  DeviceArrays(Communicator& group, std::unique_ptr<Communicator> owned, kernels::Kernels& device)
      : group_(group), owned_(std::move(owned)), device_(device) {}

  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void set_timeout(absl::Duration timeout) override { group_.set_timeout(timeout); }

  absl::Status AllReduce(const ReducePlan& plan, absl::Span<const float* const> parts, float* out,
                         int64_t count) override {
    Arrays arrays(device_);
    const std::vector<const float*> on_device = arrays.PutParts(parts, count);
    float* to = arrays.Out(out, count * 4, parts, on_device);
    return Finish(group_.AllReduce(plan, on_device, to, count), out, to, count * 4);
  }
  absl::Status ReduceScatter(const ReducePlan& plan, absl::Span<const float* const> parts,
                             float* out, absl::Span<const int64_t> counts) override {
    Arrays arrays(device_);
    const std::vector<const float*> on_device = arrays.PutParts(parts, Sum(counts));
    const int64_t bytes = counts[rank()] * 4;
    float* to = arrays.Out(out, bytes, parts, on_device);
    return Finish(group_.ReduceScatter(plan, on_device, to, counts), out, to, bytes);
  }
  absl::Status AllReduceOr(uint32_t* data, int64_t count) override {
    Arrays arrays(device_);
    auto* on_device = static_cast<uint32_t*>(arrays.Put(data, count * 4));
    return Finish(group_.AllReduceOr(on_device, count), data, on_device, count * 4);
  }
  absl::Status AllGather(const void* send, void* recv, absl::Span<const int64_t> bytes) override {
    Arrays arrays(device_);
    void* to = arrays.Put(nullptr, Sum(bytes));
    return Finish(group_.AllGather(arrays.Put(send, bytes[rank()]), to, bytes), recv, to,
                  Sum(bytes));
  }
  absl::Status Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                      int root) override {
    Arrays arrays(device_);
    const int64_t received = root == rank() ? Sum(bytes) : 0;
    void* to = root == rank() ? arrays.Put(nullptr, received) : nullptr;
    return Finish(group_.Gather(arrays.Put(send, bytes[rank()]), to, bytes, root), recv, to,
                  received);
  }
  absl::Status AllToAll(const void* send, absl::Span<const int64_t> send_bytes, void* recv,
                        absl::Span<const int64_t> recv_bytes) override {
    Arrays arrays(device_);
    void* to = arrays.Put(nullptr, Sum(recv_bytes));
    return Finish(group_.AllToAll(arrays.Put(send, Sum(send_bytes)), send_bytes, to, recv_bytes),
                  recv, to, Sum(recv_bytes));
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    Arrays arrays(device_);
    void* on_device = arrays.Put(data, bytes);
    return Finish(group_.Broadcast(on_device, bytes, root), data, on_device, bytes);
  }
  absl::Status BroadcastMessage(std::string& message, int root) override {
    return group_.BroadcastMessage(message, root);
  }
  absl::Status Send(const void* data, int64_t bytes, int peer, int tag) override {
    Arrays arrays(device_);
    return Finish(group_.Send(arrays.Put(data, bytes), bytes, peer, tag), nullptr, nullptr, 0);
  }
  absl::Status Recv(void* data, int64_t bytes, int peer, int tag) override {
    Arrays arrays(device_);
    void* to = arrays.Put(nullptr, bytes);
    return Finish(group_.Recv(to, bytes, peer, tag), data, to, bytes);
  }
  absl::Status Barrier() override { return group_.Barrier(); }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override {
    absl::StatusOr<std::unique_ptr<Communicator>> split = group_.Split(color, key);
    if (!split.ok() || *split == nullptr) return split;
    Communicator& group = **split;
    return std::make_unique<DeviceArrays>(group, *std::move(split), device_);
  }
  void Abort(std::string_view reason) override { group_.Abort(reason); }
  std::optional<std::string> abort_reason() const override { return group_.abort_reason(); }
  uint64_t collective_number() const override { return group_.collective_number(); }

 private:
  // The arrays of one call.
  class Arrays {
   public:
    explicit Arrays(kernels::Kernels& device) : device_(device) {}

    // Null and no bytes stay a null pointer.
    void* Put(const void* host, int64_t bytes) {
      if (bytes == 0) return nullptr;
      absl::StatusOr<kernels::Buffer> buffer = device_.Allocate(bytes);
      PHALANX_CHECK(buffer.ok()) << buffer.status().message();
      buffers_.push_back(*std::move(buffer));
      if (host != nullptr) device_.CopyIn(buffers_.back().data(), host, bytes);
      return buffers_.back().data();
    }
    std::vector<const float*> PutParts(absl::Span<const float* const> parts, int64_t count) {
      std::vector<const float*> on_device;
      for (const float* part : parts) {
        on_device.push_back(static_cast<const float*>(Put(part, count * 4)));
      }
      return on_device;
    }
    // Where `out` is one of the parts, so it is on the device.
    float* Out(float* out, int64_t bytes, absl::Span<const float* const> parts,
               const std::vector<const float*>& on_device) {
      for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i] == out) return const_cast<float*>(on_device[i]);
      }
      return static_cast<float*>(Put(nullptr, bytes));
    }

   private:
    kernels::Kernels& device_;
    std::deque<kernels::Buffer> buffers_;
  };

  absl::Status Finish(absl::Status status, void* host, const void* device, int64_t bytes) {
    if (!status.ok()) return status;
    device_.Synchronize();
    if (const std::optional<std::string> reason = group_.abort_reason(); reason.has_value()) {
      return absl::AbortedError(*reason);
    }
    device_.CopyOut(host, device, bytes);
    return status;
  }

  Communicator& group_;
  const std::unique_ptr<Communicator> owned_;
  kernels::Kernels& device_;
};

}  // namespace

std::unique_ptr<Communicator> WithDeviceArrays(Communicator& group, kernels::Kernels& device) {
  return std::make_unique<DeviceArrays>(group, nullptr, device);
}

}  // namespace phalanx::comm
