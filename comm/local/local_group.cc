#include "comm/local/local_group.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "comm/group/group_communicator.h"

namespace phalanx::comm {
namespace {

class LocalFabric : public Fabric {
 public:
  LocalFabric(int size, const LocalGroupOptions& options)
      : options_(options), policy_(ChooseWaitPolicy(size, options.threads_per_rank, OwnCores())) {}

  absl::StatusOr<Offered> Offer(int members) override {
    absl::StatusOr<std::shared_ptr<Segment>> segment = Segment::CreatePrivate(
        {.members = members, .slot_bytes = options_.slot_bytes, .ring_bytes = options_.ring_bytes});
    if (!segment.ok()) return segment.status();
    Offered offered{*std::move(segment), {}};
    std::lock_guard<std::mutex> lock(mutex_);
    offered.ticket.pid = 1;
    offered.ticket.nonce = ++last_nonce_;
    on_offer_[offered.ticket.nonce] = offered.segment;
    return offered;
  }

  absl::StatusOr<std::shared_ptr<Segment>> Accept(const SegmentTicket& ticket) override {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = on_offer_.find(ticket.nonce);
    if (it == on_offer_.end()) return absl::NotFoundError("no such segment is on offer");
    return it->second;
  }

  void Withdraw(const Offered& offered) override {
    std::lock_guard<std::mutex> lock(mutex_);
    on_offer_.erase(offered.ticket.nonce);
  }

  std::shared_ptr<RemoteStreams> OpenStreams(uint32_t, const std::vector<int>&) override {
    return nullptr;
  }
  uint32_t next_context() const override { return 0; }
  void UseContextsBelow(uint32_t) override {}
  bool ContextFits(uint32_t) const override { return true; }
  WaitPolicy wait_policy() const override { return policy_; }

 private:
  const LocalGroupOptions options_;
  const WaitPolicy policy_;
  std::mutex mutex_;
  uint64_t last_nonce_ = 0;
  std::map<uint64_t, std::shared_ptr<Segment>> on_offer_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size,
                                                            const LocalGroupOptions& options) {
  auto fabric = std::make_shared<LocalFabric>(size, options);
  absl::StatusOr<Fabric::Offered> offered = fabric->Offer(size);
  if (!offered.ok()) {
    std::fprintf(stderr, "%s\n", std::string(offered.status().message()).c_str());
    std::abort();
  }
  fabric->Withdraw(*offered);
  GroupCommunicator::Spec spec;
  spec.fabric = fabric;
  spec.segment = offered->segment;
  for (int r = 0; r < size; ++r) spec.members.push_back({r, 0});
  std::vector<std::unique_ptr<Communicator>> group;
  for (int r = 0; r < size; ++r) {
    spec.rank = r;
    group.push_back(std::make_unique<GroupCommunicator>(spec));
  }
  return group;
}

}  // namespace phalanx::comm
