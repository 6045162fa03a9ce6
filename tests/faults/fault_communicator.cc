#include "tests/faults/fault_communicator.h"

#include <optional>
#include <string>
#include <utility>

namespace phalanx::faults {
namespace {

class FaultCommunicator final : public comm::Communicator {
 public:
  // `owned` is null where `inner` is borrowed.
  FaultCommunicator(comm::Communicator* inner, std::unique_ptr<comm::Communicator> owned,
                    Injector& injector)
      : inner_(inner), owned_(std::move(owned)), injector_(injector) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void set_timeout(absl::Duration timeout) override { inner_->set_timeout(timeout); }

  absl::Status AllReduce(const comm::ReducePlan& plan, absl::Span<const float* const> parts,
                         float* out, int64_t count) override {
    injector_.Collective("AllReduce");
    return inner_->AllReduce(plan, parts, out, count);
  }
  absl::Status ReduceScatter(const comm::ReducePlan& plan, absl::Span<const float* const> parts,
                             float* out, absl::Span<const int64_t> counts) override {
    injector_.Collective("ReduceScatter");
    return inner_->ReduceScatter(plan, parts, out, counts);
  }
  absl::Status AllReduceOr(uint32_t* data, int64_t count) override {
    injector_.Collective("AllReduceOr");
    return inner_->AllReduceOr(data, count);
  }
  absl::Status AllGather(const void* send, void* recv, absl::Span<const int64_t> bytes) override {
    injector_.Collective("AllGather");
    return inner_->AllGather(send, recv, bytes);
  }
  absl::Status Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                      int root) override {
    injector_.Collective("Gather");
    return inner_->Gather(send, recv, bytes, root);
  }
  absl::Status AllToAll(const void* send, absl::Span<const int64_t> send_bytes, void* recv,
                        absl::Span<const int64_t> recv_bytes) override {
    injector_.Collective("AllToAll");
    return inner_->AllToAll(send, send_bytes, recv, recv_bytes);
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    injector_.Collective("Broadcast");
    return inner_->Broadcast(data, bytes, root);
  }
  absl::Status BroadcastMessage(std::string& message, int root) override {
    injector_.Collective("BroadcastMessage");
    return inner_->BroadcastMessage(message, root);
  }
  absl::Status Send(const void* data, int64_t bytes, int peer, int tag) override {
    injector_.Collective("Send");
    return inner_->Send(data, bytes, peer, tag);
  }
  absl::Status Recv(void* data, int64_t bytes, int peer, int tag) override {
    injector_.Collective("Recv");
    return inner_->Recv(data, bytes, peer, tag);
  }
  absl::Status Barrier() override {
    injector_.Collective("Barrier");
    return inner_->Barrier();
  }

  absl::StatusOr<std::unique_ptr<comm::Communicator>> Split(int color, int key) override {
    auto split = inner_->Split(color, key);
    if (!split.ok() || *split == nullptr) return split;
    comm::Communicator* inner = split->get();
    return std::make_unique<FaultCommunicator>(inner, *std::move(split), injector_);
  }
  void Abort(std::string_view reason) override { inner_->Abort(reason); }
  std::optional<std::string> abort_reason() const override { return inner_->abort_reason(); }
  uint64_t collective_number() const override { return inner_->collective_number(); }

 private:
  comm::Communicator* const inner_;
  const std::unique_ptr<comm::Communicator> owned_;
  Injector& injector_;
};

}  // namespace

std::unique_ptr<comm::Communicator> WithFaults(comm::Communicator& world, Injector& injector) {
  return std::make_unique<FaultCommunicator>(&world, nullptr, injector);
}

}  // namespace phalanx::faults
