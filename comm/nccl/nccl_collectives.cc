// Collectives on the device's stream.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/group/arguments.h"
#include "comm/group/reduce.h"
#include "comm/nccl/nccl_communicator.h"

namespace phalanx::comm {
namespace {

// Up to this much of all members' parts together, every member adds up everything itself, in two
// steps on the stream; beyond, each adds up its share, in three, which moves less.
constexpr int64_t kReduceAloneBytes = 256 << 10;
// Shares begin at multiples of this many elements: 128 bytes.
constexpr int64_t kShareUnit = 32;
constexpr int64_t kScratchAlignment = 256;

int64_t Aligned(int64_t bytes) {
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

bool AllEqual(absl::Span<const int64_t> values) {
  return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v == values[0]; });
}

int64_t Sum(absl::Span<const int64_t> values) {
  int64_t sum = 0;
  for (const int64_t value : values) sum += value;
  return sum;
}

// `count` elements of 4 bytes as one row.
kernels::TensorView Row(const void* data, int64_t count) {
  return {const_cast<void*>(data), kernels::DType::kF32, 1, count, count};
}

// The first error of a row of calls.
class FirstError {
 public:
  void operator()(nccl::Result result) {
    if (first_ == nccl::kSuccess || first_ == nccl::kInProgress) first_ = result;
  }
  nccl::Result result() const { return first_; }

 private:
  nccl::Result first_ = nccl::kSuccess;
};

}  // namespace

absl::StatusOr<char*> NcclCommunicator::Scratch(int64_t bytes) {
  if (scratch_.data() == nullptr || static_cast<int64_t>(scratch_.bytes()) < bytes) {
    // Freed first: both together may not fit. What is enqueued is done with it before anything that
    // is enqueued later.
    scratch_ = kernels::Buffer();
    absl::StatusOr<kernels::Buffer> grown = device_.Allocate(std::max<int64_t>(bytes, 4096));
    if (!grown.ok()) return grown.status();
    scratch_ = *std::move(grown);
  }
  return scratch_.as<char>();
}

absl::Status NcclCommunicator::Exchange(absl::Span<const Piece> pieces) {
  if (std::all_of(pieces.begin(), pieces.end(), [](const Piece& p) { return p.bytes == 0; })) {
    return absl::OkStatus();
  }
  return group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
    FirstError error;
    for (const Piece& piece : pieces) {
      if (piece.bytes == 0) continue;
      const auto bytes = static_cast<size_t>(piece.bytes);
      if (piece.send) {
        error(library.Send(piece.data, bytes, nccl::kUint8, piece.peer, comm,
                           device_.native_stream()));
      } else {
        error(library.Recv(const_cast<void*>(piece.data), bytes, nccl::kUint8, piece.peer, comm,
                           device_.native_stream()));
      }
    }
    return error.result();
  });
}

absl::Status NcclCommunicator::GatherAll(const void* send, void* recv,
                                         absl::Span<const int64_t> bytes) {
  if (AllEqual(bytes)) {
    if (bytes[0] == 0) return absl::OkStatus();
    return group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
      return library.AllGather(send, recv, static_cast<size_t>(bytes[0]), nccl::kUint8, comm,
                               device_.native_stream());
    });
  }
  std::vector<Piece> pieces;
  char* to = static_cast<char*>(recv);
  for (int r = 0; r < size(); ++r) {
    // NCCL's message to oneself is a copy; there is none to make in place.
    if (r != rank() || to != send) {
      pieces.push_back({send, bytes[rank()], r, true});
      pieces.push_back({to, bytes[r], r, false});
    }
    to += bytes[r];
  }
  return Exchange(pieces);
}

