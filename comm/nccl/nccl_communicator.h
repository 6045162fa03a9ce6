// Ranks on GPUs of their own, over NCCL (NVIDIA, "NCCL User Guide", version 2.28,
// https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/). Data are pointers into the device's
// memory; a call is ordered after what was enqueued on the device's stream, and what is enqueued
// later sees its results.
//
// Device calls return when they are enqueued. That one went wrong shows later: nobody may believe
// results before Kernels::Synchronize (or CopyOut) has returned and abort_reason() says nothing.
// A watchdog (nccl_watchdog.h) ends what hangs: Synchronize then returns, every further call ends
// with ABORTED, and abort_reason() names rank, call and, where it can be told, who was missing. The
// timeout of a call runs from when it became the oldest thing of this group and those it was split
// from that is unfinished on the stream. Members that call different things, or with different
// sizes, hang until then, and are told apart.
//
// Profile `exact` (rule R2 of the design): parts are moved by NCCL and added by Kernels::AddParts
// in the plan's order, so sums have the bits of every other communicator. Profile `fast`: NCCL
// adds.
//
// CUDA graphs. AllReduce, ReduceScatter, AllReduceOr, AllGather, Gather, AllToAll, Broadcast, and
// Send and Recv with NcclMessages::kDevice, may be captured, in capture mode ThreadLocal or Relaxed
// (the watchdog queries events meanwhile), by all members alike and on their Kernels' stream. Each
// has to be called once without capture before, with sizes as large: scratch memory grows and NCCL
// connects at a call's first time, and neither may happen in a capture. BroadcastMessage, Barrier
// and Split may not be captured. The watchdog knows nothing of a captured call: call WatchProgress
// after each launch of the graph. The graph goes before the communicator does.
#ifndef PHALANX_COMM_NCCL_NCCL_COMMUNICATOR_H_
#define PHALANX_COMM_NCCL_NCCL_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "comm/call.h"
#include "comm/communicator.h"
#include "comm/nccl/nccl_group.h"
#include "comm/nccl/nccl_library.h"
#include "comm/nccl/nccl_watchdog.h"
#include "kernels/kernels.h"

namespace phalanx::comm {

enum class NcclProfile {
  kExact,  // sums in the plan's order
  kFast,   // a member's own parts in their order, then ncclSum, in whatever order NCCL adds
};

enum class NcclMessages {
  // Send and Recv enqueue ncclSend and ncclRecv. Nothing is buffered, and NCCL knows no tags: a
  // Send holds the sender's stream until its Recv is reached on the receiver's, so members must
  // receive from each other in the order in which the sender sent, whatever the tags, and two must
  // not both send to each other before either receives. Fit for a pipeline.
  kDevice,
  // Through the host, with all that the contract allows.
  kHost,
};

class NcclCommunicator;

struct NcclOptions {
  NcclProfile profile = NcclProfile::kExact;
  NcclMessages messages = NcclMessages::kDevice;
  // For the members to come, and for NCCL to connect them.
  absl::Duration startup_timeout = absl::Seconds(60);
  NcclWatchdog::Options watchdog;
  // Another communicator on the same device, or null. One watchdog then serves both and knows the
  // order of both's calls on the stream, so that a hang in one isn't taken for one in the other.
  const NcclCommunicator* beside = nullptr;
};

class NcclCommunicator : public Communicator {
 public:
  // Collective over the members of `host`, which carries what starts NCCL, Barrier,
  // BroadcastMessage and aborts. `host` and `device` are borrowed and outlive the result and all
  // that is split from it. `host` can still be called directly, from the same thread: all members
  // must make the same calls of both in the same order.
  //
  // FAILED_PRECONDITION, on every member alike and with `host` as good as before, so that they can
  // go on with it: a member has no NCCL (`library` is its error) or another version, has no GPU, or
  // shares one with another member. Any other error has aborted `host`.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(
      Communicator& host, kernels::Kernels& device,
      absl::StatusOr<std::shared_ptr<const nccl::Library>> library,
      const NcclOptions& options = {});

