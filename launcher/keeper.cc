#include "launcher/keeper.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launcher/guard.h"
#include "runtime/control/watch.h"
#include "runtime/model/slice_digest.h"

namespace phalanx::launcher {
namespace {

// Far above a group of a hundred thousand ranks' keys.
constexpr uint32_t kMostBytes = uint32_t{16} << 20;
constexpr timeval kRankPatience = {1, 0};

absl::Status Gone(const char* call) {
  return absl::UnavailableError(
      absl::StrCat("keeper's socket: ", call, ": ",
                   errno == 0 ? "the other end has gone" : std::strerror(errno)));
}

absl::Status ReceiveAll(int socket, char* to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = recv(socket, to, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = 0;
    if (got <= 0) return Gone("recv");
    to += got;
    bytes -= got;
  }
  return absl::OkStatus();
}

absl::Status SendAll(int socket, const char* from, size_t bytes) {
  while (bytes > 0) {
    const ssize_t sent = send(socket, from, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return Gone("send");
    from += sent;
    bytes -= sent;
  }
  return absl::OkStatus();
}

}  // namespace

std::string KeeperSocketName(const std::string& coordinator) {
  return absl::StrCat("phalanx-keeper-", getuid(), "-",
                      model::Digest128(coordinator).substr(0, 16));
}

absl::Status SendMessage(int socket, const std::string& message, int fd) {
  const auto size = static_cast<uint32_t>(message.size());
  std::array<char, 4> length = {static_cast<char>(size & 0xFF), static_cast<char>(size >> 8 & 0xFF),
                                static_cast<char>(size >> 16 & 0xFF),
                                static_cast<char>(size >> 24 & 0xFF)};
  iovec part = {length.data(), length.size()};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(length.size())) return Gone("sendmsg");
  return SendAll(socket, message.data(), message.size());
}

absl::Status ReceiveMessage(int socket, std::string* message, Descriptor* fd) {
  std::array<unsigned char, 4> length = {};
  iovec part = {length.data(), length.size()};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr; at = CMSG_NXTHDR(&header, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
    int received = -1;
    std::memcpy(&received, CMSG_DATA(at), sizeof(int));
    *fd = Descriptor(received);
  }
  if (got == 0) errno = 0;
  if (got <= 0) return Gone("recvmsg");
  absl::Status rest =
      ReceiveAll(socket, reinterpret_cast<char*>(length.data()) + got, length.size() - got);
  if (!rest.ok()) return rest;
  const uint32_t size =
      length[0] | length[1] << 8 | length[2] << 16 | static_cast<uint32_t>(length[3]) << 24;
  if (size > kMostBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("keeper's socket: a message of ", size, " bytes; the most is ", kMostBytes));
  }
  message->resize(size);
  return ReceiveAll(socket, message->data(), size);
}

template <typename Predicate>
void KeptWeights::Release(int replica, Predicate ends) {
  for (auto at = entries_.begin(); at != entries_.end();) {
    const auto user = at->second.users.find(replica);
    if (user != at->second.users.end() && ends(at->first, user->second)) {
      at->second.users.erase(user);
    }
    at = at->second.users.empty() ? entries_.erase(at) : std::next(at);
  }
}

std::pair<v1::KeeperReply, int> KeptWeights::Handle(const v1::KeeperRequest& request,
                                                    Descriptor sent) {
  v1::KeeperReply reply;
  const int replica = request.replica();
  const uint64_t epoch = request.epoch();
  uint64_t& newest = newest_[replica];
  if (epoch < newest) {
    reply.set_error(
        absl::StrCat("epoch ", epoch, " of replica ", replica, " was replaced by ", newest));
    return {reply, -1};
  }
  newest = epoch;
  switch (request.request_case()) {
    case v1::KeeperRequest::kFind: {
      const auto& keys = request.find().keys();
      Release(replica, [&keys](const std::string& key, uint64_t) {
        return std::find(keys.begin(), keys.end(), key) == keys.end();
      });
      const auto found = entries_.find(request.find().key());
      if (found == entries_.end()) return {reply, -1};
      found->second.users[replica] = epoch;
      reply.set_found(true);
      reply.set_agreed(found->second.agreed);
      return {reply, found->second.fd.get()};
    }
    case v1::KeeperRequest::kKeep: {
      if (!sent.valid()) {
        reply.set_error("no descriptor came with the weights");
        return {reply, -1};
      }
      // Where another replica's rank was faster, its copy serves both from the next start on.
      Entry& entry = entries_[request.keep().key()];
      if (!entry.fd.valid()) entry.fd = std::move(sent);
      entry.users[replica] = epoch;
      return {reply, -1};
    }
    case v1::KeeperRequest::kAgreed:
      Release(replica, [epoch](const std::string&, uint64_t last) { return last < epoch; });
      for (auto& [key, entry] : entries_) {
        if (entry.users.count(replica) != 0) entry.agreed = request.agreed().content();
      }
      return {reply, -1};
    case v1::KeeperRequest::kDrop:
      entries_.erase(request.drop().key());
      return {reply, -1};
    case v1::KeeperRequest::REQUEST_NOT_SET:
      break;
  }
  reply.set_error("an unknown request");
  return {reply, -1};
}