absl::Status NcclCommunicator::ReduceAll(absl::Span<const int> parts_per_member,
                                         absl::Span<const char* const> parts, char* out,
                                         int64_t count, Combine combine) {
  if (count == 0) return absl::OkStatus();
  const int n = size();
  if (n == 1) {
    combine(parts, out, count);
    return absl::OkStatus();
  }
  int64_t total_parts = 0;
  bool equal = true;
  for (const int p : parts_per_member) {
    total_parts += p;
    equal = equal && p == parts_per_member[0];
  }
  std::vector<const char*> operands;
  if (total_parts * count * 4 <= kReduceAloneBytes) {
    const int64_t bytes = count * 4;
    absl::StatusOr<char*> scratch = Scratch(total_parts * Aligned(bytes));
    if (!scratch.ok()) return scratch.status();
    absl::Status status;
    if (equal) {
      // Part p of every member, side by side, for each p.
      for (int r = 0; r < n; ++r) {
        for (int p = 0; p < parts_per_member[r]; ++p) {
          operands.push_back(r == rank() ? parts[p] : *scratch + (int64_t{p} * n + r) * bytes);
        }
      }
      status = group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
        FirstError error;
        for (size_t p = 0; p < parts.size(); ++p) {
          error(library.AllGather(parts[p], *scratch + static_cast<int64_t>(p) * n * bytes,
                                  static_cast<size_t>(bytes), nccl::kUint8, comm,
                                  device_.native_stream()));
        }
        return error.result();
      });
    } else {
      std::vector<Piece> pieces;
      char* to = *scratch;
      for (int r = 0; r < n; ++r) {
        if (r != rank()) {
          for (const char* part : parts) pieces.push_back({part, bytes, r, true});
        }
        for (int p = 0; p < parts_per_member[r]; ++p, to += Aligned(bytes)) {
          operands.push_back(r == rank() ? parts[p] : to);
          if (r != rank()) pieces.push_back({to, bytes, r, false});
        }
      }
      status = Exchange(pieces);
    }
    if (!status.ok()) return status;
    combine(operands, out, count);
    return absl::OkStatus();
  }

  const int64_t unit = (count + n * kShareUnit - 1) / (n * kShareUnit) * kShareUnit;
  const auto begin = [&](int r) { return std::min(count, unit * r) * 4; };
  const auto share = [&](int r) { return begin(r + 1) - begin(r); };
  const int64_t mine = share(rank());
  absl::StatusOr<char*> scratch = Scratch(total_parts * Aligned(mine));
  if (!scratch.ok()) return scratch.status();
  std::vector<Piece> pieces;
  char* to = *scratch;
  for (int r = 0; r < n; ++r) {
    if (r != rank()) {
      for (const char* part : parts) pieces.push_back({part + begin(r), share(r), r, true});
    }
    for (int p = 0; p < parts_per_member[r]; ++p, to += Aligned(mine)) {
      operands.push_back(r == rank() ? parts[p] + begin(rank()) : to);
      if (r != rank()) pieces.push_back({to, mine, r, false});
    }
  }
  if (absl::Status status = Exchange(pieces); !status.ok()) return status;
  if (mine > 0) combine(operands, out + begin(rank()), mine / 4);
  std::vector<int64_t> shares(n);
  for (int r = 0; r < n; ++r) shares[r] = share(r);
  return GatherAll(out + begin(rank()), out, shares);
}

absl::Status NcclCommunicator::AllReduce(const ReducePlan& plan,
                                         absl::Span<const float* const> parts, float* out,
                                         int64_t count) {
  absl::Status checked = CheckAddends(plan, parts);
  if (checked.ok() && count < 0) {
    checked = absl::InvalidArgumentError(absl::StrCat("count ", count, " is below 0"));
  }
  return Device(Op::kAllReduce, std::move(checked), Digest(count, plan), -1, [&] {
    if (options_.profile == NcclProfile::kFast) return FastAllReduce(parts, out, count);
    const std::vector<const char*> bytes(
        reinterpret_cast<const char* const*>(parts.data()),
        reinterpret_cast<const char* const*>(parts.data()) + parts.size());
    return ReduceAll(plan.parts_per_member, bytes, reinterpret_cast<char*>(out), count,
                     [&](absl::Span<const char* const> operands, char* to, int64_t elements) {
                       std::vector<const float*> floats;
                       for (const char* operand : operands) {
                         floats.push_back(reinterpret_cast<const float*>(operand));
                       }
                       device_.AddParts(floats, plan.program, reinterpret_cast<float*>(to),
                                        elements);
                     });
  });
}