  // Waits for what was enqueued, at most the timeout.
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  void set_timeout(absl::Duration timeout) override;
  // At most kernels::kMaxAddends parts in all.
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
  // See NcclMessages. A message to oneself always goes through the host.
  absl::Status Send(const void* data, int64_t bytes, int peer, int tag) override;
  absl::Status Recv(void* data, int64_t bytes, int peer, int tag) override;
  // A barrier of the ranks' threads; it doesn't wait for streams.
  absl::Status Barrier() override;
  // Starts NCCL anew for each of the groups, over the host's Split: ncclCommSplit would need every
  // member to have nothing outstanding on the group, and an answer for its errors besides.
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;
  void Abort(std::string_view reason) override;
  std::optional<std::string> abort_reason() const override { return host_.abort_reason(); }
  uint64_t collective_number() const override { return group_->last_number(); }

  // Has everything that is enqueued so far watched as a collective named `what` would be, and
  // counts as one: by all members alike.
  void WatchProgress(std::string_view what);

 private:
  // What goes between members in one step, all together. Empty pieces are left out on both sides.
  struct Piece {
    const void* data;
    int64_t bytes;
    int peer;
    bool send;
  };
  using Combine =
      absl::FunctionRef<void(absl::Span<const char* const> operands, char* out, int64_t elements)>;

  NcclCommunicator(std::unique_ptr<NcclGroup> group, kernels::Kernels& device,
                   std::shared_ptr<const nccl::Library> library,
                   std::shared_ptr<NcclWatchdog> watchdog, const NcclOptions& options);
  // Over a group of the host whose members can speak NCCL. `watchdog` null: makes one.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Connect(
      Communicator& host, std::unique_ptr<Communicator> owned, kernels::Kernels& device,
      std::shared_ptr<const nccl::Library> library, std::shared_ptr<NcclWatchdog> watchdog,
      const NcclOptions& options);

  // Begins a call: numbers it, if it is a collective, and looks whether the group was aborted.
  absl::Status Begin(Op op);
  // Ends it: an error gets the call's name and aborts the group.
  absl::Status End(Op op, absl::Status status);
  // Begin, `enqueue` under the watchdog's eyes if `checked` is OK, End.
  absl::Status Device(Op op, absl::Status checked, uint64_t digest, int peer,
                      absl::FunctionRef<absl::Status()> enqueue);

  // CheckParts, and that a device can add so many.
  absl::Status CheckAddends(const ReducePlan& plan, absl::Span<const float* const> parts) const;

  // Device memory that is kept from call to call; what it held is lost.
  absl::StatusOr<char*> Scratch(int64_t bytes);
  absl::Status Exchange(absl::Span<const Piece> pieces);
  // Pieces of all members to all, side by side. `send` may be its own place in `recv`.
  absl::Status GatherAll(const void* send, void* recv, absl::Span<const int64_t> bytes);
  // out = combine(all members' parts), elements of 4 bytes. The operands that are this member's are
  // its parts themselves, or what lies at one place in them.
  absl::Status ReduceAll(absl::Span<const int> parts_per_member,
                         absl::Span<const char* const> parts, char* out, int64_t count,
                         Combine combine);
  absl::Status ReduceRanges(const ReducePlan& plan, absl::Span<const float* const> parts,
                            float* out, absl::Span<const int64_t> counts);
  // `parts` into `out`, in order; zeros if there are none.
  void AddOwnParts(absl::Span<const float* const> parts, float* out, int64_t count);
  absl::Status FastAllReduce(absl::Span<const float* const> parts, float* out, int64_t count);
  absl::Status FastReduceScatter(absl::Span<const float* const> parts, float* out, int64_t count);

  const std::unique_ptr<NcclGroup> group_;
  Communicator& host_;
  kernels::Kernels& device_;
  const std::shared_ptr<const nccl::Library> library_;
  const std::shared_ptr<NcclWatchdog> watchdog_;
  const NcclOptions options_;
  const std::unique_ptr<Communicator> staged_;  // messages through the host
  absl::Duration timeout_ = absl::Seconds(60);
  uint64_t collectives_ = 0;
  kernels::Buffer scratch_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_NCCL_NCCL_COMMUNICATOR_H_
