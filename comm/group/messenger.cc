#include "comm/group/messenger.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/shm/futex.h"

namespace phalanx::comm {
namespace {

// What a peer's stream may announce at most; more is not a frame of ours.
constexpr uint64_t kMaxFrameBytes = uint64_t{1} << 46;
// Between looks at a remote peer: an eighth of the time waited so far, within these bounds. MPI
// offers nothing to sleep on.
constexpr std::chrono::microseconds kShortestNap{20};
constexpr std::chrono::microseconds kLongestNap{10000};

}  // namespace

Messenger::Messenger(int rank, std::vector<int> node_index, ShmMember* member,
                     RemoteStreams* remote, NameFn name)
    : rank_(rank),
      node_index_(std::move(node_index)),
      member_(member),
      remote_(remote),
      name_(std::move(name)),
      peers_(node_index_.size()) {}

absl::StatusOr<int64_t> Messenger::Write(int peer, std::string_view head, std::string_view body) {
  if (node_index_[peer] < 0) return remote_->TryWrite(peer, head, body);
  int64_t n = 0;
  if (!head.empty()) n = member_->TryWrite(node_index_[peer], head.data(), head.size());
  if (n == static_cast<int64_t>(head.size()) && !body.empty()) {
    n += member_->TryWrite(node_index_[peer], body.data(), body.size());
  }
  return n;
}

absl::StatusOr<int64_t> Messenger::Read(int peer, void* data, int64_t bytes) {
  if (node_index_[peer] < 0) return remote_->TryRead(peer, data, bytes);
  return member_->TryRead(node_index_[peer], data, bytes);
}

absl::StatusOr<bool> Messenger::Push(int peer, const Call& call, Channel channel, int tag) {
  Peer& p = peers_[peer];
  bool moved = false;
  while (p.out_next < p.out.size()) {
    const Outgoing& send = p.out[p.out_next];
    FrameHeader header;
    header.channel_and_op = static_cast<uint32_t>(channel) | (static_cast<uint32_t>(call.op) << 8);
    header.tag = tag;
    header.collective = call.collective;
    header.bytes = static_cast<uint64_t>(send.bytes);
    std::string_view head(reinterpret_cast<const char*>(&header), sizeof(header));
    std::string_view body(static_cast<const char*>(send.data), send.bytes);
    const int64_t head_bytes = sizeof(header);
    head.remove_prefix(std::min(p.out_offset, head_bytes));
    body.remove_prefix(std::max<int64_t>(0, p.out_offset - head_bytes));
    absl::StatusOr<int64_t> n = Write(peer, head, body);
    if (!n.ok()) return n.status();
    if (*n == 0) return moved;
    moved = true;
    p.out_offset += *n;
    if (p.out_offset == head_bytes + send.bytes) {
      ++p.out_next;
      p.out_offset = 0;
    }
  }
  return moved;
}

absl::Status Messenger::CheckFrame(int peer, const FrameHeader& header, const Incoming& to,
                                   const Call& call, Channel channel) const {
  const Op op = static_cast<Op>(header.channel_and_op >> 8);
  if (channel != Channel::kUser && (header.collective != call.collective || op != call.op)) {
    return absl::InternalError(
        absl::StrCat(Name(peer), " called ", OpName(op), " as its collective ", header.collective,
                     "; members of a group must call the same collectives in the same order"));
  }
  if (to.message == nullptr && header.bytes != static_cast<uint64_t>(to.bytes)) {
    return absl::InternalError(absl::StrCat(Name(peer), " sent ", header.bytes, " bytes, expected ",
                                            to.bytes,
                                            "; sender and receiver must agree on the size"));
  }
  return absl::OkStatus();
}

absl::Status Messenger::MatchUnexpected(int peer, const Call& call, Channel channel, int tag) {
  Peer& p = peers_[peer];
  if (p.open == 0) return absl::OkStatus();
  for (auto it = p.unexpected.begin(); it != p.unexpected.end() && p.open > 0;) {
    if ((it->header.channel_and_op & 0xff) != static_cast<uint32_t>(channel) ||
        it->header.tag != tag) {
      ++it;
      continue;
    }
    // In order: a later one must not overtake one that is still coming.
    if (!it->complete) return absl::OkStatus();
    for (Posted& posted : p.posted) {
      if (posted.done || posted.taken) continue;
      if (absl::Status status = CheckFrame(peer, it->header, posted.to, call, channel);
          !status.ok()) {
        return status;
      }
      if (posted.to.message != nullptr) {
        *posted.to.message = std::move(it->payload);
      } else if (posted.to.bytes > 0) {
        std::memcpy(posted.to.data, it->payload.data(), posted.to.bytes);
      }
      posted.done = true;
      --p.open;
      break;
    }
    it = p.unexpected.erase(it);
  }
  return absl::OkStatus();
}

absl::Status Messenger::BeginPayload(int peer, const Call& call, Channel channel, int tag) {
  Peer& p = peers_[peer];
  const uint32_t frame_channel = p.header.channel_and_op & 0xff;
  if (frame_channel < 1 || frame_channel > 3 || p.header.bytes > kMaxFrameBytes) {
    return absl::InternalError(
        absl::StrCat(Name(peer), " sent bytes that are no frame; the stream is damaged"));
  }
  p.payload_got = 0;
  p.posted_index = -1;
  p.message = nullptr;
  p.payload = nullptr;
  if (frame_channel == static_cast<uint32_t>(channel) && p.header.tag == tag) {
    for (size_t i = 0; i < p.posted.size(); ++i) {
      Posted& posted = p.posted[i];
      if (posted.done || posted.taken) continue;
      if (absl::Status status = CheckFrame(peer, p.header, posted.to, call, channel);
          !status.ok()) {
        return status;
      }
      posted.taken = true;
      p.posted_index = static_cast<int>(i);
      if (posted.to.message != nullptr) {
        posted.to.message->resize(p.header.bytes);
        p.payload = posted.to.message->data();
      } else {
        p.payload = static_cast<char*>(posted.to.data);
      }
      return absl::OkStatus();
    }
  }
  p.unexpected.emplace_back();
  p.message = &p.unexpected.back();
  p.message->header = p.header;
  p.message->payload.resize(p.header.bytes);
  p.payload = p.message->payload.data();
  return absl::OkStatus();
}

absl::Status Messenger::FinishPayload(int peer, const Call& call, Channel channel, int tag) {
  Peer& p = peers_[peer];
  p.header_got = 0;
  if (p.posted_index >= 0) {
    p.posted[p.posted_index].done = true;
    --p.open;
    p.posted_index = -1;
    return absl::OkStatus();
  }
  p.message->complete = true;
  p.message = nullptr;
  return MatchUnexpected(peer, call, channel, tag);
}

absl::StatusOr<bool> Messenger::Pull(int peer, const Call& call, Channel channel, int tag,
                                     bool everything) {
  Peer& p = peers_[peer];
  bool moved = false;
  while (everything || p.open > 0) {
    if (p.header_got < static_cast<int64_t>(sizeof(p.header))) {
      absl::StatusOr<int64_t> n = Read(peer, reinterpret_cast<char*>(&p.header) + p.header_got,
                                       sizeof(p.header) - p.header_got);
      if (!n.ok()) return n.status();
      if (*n == 0) return moved;
      moved = true;
      p.header_got += *n;
      if (p.header_got < static_cast<int64_t>(sizeof(p.header))) continue;
      if (absl::Status status = BeginPayload(peer, call, channel, tag); !status.ok()) {
        return status;
      }
    }
    const int64_t missing = static_cast<int64_t>(p.header.bytes) - p.payload_got;
    if (missing > 0) {
      absl::StatusOr<int64_t> n = Read(peer, p.payload + p.payload_got, missing);
      if (!n.ok()) return n.status();
      if (*n == 0) return moved;
      moved = true;
      p.payload_got += *n;
    }
    if (p.payload_got == static_cast<int64_t>(p.header.bytes)) {
      if (absl::Status status = FinishPayload(peer, call, channel, tag); !status.ok()) {
        return status;
      }
    }
  }
  return moved;
}

absl::StatusOr<bool> Messenger::Step(const Call& call, Channel channel, int tag, bool look_at_all,
                                     bool* done) {
  bool moved = false;
  bool blocked_writing = false;
  *done = true;
  for (size_t i = 0; i < peers_.size(); ++i) {
    const int peer = static_cast<int>(i);
    Peer& p = peers_[i];
    if (p.out_next < p.out.size()) {
      absl::StatusOr<bool> pushed = Push(peer, call, channel, tag);
      if (!pushed.ok()) return pushed.status();
      moved |= *pushed;
    }
    if (p.out_next < p.out.size()) {
      blocked_writing = true;
      *done = false;
    } else if (!p.out.empty() && node_index_[i] < 0) {
      absl::StatusOr<bool> flushed = remote_->Flushed(peer);
      if (!flushed.ok()) return flushed.status();
      p.flushed = *flushed;
      if (!p.flushed) {
        blocked_writing = true;
        *done = false;
      }
    }
    if (p.open > 0) {
      absl::StatusOr<bool> pulled = Pull(peer, call, channel, tag, false);
      if (!pulled.ok()) return pulled.status();
      moved |= *pulled;
      if (p.open > 0) *done = false;
    }
  }
  // Members that send to each other before any receives must not wait for each other: take in what
  // has come. Who only receives does so, too: the member that it waits for may wait for a third
  // one, whose messages to this one fill their ring. Remote peers cost more to look at.
  if (!*done && !moved) {
    for (size_t i = 0; i < peers_.size(); ++i) {
      if (static_cast<int>(i) == rank_) continue;
      if (node_index_[i] < 0 && !blocked_writing && !look_at_all) continue;
      absl::StatusOr<bool> pulled = Pull(static_cast<int>(i), call, channel, tag, true);
      if (!pulled.ok()) return pulled.status();
      moved |= *pulled;
    }
  }
  return moved;
}

std::string Messenger::Missing() const {
  std::string text;
  for (size_t i = 0; i < peers_.size(); ++i) {
    const Peer& p = peers_[i];
    const char* what = nullptr;
    if (p.open > 0) {
      what = " has not sent";
    } else if (!p.out.empty()) {
      const bool sent = p.out_next == p.out.size();
      if (sent && (node_index_[i] >= 0 || p.flushed)) continue;
      what = " has not received";
    } else {
      continue;
    }
    const std::string where = node_index_[i] >= 0 ? member_->Whereabouts(node_index_[i]) : "";
    absl::StrAppend(&text, text.empty() ? "" : ", ", Name(static_cast<int>(i)), what, where);
  }
  return text;
}

absl::Status Messenger::CheckEnds(const Call& call) {
  if (absl::Status status = member_->CheckAbort(); !status.ok()) return status;
  for (size_t i = 0; i < peers_.size(); ++i) {
    const Peer& p = peers_[i];
    const bool waited_for = p.open > 0 || p.out_next < p.out.size();
    if (waited_for && node_index_[i] >= 0 && static_cast<int>(i) != rank_ &&
        member_->departed(node_index_[i])) {
      return absl::UnavailableError(
          absl::StrCat(Name(static_cast<int>(i)), " left the group before it ",
                       p.open > 0 ? "sent" : "received", member_->Whereabouts(node_index_[i])));
    }
  }
  if (absl::Status status = member_->CheckLife(); !status.ok()) return status;
  const Clock::time_point now = Clock::now();
  if (now >= call.deadline) {
    return absl::DeadlineExceededError(absl::StrCat(
        "waited ",
        absl::FormatDuration(
            absl::FromChrono(std::chrono::round<std::chrono::milliseconds>(now - call.start))),
        ": ", Missing()));
  }
  return absl::OkStatus();
}

absl::Status Messenger::Exchange(const Call& call, Channel channel, int tag,
                                 absl::Span<const Outgoing> sends,
                                 absl::Span<const Incoming> receives) {
  for (Peer& p : peers_) {
    p.out.clear();
    p.out_next = 0;
    p.flushed = false;
    p.posted.clear();
    p.open = 0;
  }
  for (const Incoming& receive : receives) {
    Peer& p = peers_[receive.peer];
    p.posted.push_back({.to = receive});
    ++p.open;
  }
  for (const Outgoing& send : sends) {
    Peer& p = peers_[send.peer];
    if (send.peer != rank_) {
      p.out.push_back(send);
      continue;
    }
    Message& message = p.unexpected.emplace_back();
    message.header = {static_cast<uint32_t>(channel) | (static_cast<uint32_t>(call.op) << 8), tag,
                      call.collective, static_cast<uint64_t>(send.bytes)};
    message.payload.assign(static_cast<const char*>(send.data), send.bytes);
    message.complete = true;
  }
  bool remote = false;
  for (size_t i = 0; i < peers_.size(); ++i) {
    remote |= node_index_[i] < 0 && (peers_[i].open > 0 || !peers_[i].out.empty());
    if (absl::Status status = MatchUnexpected(static_cast<int>(i), call, channel, tag);
        !status.ok()) {
      return status;
    }
  }

  Clock::time_point waiting_since;
  int idle_turns = 0;
  while (true) {
    bool done = false;
    absl::StatusOr<bool> moved = Step(call, channel, tag, /*look_at_all=*/false, &done);
    if (!moved.ok()) return moved.status();
    if (done) return absl::OkStatus();
    if (*moved) {
      idle_turns = 0;
      continue;
    }
    if (idle_turns == 0) waiting_since = Clock::now();
    // A look at a remote peer costs about as much as fifty empty turns.
    const int turn_cost = remote ? 50 : 1;
    if (++idle_turns * turn_cost <= member_->policy().spin_turns) {
      SpinPause();
      continue;
    }
    const uint32_t ticket = member_->PrepareSleep();
    // Once announced, look at everything again; first at whether a peer left, so that Step() sees
    // all that it wrote before it did.
    absl::Status ends = CheckEnds(call);
    moved = Step(call, channel, tag, /*look_at_all=*/true, &done);
    if (moved.ok() && !*moved && !done && ends.ok()) {
      std::chrono::nanoseconds nap = ShmMember::kTick;
      const Clock::time_point now = Clock::now();
      if (remote) {
        nap = std::clamp<std::chrono::nanoseconds>((now - waiting_since) / 8, kShortestNap,
                                                   kLongestNap);
      }
      nap = std::min<std::chrono::nanoseconds>(nap, call.deadline - now);
      member_->Sleep(ticket, nap);
    }
    member_->FinishSleep();
    if (!moved.ok()) return moved.status();
    if (done) return absl::OkStatus();
    if (*moved) {
      idle_turns = 0;
    } else if (!ends.ok()) {
      return ends;
    }
  }
}

}  // namespace phalanx::comm
