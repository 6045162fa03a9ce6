// Collectives of a group over several nodes: direct exchanges between its members. The bytes that
// cross are the same as a ring's; the steps are one or two.
#include <algorithm>
#include <cstring>

#include "comm/group/group_communicator.h"

namespace phalanx::comm {
namespace {

// As in slot_collectives.cc: up to this much in all, everybody gets everything and adds it up.
constexpr int64_t kMessageReduceAloneBytes = 64 << 10;

}  // namespace

template <typename T>
absl::Status GroupCommunicator::MessageAllReduce(const Call& call,
                                                 absl::Span<const int> parts_per_member,
                                                 absl::Span<const T* const> parts, T* out,
                                                 int64_t count, const Combine<T>& combine) {
  const int n = size();
  int64_t total_parts = 0;
  for (const int p : parts_per_member) total_parts += p;
  const bool alone =
      total_parts * count * static_cast<int64_t>(sizeof(T)) <= kMessageReduceAloneBytes;
  const auto share_begin = [&](int r) { return alone ? 0 : count * r / n; };
  const auto share_end = [&](int r) { return alone ? count : count * (r + 1) / n; };

  // Step 1: my share of everybody's parts; `gathered` is [total_parts, mine].
  const int64_t mine = share_end(rank_) - share_begin(rank_);
  std::vector<T> gathered(total_parts * mine);
  std::vector<const T*> operands;
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (int r = 0; r < n; ++r) {
    for (int p = 0; p < parts_per_member[r]; ++p) {
      T* to = gathered.data() + operands.size() * mine;
      operands.push_back(to);
      if (r == rank_) {
        if (mine > 0) std::memcpy(to, parts[p] + share_begin(rank_), mine * sizeof(T));
      } else {
        receives.push_back({r, to, mine * static_cast<int64_t>(sizeof(T))});
      }
    }
    if (r == rank_) continue;
    const int64_t theirs = share_end(r) - share_begin(r);
    for (const T* part : parts) {
      sends.push_back({r, part + share_begin(r), theirs * static_cast<int64_t>(sizeof(T))});
    }
  }
  if (absl::Status status = ExchangeCollective(call, sends, receives); !status.ok()) return status;
  if (mine > 0) combine(operands, out + share_begin(rank_), mine);
  if (alone) return absl::OkStatus();

  // Step 2: everybody's sums.
  sends.clear();
  receives.clear();
  for (int r = 0; r < n; ++r) {
    if (r == rank_) continue;
    sends.push_back({r, out + share_begin(rank_), mine * static_cast<int64_t>(sizeof(T))});
    receives.push_back({r, out + share_begin(r),
                        (share_end(r) - share_begin(r)) * static_cast<int64_t>(sizeof(T))});
  }
  return ExchangeCollective(call, sends, receives);
}

template absl::Status GroupCommunicator::MessageAllReduce<float>(const Call&, absl::Span<const int>,
                                                                 absl::Span<const float* const>,
                                                                 float*, int64_t,
                                                                 const Combine<float>&);
template absl::Status GroupCommunicator::MessageAllReduce<uint32_t>(
    const Call&, absl::Span<const int>, absl::Span<const uint32_t* const>, uint32_t*, int64_t,
    const Combine<uint32_t>&);

absl::Status GroupCommunicator::MessageReduceScatter(const Call& call, const ReducePlan& plan,
                                                     absl::Span<const float* const> parts,
                                                     float* out, absl::Span<const int64_t> counts) {
  const int64_t mine = counts[rank_];
  std::vector<float> gathered(TotalParts(plan) * mine);
  operands_.clear();
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  int64_t begin = 0;
  for (int r = 0; r < size(); ++r) {
    for (int p = 0; p < plan.parts_per_member[r]; ++p) {
      float* to = gathered.data() + operands_.size() * mine;
      operands_.push_back(to);
      if (r != rank_) {
        receives.push_back({r, to, mine * static_cast<int64_t>(sizeof(float))});
      } else if (mine > 0) {
        std::memcpy(to, parts[p] + begin, mine * sizeof(float));
      }
    }
    if (r != rank_) {
      for (const float* part : parts) {
        sends.push_back({r, part + begin, counts[r] * static_cast<int64_t>(sizeof(float))});
      }
    }
    begin += counts[r];
  }
  if (absl::Status status = ExchangeCollective(call, sends, receives); !status.ok()) return status;
  if (mine > 0) reducer_.Run(plan.program, operands_, out, mine);
  return absl::OkStatus();
}

absl::Status GroupCommunicator::MessageGather(const Call& call, const void* send, void* recv,
                                              absl::Span<const int64_t> bytes, int root) {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  int64_t begin = 0;
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) {
      if ((root < 0 || root == rank_) && bytes[r] > 0) {
        std::memmove(static_cast<char*>(recv) + begin, send, bytes[r]);
      }
    } else {
      if (root < 0 || root == r) sends.push_back({r, send, bytes[rank_]});
      if (root < 0 || root == rank_) {
        receives.push_back({r, static_cast<char*>(recv) + begin, bytes[r]});
      }
    }
    begin += bytes[r];
  }
  return ExchangeCollective(call, sends, receives);
}

absl::Status GroupCommunicator::MessageAllToAll(const Call& call, const void* send,
                                                absl::Span<const int64_t> send_bytes, void* recv,
                                                absl::Span<const int64_t> recv_bytes) {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  int64_t send_at = 0;
  int64_t recv_at = 0;
  for (int r = 0; r < size(); ++r) {
    const char* from = static_cast<const char*>(send) + send_at;
    char* to = static_cast<char*>(recv) + recv_at;
    if (r != rank_) {
      sends.push_back({r, from, send_bytes[r]});
      receives.push_back({r, to, recv_bytes[r]});
    } else if (send_bytes[r] > 0) {
      std::memmove(to, from, send_bytes[r]);
    }
    send_at += send_bytes[r];
    recv_at += recv_bytes[r];
  }
  return ExchangeCollective(call, sends, receives);
}

absl::Status GroupCommunicator::MessageBroadcast(const Call& call, void* data, int64_t bytes,
                                                 int root) {
  if (rank_ != root) {
    const Incoming receive{root, data, bytes};
    return ExchangeCollective(call, {}, {&receive, 1});
  }
  std::vector<Outgoing> sends;
  for (int r = 0; r < size(); ++r) {
    if (r != root) sends.push_back({r, data, bytes});
  }
  return ExchangeCollective(call, sends, {});
}

absl::Status GroupCommunicator::MessageBarrier(const Call& call) {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) continue;
    sends.push_back({r, nullptr, 0});
    receives.push_back({r, nullptr, 0});
  }
  return ExchangeCollective(call, sends, receives);
}

}  // namespace phalanx::comm
