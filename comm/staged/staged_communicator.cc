#include "comm/staged/staged_communicator.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::comm {
namespace {

// Of counts that `host` has yet to check: negative ones count as none.
int64_t Sum(absl::Span<const int64_t> counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += std::max<int64_t>(0, count);
  return sum;
}

class StagedCommunicator : public Communicator {
 public:
  // `owned` is null where `host` is borrowed.
  StagedCommunicator(Communicator& host, std::unique_ptr<Communicator> owned,
                     kernels::Kernels& device)
      : host_(host), owned_(std::move(owned)), device_(device) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  void set_timeout(absl::Duration timeout) override { host_.set_timeout(timeout); }

  absl::Status AllReduce(const ReducePlan& plan, absl::Span<const float* const> parts, float* out,
                         int64_t count) override {
    const int64_t bytes = std::max<int64_t>(0, count) * 4;
    absl::StatusOr<float*> sum = StageParts(parts, bytes, bytes);
    if (!sum.ok()) return sum.status();
    if (absl::Status status = host_.AllReduce(plan, staged_parts_, *sum, count); !status.ok()) {
      return status;
    }
    device_.CopyIn(out, *sum, bytes);
    return absl::OkStatus();
  }

  absl::Status ReduceScatter(const ReducePlan& plan, absl::Span<const float* const> parts,
                             float* out, absl::Span<const int64_t> counts) override {
    const int64_t mine = Own(counts) * 4;
    absl::StatusOr<float*> sum = StageParts(parts, Sum(counts) * 4, mine);
    if (!sum.ok()) return sum.status();
    if (absl::Status status = host_.ReduceScatter(plan, staged_parts_, *sum, counts);
        !status.ok()) {
      return status;
    }
    device_.CopyIn(out, *sum, mine);
    return absl::OkStatus();
  }

  absl::Status AllReduceOr(uint32_t* data, int64_t count) override {
    const int64_t bytes = std::max<int64_t>(0, count) * 4;
    absl::StatusOr<char*> at = Scratch(bytes);
    if (!at.ok()) return at.status();
    device_.CopyOut(*at, data, bytes);
    if (absl::Status status = host_.AllReduceOr(reinterpret_cast<uint32_t*>(*at), count);
        !status.ok()) {
      return status;
    }
    device_.CopyIn(data, *at, bytes);
    return absl::OkStatus();
  }

  absl::Status AllGather(const void* send, void* recv, absl::Span<const int64_t> bytes) override {
    return Exchange(send, Own(bytes), recv, Sum(bytes),
                    [&](const void* from, void* to) { return host_.AllGather(from, to, bytes); });
  }

  absl::Status Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                      int root) override {
    return Exchange(
        send, Own(bytes), recv, root == rank() ? Sum(bytes) : 0,
        [&](const void* from, void* to) { return host_.Gather(from, to, bytes, root); });
  }

