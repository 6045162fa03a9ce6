// The one implementation of Communicator over shared memory and streams.
//
// If all members are on this node, collectives go through the slots of the shared segment
// (slot_collectives.cc), else through messages (message_collectives.cc). Send, Recv and
// BroadcastMessage are messages always: their sender need not wait for the receiver.
#ifndef PHALANX_COMM_GROUP_GROUP_COMMUNICATOR_H_
#define PHALANX_COMM_GROUP_GROUP_COMMUNICATOR_H_

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/call.h"
#include "comm/communicator.h"
#include "comm/group/fabric.h"
#include "comm/group/messenger.h"
#include "comm/group/reduce.h"
#include "comm/shm/member.h"
#include "kernels/tree_sum.h"

namespace phalanx::comm {

// One process's view of a group's being aborted, and of the groups made from it by Split.
class AbortScope {
 public:
  AbortScope(std::shared_ptr<AbortScope> parent, std::shared_ptr<Segment> segment,
             std::shared_ptr<RemoteStreams> remote);
  // Makes Abort() of `parent` reach `child` as long as it lives.
  static void Register(const std::shared_ptr<AbortScope>& child);

  void Abort(std::string_view reason);
  // Why this group or an enclosing one was aborted, if one was.
  std::optional<std::string> Reason();

 private:
  const std::shared_ptr<AbortScope> parent_;
  const std::shared_ptr<Segment> segment_;
  const std::shared_ptr<RemoteStreams> remote_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<AbortScope>> children_;
};

// A member of a group: its rank in the world and the node it is on (any number, equal for equal
// nodes).
struct GroupMember {
  int32_t world_rank;
  int32_t node;
};

class GroupCommunicator : public Communicator {
 public:
  struct Spec {
    std::shared_ptr<Fabric> fabric;
    int rank = 0;
    std::vector<GroupMember> members;  // by rank
    std::shared_ptr<Segment> segment;  // of the members on this rank's node, in rising rank
    uint32_t context = 0;
    std::shared_ptr<AbortScope> parent;  // may be null
    absl::Duration timeout = absl::Seconds(60);
  };
  explicit GroupCommunicator(Spec spec);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  void set_timeout(absl::Duration timeout) override { timeout_ = timeout; }
  absl::Status AllReduce(const ReducePlan& plan, absl::Span<const float* const> parts, float* out,
                         int64_t count) override;
  absl::Status ReduceScatter(const ReducePlan& plan, absl::Span<const float* const> parts,
                             float* out, absl::Span<const int64_t> counts) override;
  absl::Status AllReduceOr(uint32_t* data, int64_t count) override;
  absl::Status AllGather(const void* send, void* recv, absl::Span<const int64_t> bytes) override;
  absl::Status Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                      int root) override;
  absl::Status AllToAll(const void* send, absl::Span<const int64_t> send_bytes, void* recv,
                        absl::Span<const int64_t> recv_bytes) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status BroadcastMessage(std::string& message, int root) override;
  absl::Status Send(const void* data, int64_t bytes, int peer, int tag) override;
  absl::Status Recv(void* data, int64_t bytes, int peer, int tag) override;
  absl::Status Barrier() override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;
  void Abort(std::string_view reason) override;
  std::optional<std::string> abort_reason() const override { return scope_->Reason(); }
  uint64_t collective_number() const override { return collectives_.load(); }

  // As Split, with the nodes of the new group's members given anew: `node` of this rank. If the
  // ranks of a node cannot share memory, returns null on every member of the group and no error.
  // Unless `enclosed`, aborts of this group do not end the new one.
  absl::StatusOr<std::unique_ptr<Communicator>> Regroup(int color, int key, int node,
                                                        bool enclosed);

 private:
  // Begins a call: numbers it, if it is a collective, and sets its deadline.
  Call Begin(Op op, uint64_t digest);
  // Ends it: an error gets the call's name and aborts the group.
  absl::Status End(const Call& call, absl::Status status);
  std::string Name(int rank) const;
  bool one_node() const { return one_node_; }

  // Over slots. `T` is 4 bytes wide; `combine(operands, out, count)` gives the sum of all parts.
  template <typename T>
  using Combine = std::function<void(absl::Span<const T* const>, T*, int64_t)>;
  template <typename T>
  absl::Status SlotAllReduce(const Call& call, absl::Span<const int> parts_per_member,
                             absl::Span<const T* const> parts, T* out, int64_t count,
                             const Combine<T>& combine);
  absl::Status SlotReduceScatter(const Call& call, const ReducePlan& plan,
                                 absl::Span<const float* const> parts, float* out,
                                 absl::Span<const int64_t> counts);
  // `root` < 0: every member receives.
  absl::Status SlotGather(const Call& call, const void* send, void* recv,
                          absl::Span<const int64_t> bytes, int root);
  absl::Status SlotAllToAll(const Call& call, const void* send,
                            absl::Span<const int64_t> send_bytes, void* recv,
                            absl::Span<const int64_t> recv_bytes);
  absl::Status SlotBroadcast(const Call& call, void* data, int64_t bytes, int root);

  // Over messages; the same arguments.
  template <typename T>
  absl::Status MessageAllReduce(const Call& call, absl::Span<const int> parts_per_member,
                                absl::Span<const T* const> parts, T* out, int64_t count,
                                const Combine<T>& combine);
  absl::Status MessageReduceScatter(const Call& call, const ReducePlan& plan,
                                    absl::Span<const float* const> parts, float* out,
                                    absl::Span<const int64_t> counts);
  absl::Status MessageGather(const Call& call, const void* send, void* recv,
                             absl::Span<const int64_t> bytes, int root);
  absl::Status MessageAllToAll(const Call& call, const void* send,
                               absl::Span<const int64_t> send_bytes, void* recv,
                               absl::Span<const int64_t> recv_bytes);
  absl::Status MessageBroadcast(const Call& call, void* data, int64_t bytes, int root);
  absl::Status MessageBarrier(const Call& call);
  absl::Status ExchangeCollective(const Call& call, absl::Span<const Outgoing> sends,
                                  absl::Span<const Incoming> receives) {
    return messenger_->Exchange(call, Channel::kCollective, 0, sends, receives);
  }

  absl::Status GatherAny(const Call& call, const void* send, void* recv,
                         absl::Span<const int64_t> bytes, int root);

  const std::shared_ptr<Fabric> fabric_;
  const int rank_;
  const std::vector<GroupMember> members_;
  std::shared_ptr<RemoteStreams> remote_;
  std::shared_ptr<AbortScope> scope_;
  std::unique_ptr<ShmMember> shm_;
  std::unique_ptr<Messenger> messenger_;
  bool one_node_ = true;
  absl::Duration timeout_;
  std::atomic<uint64_t> collectives_{0};
  kernels::TreeSum reducer_;
  std::vector<const float*> operands_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_GROUP_COMMUNICATOR_H_
