// Byte streams to the members of one group that live on other nodes. Implemented by comm/mpi.
#ifndef PHALANX_COMM_GROUP_REMOTE_STREAMS_H_
#define PHALANX_COMM_GROUP_REMOTE_STREAMS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx::comm {

// Nothing here blocks. One thread at a time, but for NotifyAbort and AbortNoted. `peer` is a rank
// of the group. Errors: UNAVAILABLE where the transport knows that the peer is gone.
class RemoteStreams {
 public:
  virtual ~RemoteStreams() = default;

  // Appends `head`, then `body`, to the stream to `peer`; returns how many of their bytes were
  // taken, 0 if the peer has to read first. What is taken is copied.
  virtual absl::StatusOr<int64_t> TryWrite(int peer, std::string_view head,
                                           std::string_view body) = 0;
  // Takes up to `bytes` from the stream from `peer`; 0 if none have come.
  virtual absl::StatusOr<int64_t> TryRead(int peer, void* data, int64_t bytes) = 0;
  // True once all that TryWrite took for `peer` has left this process. Until then it only moves
  // while this process calls here.
  virtual absl::StatusOr<bool> Flushed(int peer) = 0;
  // Tells every member on other nodes, as well as can be, that this group was aborted.
  virtual void NotifyAbort(std::string_view reason) = 0;
  // The reason, if a member on another node told us so.
  virtual std::optional<std::string> AbortNoted() = 0;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_REMOTE_STREAMS_H_
