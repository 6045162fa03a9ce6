#include "comm/group/group_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/group/arguments.h"

namespace phalanx::comm {

AbortScope::AbortScope(std::shared_ptr<AbortScope> parent, std::shared_ptr<Segment> segment,
                       std::shared_ptr<RemoteStreams> remote)
    : parent_(std::move(parent)), segment_(std::move(segment)), remote_(std::move(remote)) {}

void AbortScope::Register(const std::shared_ptr<AbortScope>& child) {
  if (child->parent_ == nullptr) return;
  std::lock_guard<std::mutex> lock(child->parent_->mutex_);
  auto& children = child->parent_->children_;
  children.erase(std::remove_if(children.begin(), children.end(),
                                [](const auto& weak) { return weak.expired(); }),
                 children.end());
  children.push_back(child);
}

void AbortScope::Abort(std::string_view reason) {
  segment_->Abort(reason);
  if (remote_ != nullptr) remote_->NotifyAbort(reason);
  std::vector<std::shared_ptr<AbortScope>> children;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& weak : children_) {
      if (auto child = weak.lock()) children.push_back(std::move(child));
    }
  }
  for (const auto& child : children) child->Abort(reason);
}

std::optional<std::string> AbortScope::Reason() {
  if (segment_->aborted()) return segment_->abort_reason();
  if (remote_ != nullptr) {
    if (std::optional<std::string> reason = remote_->AbortNoted(); reason.has_value()) {
      segment_->Abort(*reason);
      return reason;
    }
  }
  return parent_ == nullptr ? std::nullopt : parent_->Reason();
}

GroupCommunicator::GroupCommunicator(Spec spec)
    : fabric_(std::move(spec.fabric)),
      rank_(spec.rank),
      members_(std::move(spec.members)),
      timeout_(spec.timeout) {
  std::vector<int> node_index(members_.size(), -1);
  std::vector<int> ranks_here;
  std::vector<int> world_ranks;
  for (int r = 0; r < size(); ++r) {
    world_ranks.push_back(members_[r].world_rank);
    if (members_[r].node != members_[rank_].node) {
      one_node_ = false;
      continue;
    }
    node_index[r] = static_cast<int>(ranks_here.size());
    ranks_here.push_back(r);
  }
  if (!one_node_) remote_ = fabric_->OpenStreams(spec.context, world_ranks);
  scope_ = std::make_shared<AbortScope>(std::move(spec.parent), spec.segment, remote_);
  AbortScope::Register(scope_);
  shm_ = std::make_unique<ShmMember>(std::move(spec.segment), node_index[rank_],
                                     fabric_->wait_policy());
  shm_->set_callbacks([this, ranks_here](int index) { return Name(ranks_here[index]); },
                      [scope = scope_] { return scope->Reason(); });
  messenger_ = std::make_unique<Messenger>(rank_, std::move(node_index), shm_.get(), remote_.get(),
                                           [this](int r) { return Name(r); });
}

std::string GroupCommunicator::Name(int rank) const {
  const int world = members_[rank].world_rank;
  if (world == rank) return absl::StrCat("rank ", rank);
  return absl::StrCat("rank ", rank, " (world rank ", world, ")");
}

Call GroupCommunicator::Begin(Op op, uint64_t digest) {
  Call call;
  call.op = op;
  call.collective = op == Op::kSend || op == Op::kRecv ? collectives_.load() : ++collectives_;
  call.digest = digest;
  call.start = Clock::now();
  call.deadline = DeadlineAfter(call.start, timeout_);
  return call;
}

absl::Status GroupCommunicator::End(const Call& call, absl::Status status) {
  if (status.ok()) return status;
  const bool numbered = call.op != Op::kSend && call.op != Op::kRecv;
  const std::string text =
      absl::StrCat(Name(rank_), " of ", size(), ": ", OpName(call.op), " (",
                   numbered ? "" : "after ", "collective ", call.collective,
                   "): ", absl::IsAborted(status) ? "aborted: " : "", status.message());
  Abort(text);
  return absl::Status(status.code(), text);
}

void GroupCommunicator::Abort(std::string_view reason) { scope_->Abort(reason); }