  absl::Status AllToAll(const void* send, absl::Span<const int64_t> send_bytes, void* recv,
                        absl::Span<const int64_t> recv_bytes) override {
    return Exchange(send, Sum(send_bytes), recv, Sum(recv_bytes), [&](const void* from, void* to) {
      return host_.AllToAll(from, send_bytes, to, recv_bytes);
    });
  }

  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    const int64_t size = std::max<int64_t>(0, bytes);
    if (root == rank()) {
      return Exchange(data, size, nullptr, 0, [&](const void* from, void*) {
        return host_.Broadcast(const_cast<void*>(from), bytes, root);
      });
    }
    return Exchange(nullptr, 0, data, size,
                    [&](const void*, void* to) { return host_.Broadcast(to, bytes, root); });
  }

  absl::Status BroadcastMessage(std::string& message, int root) override {
    return host_.BroadcastMessage(message, root);
  }

  absl::Status Send(const void* data, int64_t bytes, int peer, int tag) override {
    return Exchange(data, std::max<int64_t>(0, bytes), nullptr, 0,
                    [&](const void* from, void*) { return host_.Send(from, bytes, peer, tag); });
  }

  absl::Status Recv(void* data, int64_t bytes, int peer, int tag) override {
    return Exchange(nullptr, 0, data, std::max<int64_t>(0, bytes),
                    [&](const void*, void* to) { return host_.Recv(to, bytes, peer, tag); });
  }

  absl::Status Barrier() override { return host_.Barrier(); }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override {
    absl::StatusOr<std::unique_ptr<Communicator>> split = host_.Split(color, key);
    if (!split.ok() || *split == nullptr) return split;
    Communicator& host = **split;
    return std::make_unique<StagedCommunicator>(host, *std::move(split), device_);
  }

  void Abort(std::string_view reason) override { host_.Abort(reason); }
  std::optional<std::string> abort_reason() const override { return host_.abort_reason(); }
  uint64_t collective_number() const override { return host_.collective_number(); }

 private:
  // This rank's entry, 0 where `host_` will refuse the counts.
  int64_t Own(absl::Span<const int64_t> counts) const {
    const auto rank = static_cast<size_t>(host_.rank());
    return rank < counts.size() ? std::max<int64_t>(0, counts[rank]) : 0;
  }

  // Host memory that grows to the largest request and is kept; what it held is lost.
  absl::StatusOr<char*> Scratch(int64_t bytes) {
    if (scratch_.data() == nullptr || static_cast<int64_t>(scratch_.bytes()) < bytes) {
      scratch_ = kernels::Buffer();
      absl::StatusOr<kernels::Buffer> grown = device_.AllocateHost(std::max<int64_t>(bytes, 4096));
      if (!grown.ok()) {
        // The others are in the collective, or will be.
        const std::string text =
            absl::StrCat("rank ", rank(), " of ", size(), ": staging after collective ",
                         collective_number(), ": ", grown.status().message());
        Abort(text);
        return absl::Status(grown.status().code(), text);
      }
      scratch_ = *std::move(grown);
    }
    return scratch_.as<char>();
  }

  // Copies parts of `part_bytes` each to the host and returns where their sum of `sum_bytes` goes:
  // to a place of its own, since a sum may not lie over one of the parts shifted.
  absl::StatusOr<float*> StageParts(absl::Span<const float* const> parts, int64_t part_bytes,
                                    int64_t sum_bytes) {
    const auto num_parts = static_cast<int64_t>(parts.size());
    absl::StatusOr<char*> at = Scratch(num_parts * part_bytes + sum_bytes);
    if (!at.ok()) return at.status();
    staged_parts_.clear();
    for (const float* part : parts) {
      device_.CopyOut(*at, part, part_bytes);
      staged_parts_.push_back(reinterpret_cast<float*>(*at));
      *at += part_bytes;
    }
    return reinterpret_cast<float*>(*at);
  }

  // Copies what is sent to the host, calls `call(from, to)` with host memory, copies what came to
  // the device.
  template <typename CallHost>
  absl::Status Exchange(const void* send, int64_t send_bytes, void* recv, int64_t recv_bytes,
                        const CallHost& call) {
    absl::StatusOr<char*> at = Scratch(send_bytes + recv_bytes);
    if (!at.ok()) return at.status();
    if (send_bytes > 0) device_.CopyOut(*at, send, send_bytes);
    char* to = *at + send_bytes;
    if (absl::Status status = call(*at, to); !status.ok()) return status;
    if (recv_bytes > 0) device_.CopyIn(recv, to, recv_bytes);
    return absl::OkStatus();
  }

  Communicator& host_;
  const std::unique_ptr<Communicator> owned_;
  kernels::Kernels& device_;
  kernels::Buffer scratch_;
  std::vector<const float*> staged_parts_;
};

}  // namespace

std::unique_ptr<Communicator> StageDeviceMemory(Communicator& host, kernels::Kernels& device) {
  return std::make_unique<StagedCommunicator>(host, nullptr, device);
}

}  // namespace phalanx::comm
