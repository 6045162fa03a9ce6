// Messages between the members of one group: frames over byte streams, rings of the shared segment
// to members on this node and RemoteStreams to the others.
//
// A frame is a header and its payload. Frames of one (sender, receiver) travel in order; the
// receiver sorts them by channel and tag, and keeps what nobody has asked for yet.
#ifndef PHALANX_COMM_GROUP_MESSENGER_H_
#define PHALANX_COMM_GROUP_MESSENGER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/call.h"
#include "comm/group/remote_streams.h"
#include "comm/shm/member.h"

namespace phalanx::comm {

enum class Channel : uint32_t { kCollective = 1, kMessage = 2, kUser = 3 };

struct Outgoing {
  int peer;
  const void* data;
  int64_t bytes;
};

// Receives into `data`, exactly `bytes`; or, if `message` is set, any size into that.
struct Incoming {
  int peer;
  void* data;
  int64_t bytes;
  std::string* message = nullptr;
};

class Messenger {
 public:
  using NameFn = std::function<std::string(int rank)>;

  // `node_index[r]`: rank r's place in `member`'s segment, -1 if it is on another node. `remote`
  // may be null if no rank is. Both outlive the messenger. `name`: how a rank is called in
  // messages.
  Messenger(int rank, std::vector<int> node_index, ShmMember* member, RemoteStreams* remote,
            NameFn name);

  // Sends and receives all of these, together; frames to or from one peer in the order given.
  // `ignore_deadline`: waits without limit but for aborts and deaths. Errors as of Communicator's
  // calls. After an error the buffers are not touched any more, and neither is the messenger.
  absl::Status Exchange(const Call& call, Channel channel, int tag,
                        absl::Span<const Outgoing> sends, absl::Span<const Incoming> receives);

 private:
  struct FrameHeader {
    uint32_t channel_and_op;  // channel | op << 8
    int32_t tag;
    uint64_t collective;
    uint64_t bytes;
  };
  struct Message {  // one that came before it was asked for
    FrameHeader header;
    std::string payload;
    bool complete = false;
  };
  struct Posted {  // one that is asked for
    Incoming to;
    bool taken = false;  // a frame goes to it
    bool done = false;
  };
  struct Peer {
    // Out: the frames of the current call.
    std::vector<Outgoing> out;
    size_t out_next = 0;
    int64_t out_offset = 0;  // bytes of frame out_next that were taken, its header included
    bool flushed = false;    // all of `out` has left this process
    // In: the frame that is coming.
    FrameHeader header;
    int64_t header_got = 0;
    int64_t payload_got = 0;
    char* payload = nullptr;
    int posted_index = -1;       // where it goes, or
    Message* message = nullptr;  // the last of `unexpected`
    std::vector<Posted> posted;
    size_t open = 0;  // of `posted`
    std::list<Message> unexpected;
  };

  absl::StatusOr<int64_t> Write(int peer, std::string_view head, std::string_view body);
  absl::StatusOr<int64_t> Read(int peer, void* data, int64_t bytes);
  // Each moves what can be moved and returns whether anything was.
  absl::StatusOr<bool> Push(int peer, const Call& call, Channel channel, int tag);
  absl::StatusOr<bool> Pull(int peer, const Call& call, Channel channel, int tag, bool everything);
  absl::Status BeginPayload(int peer, const Call& call, Channel channel, int tag);
  absl::Status FinishPayload(int peer, const Call& call, Channel channel, int tag);
  // Gives messages that have come to receives that ask for them.
  absl::Status MatchUnexpected(int peer, const Call& call, Channel channel, int tag);
  absl::Status CheckFrame(int peer, const FrameHeader& header, const Incoming& to, const Call& call,
                          Channel channel) const;
  // One turn at all peers; whether anything moved. `look_at_all`: at remote ones from which nothing
  // is wanted, too.
  absl::StatusOr<bool> Step(const Call& call, Channel channel, int tag, bool look_at_all,
                            bool* done);
  absl::Status CheckEnds(const Call& call);
  std::string Missing() const;
  std::string Name(int peer) const { return name_(peer); }

  const int rank_;
  const std::vector<int> node_index_;
  ShmMember* const member_;
  RemoteStreams* const remote_;
  const NameFn name_;
  std::vector<Peer> peers_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_MESSENGER_H_
