// What makes packed weights survive the rank that packed them, on one host: `phalanx keeper`.
//
// The first rank of a service on a host starts it, detached, and ranks hand it the descriptors of
// their arenas (runtime/model/weight_arena.h) over a Unix socket. A rank that is started in place
// of a dead one gets the descriptor back and maps what that one packed. The keeper maps nothing
// itself.
//
// Nothing outlives the service: the keeper holds a stream to the coordinator and ends with it, at
// once where the coordinator dies or stops, after at most 9 s where the link to it is cut. There is
// nothing in any file system: the socket's name is abstract (unix(7)), which makes it one of the
// network namespace, and the memory is that of descriptors. Other users' processes are turned away.
#ifndef PHALANX_LAUNCHER_KEEPER_H_
#define PHALANX_LAUNCHER_KEEPER_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/descriptor.h"
#include "proto/phalanx/v1/control.pb.h"

namespace phalanx::launcher {

// Name of the socket of the keeper for the coordinator at `coordinator` (HOST:PORT as its ranks
// know it): one for each user.
std::string KeeperSocketName(const std::string& coordinator);

// Which weights are kept, and for whom. One thread.
//
// Each entry knows which replicas' groups it is kept for, by their epochs. A group that announces
// itself says what its ranks need; the replica's hold on anything else ends, and an entry that no
// replica holds is let go. So the memory of one layout isn't held while another one packs.
class KeptWeights {
 public:
  // `sent`: what came with the request, or none. Returns the reply and the descriptor to go with
  // it, borrowed until the next call, or -1.
  std::pair<v1::KeeperReply, int> Handle(const v1::KeeperRequest& request, Descriptor sent);
  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    Descriptor fd;
    std::map<int, uint64_t> users;  // replica -> epoch of its last group that asked for it
    uint64_t agreed = 0;
  };
  // Ends the hold of `replica` on entries for which `ends` says so.
  template <typename Predicate>
  void Release(int replica, Predicate ends);

  std::map<std::string, Entry> entries_;
  std::map<int, uint64_t> newest_;  // replica -> epoch
};

// One message, and the descriptor that came with it, if any. UNAVAILABLE: the other end has gone or
// says nothing for a second. INVALID_ARGUMENT: it makes no sense.
absl::Status SendMessage(int socket, const std::string& message, int fd);
absl::Status ReceiveMessage(int socket, std::string* message, Descriptor* fd);

struct KeeperOptions {
  std::string coordinator;  // HOST:PORT
  std::string token;
};

// Serves ranks until the coordinator is gone, then ends the process. Returns where there is nothing
// to do: OK, another keeper is there already; UNAVAILABLE, no coordinator.
absl::Status RunKeeper(const KeeperOptions& options);

// A listening socket of that name; ALREADY_EXISTS: somebody has it.
absl::StatusOr<Descriptor> ListenAsKeeper(const std::string& name);
// The process at `socket`'s other end; PERMISSION_DENIED: another user's.
absl::StatusOr<pid_t> CheckPeer(int socket);
// Accepts and answers until `stop` becomes readable.
void ServeRanks(int listener, int stop, KeptWeights& kept);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_KEEPER_H_
