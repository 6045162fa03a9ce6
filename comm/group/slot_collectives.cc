// Collectives of a group on one node, over the slots of its shared segment. Each is a row of {write
// my slot; Phase(); read the others' slots}; see shm/member.h for the rule that makes this safe.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "comm/group/group_communicator.h"

namespace phalanx::comm {
namespace {

// Up to this much of all members' parts together, every member adds up everything itself, which
// saves a phase; beyond, each adds up its share.
constexpr int64_t kSlotReduceAloneBytes = 256 << 10;

void Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

// Member r's share of `count` elements.
int64_t ShareBegin(int64_t count, int r, int members) { return count * r / members; }

}  // namespace

template <typename T>
absl::Status GroupCommunicator::SlotAllReduce(const Call& call,
                                              absl::Span<const int> parts_per_member,
                                              absl::Span<const T* const> parts, T* out,
                                              int64_t count, const Combine<T>& combine) {
  static_assert(sizeof(T) == 4);
  const int n = size();
  int64_t total_parts = 0;
  int64_t max_parts = 0;
  for (const int p : parts_per_member) {
    total_parts += p;
    max_parts = std::max<int64_t>(max_parts, p);
  }
  const int64_t slot_elements = shm_->slot_bytes() / static_cast<int64_t>(sizeof(T));
  std::vector<const T*> operands(total_parts);

  if (total_parts * count * static_cast<int64_t>(sizeof(T)) <= kSlotReduceAloneBytes &&
      max_parts * count <= slot_elements) {
    T* slot = reinterpret_cast<T*>(shm_->slot());
    for (size_t p = 0; p < parts.size(); ++p) {
      Copy(slot + p * count, parts[p], count * sizeof(T));
    }
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    size_t operand = 0;
    for (int r = 0; r < n; ++r) {
      const T* theirs = reinterpret_cast<const T*>(shm_->peer_slot(r));
      for (int p = 0; p < parts_per_member[r]; ++p) operands[operand++] = theirs + p * count;
    }
    if (count > 0) combine(operands, out, count);
    return absl::OkStatus();
  }

  // A slot holds `max_parts` blocks of `chunk` elements, then this member's share of the chunk
  // before, summed.
  const int64_t chunk = slot_elements / (max_parts + 1);
  if (chunk < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a member's ", max_parts, " parts do not fit a slot of ", shm_->slot_bytes(), " bytes"));
  }
  const int64_t chunks = (count + chunk - 1) / chunk;
  for (int64_t c = 0; c <= chunks; ++c) {
    T* slot = reinterpret_cast<T*>(shm_->slot());
    if (c < chunks) {
      const int64_t m = std::min(chunk, count - c * chunk);
      for (size_t p = 0; p < parts.size(); ++p) {
        Copy(slot + p * chunk, parts[p] + c * chunk, m * sizeof(T));
      }
    }
    const int64_t before = c == 0 ? 0 : std::min(chunk, count - (c - 1) * chunk);
    if (c > 0) {
      const int64_t begin = ShareBegin(before, rank_, n);
      const int64_t share = ShareBegin(before, rank_ + 1, n) - begin;
      size_t operand = 0;
      for (int r = 0; r < n; ++r) {
        const T* theirs = reinterpret_cast<const T*>(shm_->peer_slot(r));
        for (int p = 0; p < parts_per_member[r]; ++p) {
          operands[operand++] = theirs + p * chunk + begin;
        }
      }
      if (share > 0) combine(operands, slot + max_parts * chunk, share);
    }
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    if (c > 0) {
      for (int r = 0; r < n; ++r) {
        const int64_t begin = ShareBegin(before, r, n);
        const T* theirs = reinterpret_cast<const T*>(shm_->peer_slot(r)) + max_parts * chunk;
        Copy(out + (c - 1) * chunk + begin, theirs,
             (ShareBegin(before, r + 1, n) - begin) * sizeof(T));
      }
    }
  }
  return absl::OkStatus();
}

template absl::Status GroupCommunicator::SlotAllReduce<float>(const Call&, absl::Span<const int>,
                                                              absl::Span<const float* const>,
                                                              float*, int64_t,
                                                              const Combine<float>&);
template absl::Status GroupCommunicator::SlotAllReduce<uint32_t>(const Call&, absl::Span<const int>,
                                                                 absl::Span<const uint32_t* const>,
                                                                 uint32_t*, int64_t,
                                                                 const Combine<uint32_t>&);

absl::Status GroupCommunicator::SlotReduceScatter(const Call& call, const ReducePlan& plan,
                                                  absl::Span<const float* const> parts, float* out,
                                                  absl::Span<const int64_t> counts) {
  const int n = size();
  const int64_t max_parts =
      *std::max_element(plan.parts_per_member.begin(), plan.parts_per_member.end());
  // Each round carries `chunk` elements for every receiver: block [receiver][part] in the slot.
  const int64_t slot_elements = shm_->slot_bytes() / static_cast<int64_t>(sizeof(float));
  const int64_t chunk = slot_elements / (n * std::max<int64_t>(1, max_parts));
  if (chunk < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a member's ", max_parts, " parts for ", n,
                                                   " members do not fit a slot of ",
                                                   shm_->slot_bytes(), " bytes"));
  }
  const int64_t longest = *std::max_element(counts.begin(), counts.end());
  const int64_t rounds = std::max<int64_t>(1, (longest + chunk - 1) / chunk);
  operands_.resize(TotalParts(plan));
  for (int64_t round = 0; round < rounds; ++round) {
    float* slot = reinterpret_cast<float*>(shm_->slot());
    int64_t begin = 0;  // of the receiver's range
    for (int r = 0; r < n; ++r) {
      const int64_t m = std::clamp<int64_t>(counts[r] - round * chunk, 0, chunk);
      for (size_t p = 0; p < parts.size(); ++p) {
        Copy(slot + (r * max_parts + static_cast<int64_t>(p)) * chunk,
             parts[p] + begin + round * chunk, m * sizeof(float));
      }
      begin += counts[r];
    }
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    const int64_t mine = std::clamp<int64_t>(counts[rank_] - round * chunk, 0, chunk);
    size_t operand = 0;
    for (int r = 0; r < n; ++r) {
      const float* theirs = reinterpret_cast<const float*>(shm_->peer_slot(r));
      for (int p = 0; p < plan.parts_per_member[r]; ++p) {
        operands_[operand++] = theirs + (rank_ * max_parts + p) * chunk;
      }
    }
    if (mine > 0) reducer_.Run(plan.program, operands_, out + round * chunk, mine);
  }
  return absl::OkStatus();
}