absl::StatusOr<Descriptor> ListenAsKeeper(const std::string& name) {
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(fd.get(), 1024) != 0) {
    if (errno == EADDRINUSE) return absl::AlreadyExistsError("another keeper is there");
    return Gone("bind");
  }
  return fd;
}

absl::StatusOr<pid_t> CheckPeer(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return Gone("SO_PEERCRED");
  if (peer.uid != getuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("keeper's socket: the other end is user ", peer.uid, "'s, not ours"));
  }
  return peer.pid;
}

void ServeRanks(int listener, int stop, KeptWeights& kept) {
  std::vector<Descriptor> ranks;
  while (true) {
    std::vector<pollfd> wait = {{stop, POLLIN, 0}, {listener, POLLIN, 0}};
    for (const Descriptor& rank : ranks) wait.push_back({rank.get(), POLLIN, 0});
    if (poll(wait.data(), wait.size(), -1) < 0) continue;
    if (wait[0].revents != 0) return;
    std::vector<Descriptor> open;
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (wait[2 + i].revents == 0) {
        open.push_back(std::move(ranks[i]));
        continue;
      }
      const int fd = ranks[i].get();
      std::string message;
      Descriptor sent;
      v1::KeeperRequest request;
      if (!ReceiveMessage(fd, &message, &sent).ok() || !request.ParseFromString(message)) continue;
      const auto [reply, with] = kept.Handle(request, std::move(sent));
      if (SendMessage(fd, reply.SerializeAsString(), with).ok())
        open.push_back(std::move(ranks[i]));
    }
    ranks = std::move(open);
    if (wait[1].revents == 0) continue;
    Descriptor rank(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!rank.valid() || !CheckPeer(rank.get()).ok()) continue;
    // One rank that is stopped in the middle of a message must not hold up the others.
    setsockopt(rank.get(), SOL_SOCKET, SO_RCVTIMEO, &kRankPatience, sizeof(kRankPatience));
    setsockopt(rank.get(), SOL_SOCKET, SO_SNDTIMEO, &kRankPatience, sizeof(kRankPatience));
    ranks.push_back(std::move(rank));
  }
}

absl::Status RunKeeper(const KeeperOptions& options) {
  prctl(PR_SET_NAME, kKeeperName);  // guards let it live by that
  absl::StatusOr<Descriptor> listener = ListenAsKeeper(KeeperSocketName(options.coordinator));
  if (absl::IsAlreadyExists(listener.status())) return absl::OkStatus();
  if (!listener.ok()) return listener.status();
  if (chdir("/") != 0) return Gone("chdir");  // holds no file system
  control::WatchOptions watch_options;
  watch_options.coordinator = options.coordinator;
  watch_options.token = options.token;
  // Its coordinator listened when a rank started this keeper; one that has died since will not.
  watch_options.connect_timeout = absl::Seconds(5);
  // At once: nobody is served any more, and nothing is worth an orderly end.
  watch_options.on_gone = [] { _exit(0); };
  auto watch = control::CoordinatorWatch::Connect(watch_options);
  if (!watch.ok()) return watch.status();
  std::array<int, 2> never;
  if (pipe(never.data()) != 0) return Gone("pipe");
  const Descriptor unused_read(never[0]);
  const Descriptor unused_write(never[1]);
  KeptWeights kept;
  ServeRanks(listener->get(), never[0], kept);
  return absl::OkStatus();
}

}  // namespace phalanx::launcher
