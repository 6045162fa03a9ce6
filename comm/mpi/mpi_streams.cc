#include "comm/mpi/mpi_streams.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::comm {

void MpiEngine::Adopt(MPI_Request request, std::unique_ptr<std::vector<char>> buffer) {
  for (auto it = adopted_.begin(); it != adopted_.end();) {
    int done = 0;
    const int code = MPI_Test(&it->request, &done, MPI_STATUS_IGNORE);
    it = code == MPI_SUCCESS && done != 0 ? adopted_.erase(it) : std::next(it);
  }
  adopted_.push_back({request, std::move(buffer)});
}

void MpiEngine::SendAbortNote(int world_rank, uint32_t context, std::string_view reason) {
  auto buffer = std::make_unique<std::vector<char>>(sizeof(context) + reason.size());
  std::memcpy(buffer->data(), &context, sizeof(context));
  std::memcpy(buffer->data() + sizeof(context), reason.data(), reason.size());
  std::lock_guard<std::mutex> lock(mutex_);
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Isend(buffer->data(), static_cast<int>(buffer->size()), MPI_BYTE, world_rank,
                             kAbortTag, MPI_COMM_WORLD, &request);
  if (code == MPI_SUCCESS) Adopt(request, std::move(buffer));
}

std::optional<std::string> MpiEngine::AbortNote(uint32_t context) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Clock::time_point now = Clock::now();
  if (now - last_look_ >= std::chrono::milliseconds(10)) {
    last_look_ = now;
    while (true) {
      int found = 0;
      MPI_Message message;
      MPI_Status status;
      int code = MPI_Improbe(MPI_ANY_SOURCE, kAbortTag, MPI_COMM_WORLD, &found, &message, &status);
      if (code != MPI_SUCCESS || found == 0) break;
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      // Notes are short enough to be here whole, so this receive does not wait for its sender.
      std::string note(bytes, '\0');
      code = MPI_Mrecv(note.data(), bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE);
      uint32_t of = 0;
      if (code != MPI_SUCCESS || note.size() < sizeof(of)) continue;
      std::memcpy(&of, note.data(), sizeof(of));
      notes_.emplace(of, note.substr(sizeof(of)));
    }
  }
  const auto it = notes_.find(context);
  if (it == notes_.end()) return std::nullopt;
  return it->second;
}

MpiStreams::MpiStreams(std::shared_ptr<MpiEngine> engine, uint32_t context,
                       std::vector<int> world_ranks, int own_world_rank)
    : engine_(std::move(engine)),
      context_(context),
      tag_(static_cast<int>(context) + 1),
      world_ranks_(std::move(world_ranks)),
      own_world_rank_(own_world_rank),
      peers_(world_ranks_.size()) {}

MpiStreams::~MpiStreams() {
  // After a call that failed, messages may be under way in both directions; MPI must not be left
  // with a pointer to memory that is gone.
  std::lock_guard<std::mutex> lock(engine_->mutex());
  int finalized = 0;
  MPI_Finalized(&finalized);
  for (Peer& p : peers_) {
    if (finalized != 0) break;
    for (Sending& sending : p.sending) {
      engine_->Adopt(sending.request, std::move(sending.buffer));
    }
    if (p.receiving != MPI_REQUEST_NULL) {
      auto buffer = std::make_unique<std::vector<char>>(std::move(p.incoming));
      engine_->Adopt(p.receiving, std::move(buffer));
    }
  }
}

absl::Status MpiStreams::Error(int peer, const char* what, int code) const {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(
      absl::StrCat("world rank ", world_ranks_[peer], ": ", what, ": ", std::string(text, length)));
}

absl::Status MpiStreams::Reap(int peer) {
  Peer& p = peers_[peer];
  while (!p.sending.empty()) {
    int done = 0;
    const int code = MPI_Test(&p.sending.front().request, &done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return Error(peer, "sending", code);
    if (done == 0) break;
    p.spare = std::move(p.sending.front().buffer);
    p.sending.pop_front();
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> MpiStreams::TryWrite(int peer, std::string_view head,
                                             std::string_view body) {
  std::lock_guard<std::mutex> lock(engine_->mutex());
  Peer& p = peers_[peer];
  if (absl::Status status = Reap(peer); !status.ok()) return status;
  if (p.sending.size() >= kMaxInFlight) return 0;
  const int64_t from_head = std::min<int64_t>(kChunkBytes, static_cast<int64_t>(head.size()));
  const int64_t from_body =
      std::min<int64_t>(kChunkBytes - from_head, static_cast<int64_t>(body.size()));
  const int64_t bytes = from_head + from_body;
  if (bytes == 0) return 0;
  std::unique_ptr<std::vector<char>> buffer = std::move(p.spare);
  if (buffer == nullptr) buffer = std::make_unique<std::vector<char>>();
  if (static_cast<int64_t>(buffer->size()) < bytes) buffer->resize(bytes);
  if (from_head > 0) std::memcpy(buffer->data(), head.data(), from_head);
  if (from_body > 0) std::memcpy(buffer->data() + from_head, body.data(), from_body);
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Isend(buffer->data(), static_cast<int>(bytes), MPI_BYTE, world_ranks_[peer],
                             tag_, MPI_COMM_WORLD, &request);
  if (code != MPI_SUCCESS) return Error(peer, "sending", code);
  p.sending.push_back({request, std::move(buffer)});
  return bytes;
}

absl::StatusOr<int64_t> MpiStreams::TryRead(int peer, void* data, int64_t bytes) {
  Peer& p = peers_[peer];
  if (p.receiving == MPI_REQUEST_NULL && p.read_at == p.incoming.size()) {
    std::lock_guard<std::mutex> lock(engine_->mutex());
    int found = 0;
    MPI_Message message;
    MPI_Status status;
    int code = MPI_Improbe(world_ranks_[peer], tag_, MPI_COMM_WORLD, &found, &message, &status);
    if (code != MPI_SUCCESS) return Error(peer, "receiving", code);
    if (found == 0) return 0;
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    p.incoming.resize(count);
    p.read_at = 0;
    code = MPI_Imrecv(p.incoming.data(), count, MPI_BYTE, &message, &p.receiving);
    if (code != MPI_SUCCESS) return Error(peer, "receiving", code);
  }
  if (p.receiving != MPI_REQUEST_NULL) {
    std::lock_guard<std::mutex> lock(engine_->mutex());
    int done = 0;
    const int code = MPI_Test(&p.receiving, &done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return Error(peer, "receiving", code);
    if (done == 0) return 0;
    p.receiving = MPI_REQUEST_NULL;
  }
  const int64_t n = std::min(bytes, static_cast<int64_t>(p.incoming.size() - p.read_at));
  if (n > 0) std::memcpy(data, p.incoming.data() + p.read_at, n);
  p.read_at += n;
  return n;
}

absl::StatusOr<bool> MpiStreams::Flushed(int peer) {
  std::lock_guard<std::mutex> lock(engine_->mutex());
  if (absl::Status status = Reap(peer); !status.ok()) return status;
  return peers_[peer].sending.empty();
}

void MpiStreams::NotifyAbort(std::string_view reason) {
  if (notified_.exchange(true)) return;
  for (const int world_rank : world_ranks_) {
    if (world_rank != own_world_rank_) engine_->SendAbortNote(world_rank, context_, reason);
  }
}

std::optional<std::string> MpiStreams::AbortNoted() { return engine_->AbortNote(context_); }

}  // namespace phalanx::comm