absl::Status GroupCommunicator::SlotGather(const Call& call, const void* send, void* recv,
                                           absl::Span<const int64_t> bytes, int root) {
  const int64_t chunk = shm_->slot_bytes();
  const int64_t longest = *std::max_element(bytes.begin(), bytes.end());
  const int64_t rounds = std::max<int64_t>(1, (longest + chunk - 1) / chunk);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t at = round * chunk;
    const int64_t mine = std::clamp<int64_t>(bytes[rank_] - at, 0, chunk);
    if (mine > 0) Copy(shm_->slot(), static_cast<const char*>(send) + at, mine);
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    if (root >= 0 && root != rank_) continue;
    int64_t begin = 0;
    for (int r = 0; r < size(); ++r) {
      const int64_t m = std::clamp<int64_t>(bytes[r] - at, 0, chunk);
      if (m > 0) Copy(static_cast<char*>(recv) + begin + at, shm_->peer_slot(r), m);
      begin += bytes[r];
    }
  }
  return absl::OkStatus();
}

absl::Status GroupCommunicator::SlotAllToAll(const Call& call, const void* send,
                                             absl::Span<const int64_t> send_bytes, void* recv,
                                             absl::Span<const int64_t> recv_bytes) {
  // A slot begins with the number of rounds that its owner needs, which only the owner and each
  // receiver know; then a block for every receiver.
  const int n = size();
  const int64_t chunk = (shm_->slot_bytes() - kCacheLine) / n / 8 * 8;
  if (chunk < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("a slot of ", shm_->slot_bytes(), " bytes is too small for ", n, " members"));
  }
  const int64_t longest = *std::max_element(send_bytes.begin(), send_bytes.end());
  const int64_t my_rounds = std::max<int64_t>(1, (longest + chunk - 1) / chunk);
  int64_t rounds = my_rounds;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t at = round * chunk;
    uint8_t* slot = shm_->slot();
    std::memcpy(slot, &my_rounds, sizeof(my_rounds));
    int64_t begin = 0;
    for (int r = 0; r < n; ++r) {
      const int64_t m = std::clamp<int64_t>(send_bytes[r] - at, 0, chunk);
      if (m > 0) {
        Copy(slot + kCacheLine + r * chunk, static_cast<const char*>(send) + begin + at, m);
      }
      begin += send_bytes[r];
    }
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    begin = 0;
    for (int r = 0; r < n; ++r) {
      const uint8_t* theirs = shm_->peer_slot(r);
      int64_t their_rounds;
      std::memcpy(&their_rounds, theirs, sizeof(their_rounds));
      rounds = std::max(rounds, their_rounds);
      const int64_t m = std::clamp<int64_t>(recv_bytes[r] - at, 0, chunk);
      if (m > 0) {
        Copy(static_cast<char*>(recv) + begin + at, theirs + kCacheLine + rank_ * chunk, m);
      }
      begin += recv_bytes[r];
    }
  }
  return absl::OkStatus();
}

absl::Status GroupCommunicator::SlotBroadcast(const Call& call, void* data, int64_t bytes,
                                              int root) {
  const int64_t chunk = shm_->slot_bytes();
  const int64_t rounds = std::max<int64_t>(1, (bytes + chunk - 1) / chunk);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t m = std::min(chunk, bytes - round * chunk);
    char* at = static_cast<char*>(data) + round * chunk;
    if (rank_ == root && m > 0) Copy(shm_->slot(), at, m);
    if (absl::Status status = shm_->Phase(call); !status.ok()) return status;
    if (rank_ != root && m > 0) Copy(at, shm_->peer_slot(root), m);
  }
  return absl::OkStatus();
}

}  // namespace phalanx::comm