absl::Status GroupCommunicator::AllReduce(const ReducePlan& plan,
                                          absl::Span<const float* const> parts, float* out,
                                          int64_t count) {
  const Call call = Begin(Op::kAllReduce, Digest(count, plan));
  absl::Status status = CheckParts(*this, plan, parts);
  if (status.ok() && count < 0) {
    status = absl::InvalidArgumentError(absl::StrCat("count ", count, " is below 0"));
  }
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  if (size() == 1) {
    reducer_.Run(plan.program, parts, out, count);
    return absl::OkStatus();
  }
  const Combine<float> combine = [&](absl::Span<const float* const> operands, float* to,
                                     int64_t n) { reducer_.Run(plan.program, operands, to, n); };
  return End(
      call, one_node()
                ? SlotAllReduce<float>(call, plan.parts_per_member, parts, out, count, combine)
                : MessageAllReduce<float>(call, plan.parts_per_member, parts, out, count, combine));
}

absl::Status GroupCommunicator::AllReduceOr(uint32_t* data, int64_t count) {
  const Call call = Begin(Op::kAllReduceOr, Digest(0, {count}));
  absl::Status status = shm_->CheckAbort();
  if (status.ok() && count < 0) {
    status = absl::InvalidArgumentError(absl::StrCat("count ", count, " is below 0"));
  }
  if (!status.ok()) return End(call, std::move(status));
  if (size() == 1) return absl::OkStatus();
  const Combine<uint32_t> combine = [](absl::Span<const uint32_t* const> operands, uint32_t* to,
                                       int64_t n) {
    std::memcpy(to, operands[0], n * sizeof(uint32_t));
    for (size_t i = 1; i < operands.size(); ++i) kernels::OrInto(to, operands[i], n);
  };
  const std::vector<int> one_each(size(), 1);
  const uint32_t* part = data;
  const absl::Span<const uint32_t* const> parts(&part, 1);
  return End(call, one_node()
                       ? SlotAllReduce<uint32_t>(call, one_each, parts, data, count, combine)
                       : MessageAllReduce<uint32_t>(call, one_each, parts, data, count, combine));
}

absl::Status GroupCommunicator::ReduceScatter(const ReducePlan& plan,
                                              absl::Span<const float* const> parts, float* out,
                                              absl::Span<const int64_t> counts) {
  const Call call = Begin(Op::kReduceScatter, Digest(Digest(0, plan), counts));
  absl::Status status = CheckParts(*this, plan, parts);
  if (status.ok()) status = CheckCounts(*this, counts, "counts");
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  if (size() == 1) {
    reducer_.Run(plan.program, parts, out, counts[0]);
    return absl::OkStatus();
  }
  return End(call, one_node() ? SlotReduceScatter(call, plan, parts, out, counts)
                              : MessageReduceScatter(call, plan, parts, out, counts));
}

absl::Status GroupCommunicator::GatherAny(const Call& call, const void* send, void* recv,
                                          absl::Span<const int64_t> bytes, int root) {
  absl::Status status = CheckCounts(*this, bytes, "bytes");
  if (status.ok() && root >= size()) status = CheckRank(*this, root, "root");
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return status;
  if (size() == 1) {
    if (bytes[0] > 0) std::memmove(recv, send, bytes[0]);
    return absl::OkStatus();
  }
  return one_node() ? SlotGather(call, send, recv, bytes, root)
                    : MessageGather(call, send, recv, bytes, root);
}

absl::Status GroupCommunicator::AllGather(const void* send, void* recv,
                                          absl::Span<const int64_t> bytes) {
  const Call call = Begin(Op::kAllGather, Digest(0, bytes));
  return End(call, GatherAny(call, send, recv, bytes, -1));
}

absl::Status GroupCommunicator::Gather(const void* send, void* recv,
                                       absl::Span<const int64_t> bytes, int root) {
  const Call call = Begin(Op::kGather, Digest(root, bytes));
  if (absl::Status status = CheckRank(*this, root, "root"); !status.ok()) {
    return End(call, std::move(status));
  }
  return End(call, GatherAny(call, send, recv, bytes, root));
}