absl::Status NcclCommunicator::AllReduceOr(uint32_t* data, int64_t count) {
  absl::Status checked;
  if (count < 0) checked = absl::InvalidArgumentError(absl::StrCat("count ", count, " is below 0"));
  return Device(Op::kAllReduceOr, std::move(checked), static_cast<uint64_t>(count), -1, [&] {
    const std::vector<int> one_each(size(), 1);
    const char* part = reinterpret_cast<const char*>(data);
    return ReduceAll(one_each, {&part, 1}, reinterpret_cast<char*>(data), count,
                     [&](absl::Span<const char* const> operands, char* to, int64_t elements) {
                       for (const char* operand : operands) {
                         if (operand == to) continue;  // this member's own, already there
                         device_.OrInto(reinterpret_cast<uint32_t*>(to),
                                        reinterpret_cast<const uint32_t*>(operand), elements);
                       }
                     });
  });
}

absl::Status NcclCommunicator::ReduceScatter(const ReducePlan& plan,
                                             absl::Span<const float* const> parts, float* out,
                                             absl::Span<const int64_t> counts) {
  absl::Status checked = CheckAddends(plan, parts);
  if (checked.ok()) checked = CheckCounts(*this, counts, "counts");
  const uint64_t digest = checked.ok() ? Digest(Digest(0, counts), plan) : 0;
  return Device(Op::kReduceScatter, std::move(checked), digest, -1, [&] {
    // NCCL's knows blocks of one size only.
    if (options_.profile == NcclProfile::kFast && AllEqual(counts)) {
      return FastReduceScatter(parts, out, counts[0]);
    }
    return ReduceRanges(plan, parts, out, counts);
  });
}

absl::Status NcclCommunicator::ReduceRanges(const ReducePlan& plan,
                                            absl::Span<const float* const> parts, float* out,
                                            absl::Span<const int64_t> counts) {
  const int64_t mine = counts[rank()];
  const int64_t own_begin = Sum(counts.subspan(0, rank()));
  const int64_t total = Sum(counts);
  // A part that `out` lies over, and not at this rank's range: its range is copied away first.
  const auto overlaps = [&](const float* part) {
    return part + own_begin != out && out < part + total && part < out + mine;
  };
  absl::StatusOr<char*> scratch = Scratch(TotalParts(plan) * Aligned(mine * 4));
  if (!scratch.ok()) return scratch.status();
  std::vector<const float*> operands;
  std::vector<Piece> pieces;
  char* to = *scratch;
  int64_t begin = 0;
  for (int r = 0; r < size(); ++r) {
    if (r != rank()) {
      for (const float* part : parts) pieces.push_back({part + begin, counts[r] * 4, r, true});
    }
    for (int p = 0; p < plan.parts_per_member[r]; ++p, to += Aligned(mine * 4)) {
      operands.push_back(reinterpret_cast<float*>(to));
      if (r != rank()) {
        pieces.push_back({to, mine * 4, r, false});
      } else if (overlaps(parts[p])) {
        device_.CopyRows(Row(parts[p] + begin, mine), Row(to, mine));
      } else {
        operands.back() = parts[p] + begin;
      }
    }
    begin += counts[r];
  }
  if (absl::Status status = Exchange(pieces); !status.ok()) return status;
  if (mine > 0) device_.AddParts(operands, plan.program, out, mine);
  return absl::OkStatus();
}

void NcclCommunicator::AddOwnParts(absl::Span<const float* const> parts, float* out,
                                   int64_t count) {
  if (parts.empty()) {
    device_.Zero(out, count * 4);
    return;
  }
  std::vector<int> program = {0};
  for (int p = 1; p < static_cast<int>(parts.size()); ++p) {
    program.insert(program.end(), {p, -1});
  }
  device_.AddParts(parts, program, out, count);
}

absl::Status NcclCommunicator::FastAllReduce(absl::Span<const float* const> parts, float* out,
                                             int64_t count) {
  if (count == 0) return absl::OkStatus();
  if (parts.size() != 1) AddOwnParts(parts, out, count);
  return group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
    return library.AllReduce(parts.size() == 1 ? parts[0] : out, out, static_cast<size_t>(count),
                             nccl::kFloat32, nccl::kSum, comm, device_.native_stream());
  });
}

