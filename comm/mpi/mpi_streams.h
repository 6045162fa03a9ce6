// Byte streams over MPI point-to-point messages. Internal to comm/mpi.
#ifndef PHALANX_COMM_MPI_MPI_STREAMS_H_
#define PHALANX_COMM_MPI_MPI_STREAMS_H_

#include <mpi.h>

#include <atomic>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/call.h"
#include "comm/group/remote_streams.h"

namespace phalanx::comm {

// What all groups of the process share: MPI itself, called by one thread at a time, and the notes
// of aborts that have come from other nodes.
class MpiEngine {
 public:
  // `tag_bound`: the largest tag that this MPI takes. Precondition: MPI is initialised and
  // MPI_COMM_WORLD returns errors.
  explicit MpiEngine(int tag_bound) : tag_bound_(tag_bound) {}

  // Context c's bytes travel with tag c + 1; notes of aborts with tag 0.
  static constexpr int kAbortTag = 0;
  bool ContextFits(uint32_t context) const {
    return context < static_cast<uint32_t>(tag_bound_) - 1;
  }

  std::mutex& mutex() { return mutex_; }
  // Sends a note to `world_rank`, as well as can be. Takes the mutex.
  void SendAbortNote(int world_rank, uint32_t context, std::string_view reason);
  // The reason, if a note for `context` has come. Takes the mutex; asks MPI at most every 10 ms.
  std::optional<std::string> AbortNote(uint32_t context);
  // Keeps a buffer that MPI may still read. The mutex is held.
  void Adopt(MPI_Request request, std::unique_ptr<std::vector<char>> buffer);

 private:
  struct Pending {
    MPI_Request request;
    std::unique_ptr<std::vector<char>> buffer;
  };
  const int tag_bound_;
  std::mutex mutex_;
  std::list<Pending> adopted_;
  std::map<uint32_t, std::string> notes_;
  Clock::time_point last_look_;
};

class MpiStreams : public RemoteStreams {
 public:
  MpiStreams(std::shared_ptr<MpiEngine> engine, uint32_t context, std::vector<int> world_ranks,
             int own_world_rank);
  ~MpiStreams() override;

  absl::StatusOr<int64_t> TryWrite(int peer, std::string_view head, std::string_view body) override;
  absl::StatusOr<int64_t> TryRead(int peer, void* data, int64_t bytes) override;
  absl::StatusOr<bool> Flushed(int peer) override;
  void NotifyAbort(std::string_view reason) override;
  std::optional<std::string> AbortNoted() override;

 private:
  // One MPI message carries up to this much of a stream, and this many are under way to a peer.
  static constexpr int64_t kChunkBytes = 256 << 10;
  static constexpr size_t kMaxInFlight = 4;

  struct Sending {
    MPI_Request request;
    std::unique_ptr<std::vector<char>> buffer;
  };
  struct Peer {
    std::deque<Sending> sending;
    std::unique_ptr<std::vector<char>> spare;
    // The message being read: [read_at, incoming.size()) is still to be handed out once
    // `receiving` is null.
    MPI_Request receiving = MPI_REQUEST_NULL;
    std::vector<char> incoming;
    size_t read_at = 0;
  };

  absl::Status Reap(int peer);
  absl::Status Error(int peer, const char* what, int code) const;

  const std::shared_ptr<MpiEngine> engine_;
  const uint32_t context_;
  const int tag_;
  const std::vector<int> world_ranks_;
  const int own_world_rank_;
  std::vector<Peer> peers_;
  std::atomic<bool> notified_{false};
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_MPI_MPI_STREAMS_H_