absl::Status GroupCommunicator::AllToAll(const void* send, absl::Span<const int64_t> send_bytes,
                                         void* recv, absl::Span<const int64_t> recv_bytes) {
  const Call call = Begin(Op::kAllToAll, 0);
  absl::Status status = CheckCounts(*this, send_bytes, "send_bytes");
  if (status.ok()) status = CheckCounts(*this, recv_bytes, "recv_bytes");
  if (status.ok() && send_bytes[rank_] != recv_bytes[rank_]) {
    status = absl::InvalidArgumentError(absl::StrCat("this rank sends itself ", send_bytes[rank_],
                                                     " bytes and expects ", recv_bytes[rank_]));
  }
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  return End(call, one_node() ? SlotAllToAll(call, send, send_bytes, recv, recv_bytes)
                              : MessageAllToAll(call, send, send_bytes, recv, recv_bytes));
}

absl::Status GroupCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  const Call call = Begin(Op::kBroadcast, Digest(0, {bytes, root}));
  absl::Status status = CheckRank(*this, root, "root");
  if (status.ok() && bytes < 0) {
    status = absl::InvalidArgumentError(absl::StrCat("bytes ", bytes, " is below 0"));
  }
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  if (size() == 1) return absl::OkStatus();
  return End(call, one_node() ? SlotBroadcast(call, data, bytes, root)
                              : MessageBroadcast(call, data, bytes, root));
}

absl::Status GroupCommunicator::BroadcastMessage(std::string& message, int root) {
  Call call = Begin(Op::kBroadcastMessage, 0);
  absl::Status status = CheckRank(*this, root, "root");
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  if (rank_ != root) {
    call.deadline = Clock::time_point::max();
    const Incoming receive{root, nullptr, 0, &message};
    return End(call, messenger_->Exchange(call, Channel::kMessage, 0, {}, {&receive, 1}));
  }
  std::vector<Outgoing> sends;
  for (int r = 0; r < size(); ++r) {
    if (r != root) sends.push_back({r, message.data(), static_cast<int64_t>(message.size())});
  }
  return End(call, messenger_->Exchange(call, Channel::kMessage, 0, sends, {}));
}

absl::Status GroupCommunicator::Send(const void* data, int64_t bytes, int peer, int tag) {
  const Call call = Begin(Op::kSend, 0);
  absl::Status status = CheckRank(*this, peer, "peer");
  if (status.ok() && (bytes < 0 || tag < 0)) {
    status = absl::InvalidArgumentError(
        absl::StrCat("bytes ", bytes, ", tag ", tag, "; expected 0 or more"));
  }
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  const Outgoing send{peer, data, bytes};
  return End(call, messenger_->Exchange(call, Channel::kUser, tag, {&send, 1}, {}));
}

absl::Status GroupCommunicator::Recv(void* data, int64_t bytes, int peer, int tag) {
  const Call call = Begin(Op::kRecv, 0);
  absl::Status status = CheckRank(*this, peer, "peer");
  if (status.ok() && (bytes < 0 || tag < 0)) {
    status = absl::InvalidArgumentError(
        absl::StrCat("bytes ", bytes, ", tag ", tag, "; expected 0 or more"));
  }
  if (status.ok()) status = shm_->CheckAbort();
  if (!status.ok()) return End(call, std::move(status));
  const Incoming receive{peer, data, bytes};
  return End(call, messenger_->Exchange(call, Channel::kUser, tag, {}, {&receive, 1}));
}

absl::Status GroupCommunicator::Barrier() {
  const Call call = Begin(Op::kBarrier, 0);
  if (absl::Status status = shm_->CheckAbort(); !status.ok()) return End(call, std::move(status));
  return End(call, one_node() ? shm_->Phase(call) : MessageBarrier(call));
}

absl::StatusOr<std::unique_ptr<Communicator>> GroupCommunicator::Split(int color, int key) {
  absl::StatusOr<std::unique_ptr<Communicator>> group =
      Regroup(color, key, members_[rank_].node, true);
  if (group.ok() && color >= 0 && *group == nullptr) {
    const std::string text = absl::StrCat(
        Name(rank_), " of ", size(), ": Split (collective ", collective_number(),
        "): the members of a node could not map a shared memory segment; see the limits on memory "
        "and open files of each rank");
    Abort(text);
    return absl::ResourceExhaustedError(text);
  }
  return group;
}