absl::Status NcclCommunicator::FastReduceScatter(absl::Span<const float* const> parts, float* out,
                                                 int64_t count) {
  if (count == 0) return absl::OkStatus();
  const int64_t total = count * size();
  absl::StatusOr<char*> scratch = Scratch(total * 4);
  if (!scratch.ok()) return scratch.status();
  // Also one part is copied: `out` may lie over it in a way that NCCL doesn't take.
  AddOwnParts(parts, reinterpret_cast<float*>(*scratch), total);
  return group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
    return library.ReduceScatter(*scratch, out, static_cast<size_t>(count), nccl::kFloat32,
                                 nccl::kSum, comm, device_.native_stream());
  });
}

absl::Status NcclCommunicator::AllGather(const void* send, void* recv,
                                         absl::Span<const int64_t> bytes) {
  absl::Status checked = CheckCounts(*this, bytes, "bytes");
  const uint64_t digest = Digest(0, bytes);
  return Device(Op::kAllGather, std::move(checked), digest, -1,
                [&] { return GatherAll(send, recv, bytes); });
}

absl::Status NcclCommunicator::Gather(const void* send, void* recv, absl::Span<const int64_t> bytes,
                                      int root) {
  absl::Status checked = CheckCounts(*this, bytes, "bytes");
  if (checked.ok()) checked = CheckRank(*this, root, "root");
  const uint64_t digest = Digest(static_cast<uint64_t>(root), bytes);
  return Device(Op::kGather, std::move(checked), digest, -1, [&] {
    std::vector<Piece> pieces = {{send, bytes[rank()], root, true}};
    if (root == rank()) {
      char* to = static_cast<char*>(recv);
      if (to + Sum(bytes.subspan(0, root)) == send) pieces.clear();  // in place
      const bool in_place = pieces.empty();
      for (int r = 0; r < size(); ++r) {
        if (r != root || !in_place) pieces.push_back({to, bytes[r], r, false});
        to += bytes[r];
      }
    }
    return Exchange(pieces);
  });
}

absl::Status NcclCommunicator::AllToAll(const void* send, absl::Span<const int64_t> send_bytes,
                                        void* recv, absl::Span<const int64_t> recv_bytes) {
  absl::Status checked = CheckCounts(*this, send_bytes, "send_bytes");
  if (checked.ok()) checked = CheckCounts(*this, recv_bytes, "recv_bytes");
  if (checked.ok() && send_bytes[rank()] != recv_bytes[rank()]) {
    checked = absl::InvalidArgumentError(absl::StrCat("this rank sends itself ", send_bytes[rank()],
                                                      " bytes and expects ", recv_bytes[rank()]));
  }
  // Sizes differ between members: nothing to compare.
  return Device(Op::kAllToAll, std::move(checked), 0, -1, [&] {
    std::vector<Piece> pieces;
    const char* from = static_cast<const char*>(send);
    char* to = static_cast<char*>(recv);
    for (int r = 0; r < size(); ++r) {
      pieces.push_back({from, send_bytes[r], r, true});
      pieces.push_back({to, recv_bytes[r], r, false});
      from += send_bytes[r];
      to += recv_bytes[r];
    }
    return Exchange(pieces);
  });
}

absl::Status NcclCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  absl::Status checked = CheckRank(*this, root, "root");
  if (checked.ok() && bytes < 0) {
    checked = absl::InvalidArgumentError(absl::StrCat("bytes ", bytes, " is below 0"));
  }
  return Device(Op::kBroadcast, std::move(checked), Digest(0, {bytes, root}), -1, [&] {
    if (bytes == 0 || size() == 1) return absl::OkStatus();
    return group_->Enqueue([&](const nccl::Library& library, nccl::Comm* comm) {
      return library.Broadcast(data, data, static_cast<size_t>(bytes), nccl::kUint8, root, comm,
                               device_.native_stream());
    });
  });
}

}  // namespace phalanx::comm
