// One call of a communicator: what it is, how it is named in errors, how long it may wait.
#ifndef PHALANX_COMM_CALL_H_
#define PHALANX_COMM_CALL_H_

#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace phalanx::comm {

using Clock = std::chrono::steady_clock;

enum class Op : uint32_t {
  kNone,
  kAllReduce,
  kReduceScatter,
  kAllReduceOr,
  kAllGather,
  kGather,
  kAllToAll,
  kBroadcast,
  kBroadcastMessage,
  kSend,
  kRecv,
  kBarrier,
  kSplit,
};

inline const char* OpName(Op op) {
  switch (op) {
    case Op::kNone:
      return "nothing yet";
    case Op::kAllReduce:
      return "AllReduce";
    case Op::kReduceScatter:
      return "ReduceScatter";
    case Op::kAllReduceOr:
      return "AllReduceOr";
    case Op::kAllGather:
      return "AllGather";
    case Op::kGather:
      return "Gather";
    case Op::kAllToAll:
      return "AllToAll";
    case Op::kBroadcast:
      return "Broadcast";
    case Op::kBroadcastMessage:
      return "BroadcastMessage";
    case Op::kSend:
      return "Send";
    case Op::kRecv:
      return "Recv";
    case Op::kBarrier:
      return "Barrier";
    case Op::kSplit:
      return "Split";
  }
  return "an unknown operation";
}

struct Call {
  Op op = Op::kNone;
  uint64_t collective = 0;  // its number on this communicator; for Send and Recv the last one begun
  uint64_t digest = 0;      // of the arguments that must match on every member
  Clock::time_point start;
  Clock::time_point deadline = Clock::time_point::max();  // max: none
};

// `timeout` from `now`; an infinite timeout is no deadline.
inline Clock::time_point DeadlineAfter(Clock::time_point now, absl::Duration timeout) {
  if (timeout >= absl::Hours(24 * 365)) return Clock::time_point::max();
  return now + std::chrono::duration_cast<Clock::duration>(absl::ToChronoNanoseconds(timeout));
}

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_CALL_H_