absl::StatusOr<std::unique_ptr<Communicator>> GroupCommunicator::Regroup(int color, int key,
                                                                         int node, bool enclosed) {
  const Call call = Begin(Op::kSplit, 0);
  // Round 1: who joins what.
  struct Entry {
    int32_t color;
    int32_t key;
    int32_t node;
    uint32_t next_context;
  };
  const Entry mine{color, key, node, fabric_->next_context()};
  std::vector<Entry> entries(size());
  const std::vector<int64_t> entry_bytes(size(), sizeof(Entry));
  if (absl::Status status = GatherAny(call, &mine, entries.data(), entry_bytes, -1); !status.ok()) {
    return End(call, std::move(status));
  }
  // Contexts: above all that any member has seen, one for every color.
  std::vector<int> colors;
  uint32_t context = 0;
  for (const Entry& entry : entries) {
    if (entry.color >= 0) colors.push_back(entry.color);
    context = std::max(context, entry.next_context);
  }
  std::sort(colors.begin(), colors.end());
  colors.erase(std::unique(colors.begin(), colors.end()), colors.end());
  fabric_->UseContextsBelow(context + static_cast<uint32_t>(colors.size()));
  context +=
      static_cast<uint32_t>(std::lower_bound(colors.begin(), colors.end(), color) - colors.begin());
  if (color >= 0 && !fabric_->ContextFits(context)) {
    return End(call, absl::ResourceExhaustedError(absl::StrCat(
                         "this process has made ", context,
                         " groups, more than MPI has tags for; make groups once, at the start")));
  }
  std::vector<int> group;  // ranks of this group, in the new order
  for (int r = 0; r < size(); ++r) {
    if (color >= 0 && entries[r].color == color) group.push_back(r);
  }
  std::stable_sort(group.begin(), group.end(),
                   [&](int a, int b) { return entries[a].key < entries[b].key; });
  std::vector<int> here;
  for (const int r : group) {
    if (entries[r].node == node) here.push_back(r);
  }

  // Round 2: the first member on each node makes the segment and announces it.
  Fabric::Offered offered;
  std::shared_ptr<Segment> segment;
  SegmentTicket ticket;
  if (!here.empty() && here[0] == rank_) {
    absl::StatusOr<Fabric::Offered> made = fabric_->Offer(static_cast<int>(here.size()));
    if (made.ok()) {
      offered = *std::move(made);
      segment = offered.segment;
      ticket = offered.ticket;
    }
  }
  std::vector<SegmentTicket> tickets(size());
  const std::vector<int64_t> ticket_bytes(size(), sizeof(SegmentTicket));
  absl::Status status = GatherAny(call, &ticket, tickets.data(), ticket_bytes, -1);
  if (status.ok() && !here.empty() && here[0] != rank_ && tickets[here[0]].pid != 0) {
    absl::StatusOr<std::shared_ptr<Segment>> accepted = fabric_->Accept(tickets[here[0]]);
    if (accepted.ok()) segment = *std::move(accepted);
  }

  // Round 3: has everybody got it? Then nobody else needs to find it.
  const int32_t has_segment = segment != nullptr ? 1 : 0;
  std::vector<int32_t> have_segment(size());
  const std::vector<int64_t> flag_bytes(size(), sizeof(int32_t));
  if (status.ok()) {
    status = GatherAny(call, &has_segment, have_segment.data(), flag_bytes, -1);
  }
  if (offered.segment != nullptr) fabric_->Withdraw(offered);
  if (!status.ok()) return End(call, std::move(status));
  if (color < 0) return nullptr;
  for (const int r : group) {
    if (have_segment[r] == 0) return nullptr;
  }

  Spec spec;
  spec.fabric = fabric_;
  spec.segment = std::move(segment);
  spec.context = context;
  if (enclosed) spec.parent = scope_;
  spec.timeout = timeout_;
  for (const int r : group) {
    if (r == rank_) spec.rank = static_cast<int>(spec.members.size());
    spec.members.push_back({members_[r].world_rank, entries[r].node});
  }
  return std::make_unique<GroupCommunicator>(std::move(spec));
}

}  // namespace phalanx::comm
