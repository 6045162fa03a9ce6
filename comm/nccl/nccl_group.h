// One NCCL communicator as those share it who use it at the same time: the thread that computes,
// the watchdog, and whoever aborts.
#ifndef PHALANX_COMM_NCCL_NCCL_GROUP_H_
#define PHALANX_COMM_NCCL_NCCL_GROUP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "comm/call.h"
#include "comm/communicator.h"
#include "comm/nccl/nccl_library.h"

namespace phalanx::comm {

// NCCL's communicator is made non-blocking: no call of it waits for a peer. All calls of NCCL with
// it are made under one mutex, so that nobody uses what was aborted: ncclCommAbort frees it.
class NcclGroup {
 public:
  // Sends, receives or collectives to enqueue together; returns the first error.
  using Calls = absl::FunctionRef<nccl::Result(const nccl::Library&, nccl::Comm*)>;

  // `host`: the same members on the host, borrowed; `owned` keeps it alive if it was made for this
  // group, else null. `alarm` and `roll_call` were split from it and belong to the watchdog.
  NcclGroup(std::shared_ptr<const nccl::Library> library, Communicator& host,
            std::unique_ptr<Communicator> owned, std::unique_ptr<Communicator> alarm,
            std::unique_ptr<Communicator> roll_call);

  int rank() const { return host_.rank(); }
  int size() const { return host_.size(); }
  // That all members use in the same order, from the computing thread; Abort() and abort_reason()
  // from any.
  Communicator& host() { return host_; }
  Communicator& alarm() { return *alarm_; }
  Communicator& roll_call() { return *roll_call_; }

  // Makes NCCL's communicator. DEADLINE_EXCEEDED, ABORTED if the host's group is, UNAVAILABLE where
  // NCCL fails.
  absl::Status Start(const nccl::UniqueId& id, absl::Duration timeout);
  // Enqueues `calls` as one group of NCCL's and returns when they are on the stream, which may take
  // until peers have come, since NCCL connects pairs when they first speak. Has no deadline of its
  // own: ABORTED once the watchdog has ended the group. UNAVAILABLE where NCCL fails.
  absl::Status Enqueue(Calls calls);
  // Lets what is enqueued finish and frees NCCL's communicator; after `timeout` aborts the group.
  void Close(absl::Duration timeout);
  // From any thread: takes NCCL's communicator out of use, to be aborted; null if there is none.
  nccl::Comm* Take();
  // From any thread: the error that NCCL met in the background, if it met one.
  std::optional<std::string> AsyncError();

  // The collective that was begun last, for the watchdog to tell others.
  void NoteBegun(Op op, uint64_t number);
  Op last_op() const { return last_op_.load(); }
  uint64_t last_number() const { return last_number_.load(); }
  // "rank 1 of 4: "
  std::string Prefix() const;

 private:
  // Waits until what returned `result` is under way. `deadline` max(): none.
  absl::Status Settle(nccl::Result result, Clock::time_point deadline, const char* what);
  // Under `mutex_`.
  absl::Status ErrorOf(nccl::Result result, const char* what);
  absl::Status Gone() const;

  const std::shared_ptr<const nccl::Library> library_;
  const std::unique_ptr<Communicator> owned_host_;
  Communicator& host_;
  const std::unique_ptr<Communicator> alarm_;
  const std::unique_ptr<Communicator> roll_call_;
  std::mutex mutex_;
  nccl::Comm* comm_ = nullptr;
  std::atomic<Op> last_op_{Op::kNone};
  std::atomic<uint64_t> last_number_{0};
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_NCCL_NCCL_GROUP_H_
