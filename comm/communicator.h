// Moving bytes between the ranks of one group. Knows no model.
//
// Every member calls the same collectives in the same order with matching arguments. No call blocks
// beyond its deadline or an abort: it then returns DEADLINE_EXCEEDED or ABORTED, the message naming
// this rank, the operation, its sequence number and, where known, the peer that is missing. After
// an error the communicator stays aborted. An instance is used by one thread at a time; Abort(),
// abort_reason() and collective_number() may be called from any thread.
//
// Reductions are ordered (rule R2 of the design): the bits of a sum depend on the leaves, never on
// how many members hold them.
#ifndef PHALANX_COMM_COMMUNICATOR_H_
#define PHALANX_COMM_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace phalanx::comm {

// How an ordered sum is finished. The members' parts, concatenated in member order, are the
// operands of `program`: a postfix program where i >= 0 pushes operand i and -1 pops right, pops
// left and pushes left + right in fp32.
struct ReducePlan {
  std::vector<int> parts_per_member;  // [size()], each >= 0
  std::vector<int> program;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // How long a collective may wait for its peers before DEADLINE_EXCEEDED. Default 60 s.
  virtual void set_timeout(absl::Duration timeout) = 0;

  // out[i] = the plan's sum over all members' parts, for i < count; the same bits on every member.
  // `parts`: this member's parts in leaf order, parts_per_member[rank()] of them, each `count`
  // floats. `out` may be one of `parts`.
  virtual absl::Status AllReduce(const ReducePlan& plan, absl::Span<const float* const> parts,
                                 float* out, int64_t count) = 0;
  // As AllReduce, but member r receives only elements [sum(counts[0..r)), + counts[r]).
  virtual absl::Status ReduceScatter(const ReducePlan& plan, absl::Span<const float* const> parts,
                                     float* out, absl::Span<const int64_t> counts) = 0;
  // data[i] = bitwise or over members: selects rows that one member holds and the others have
  // as zero bits.
  virtual absl::Status AllReduceOr(uint32_t* data, int64_t count) = 0;
  // recv = the members' bytes side by side in member order; member r sends bytes[r] bytes.
  virtual absl::Status AllGather(const void* send, void* recv, absl::Span<const int64_t> bytes) = 0;
  // As AllGather, to `root` only; `recv` is unused elsewhere.
  virtual absl::Status Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                              int root) = 0;
  // Member r's send holds send_bytes[0] bytes for member 0, then send_bytes[1] for member 1, ...;
  // recv likewise with recv_bytes. send_bytes[q] on r equals recv_bytes[r] on q.
  virtual absl::Status AllToAll(const void* send, absl::Span<const int64_t> send_bytes, void* recv,
                                absl::Span<const int64_t> recv_bytes) = 0;
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root) = 0;
  // Broadcasts a message of any size from `root` (`message` in) to the others (`message` out). The
  // receivers sleep until it comes, with no limit but Abort() and, where the transport can tell,
  // the death of a peer: this is how an idle rank waits for work.
  virtual absl::Status BroadcastMessage(std::string& message, int root) = 0;
  // Point to point; `tag` >= 0. Messages of one (sender, receiver, tag) arrive in order. A Send may
  // return before the peer receives.
  virtual absl::Status Send(const void* data, int64_t bytes, int peer, int tag) = 0;
  virtual absl::Status Recv(void* data, int64_t bytes, int peer, int tag) = 0;
  virtual absl::Status Barrier() = 0;

  // Members with equal `color` form a new group, ordered by (key, rank). Collective. A negative
  // color returns null: the member joins none.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) = 0;

  // Ends every call of every member that is waiting or comes later, here and in communicators made
  // by Split, with ABORTED and `reason`. From any thread, idempotent.
  virtual void Abort(std::string_view reason) = 0;
  // Why this group, or one that it was split from, was aborted, as far as this process knows;
  // nothing if it was not. From any thread, and never waits. Where calls only enqueue work
  // (comm/nccl), what they wrote may be believed if this says nothing after the work was waited
  // for.
  virtual std::optional<std::string> abort_reason() const = 0;
  // Collectives begun so far: what a hang is named by.
  virtual uint64_t collective_number() const = 0;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_COMMUNICATOR_H_
