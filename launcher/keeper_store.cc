#include "launcher/keeper_store.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "launcher/keeper.h"
#include "launcher/process.h"

namespace phalanx::launcher {
namespace {

constexpr absl::Duration kRetryPause = absl::Milliseconds(10);
constexpr timeval kKeeperPatience = {5, 0};

}  // namespace

absl::Status KeeperStore::Connect() {
  if (socket_.valid()) return absl::OkStatus();
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  options_.socket_name.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  const auto size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + options_.socket_name.size());
  if (!fd.valid() || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) {
    return absl::NotFoundError(absl::StrCat("no keeper answers: ", std::strerror(errno)));
  }
  const absl::StatusOr<pid_t> keeper = CheckPeer(fd.get());
  if (!keeper.ok()) return keeper.status();
  // Should somebody have stopped it, it goes on; else this is nothing to it.
  if (*keeper > 0) kill(*keeper, SIGCONT);
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kKeeperPatience, sizeof(kKeeperPatience));
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kKeeperPatience, sizeof(kKeeperPatience));
  socket_ = std::move(fd);
  return absl::OkStatus();
}

absl::StatusOr<v1::KeeperReply> KeeperStore::Ask(v1::KeeperRequest request, int fd,
                                                 Descriptor* received) {
  if (absl::Status status = Connect(); !status.ok()) return status;
  request.set_replica(options_.replica);
  request.set_epoch(options_.epoch);
  std::string answer;
  v1::KeeperReply reply;
  absl::Status status = SendMessage(socket_.get(), request.SerializeAsString(), fd);
  if (status.ok()) status = ReceiveMessage(socket_.get(), &answer, received);
  if (status.ok() && !reply.ParseFromString(answer)) {
    status = absl::InternalError("keeper's socket: a reply that does not parse");
  }
  if (status.ok() && !reply.error().empty()) {
    status = absl::FailedPreconditionError(absl::StrCat("the keeper says: ", reply.error()));
  }
  if (status.ok()) return reply;
  socket_ = Descriptor();
  return status;
}

model::WeightStore::Found KeeperStore::Find(const std::vector<std::string>& keys, int rank) {
  Found out;
  v1::KeeperRequest request;
  for (const std::string& key : keys) request.mutable_find()->add_keys(key);
  request.mutable_find()->set_key(keys[rank]);
  Descriptor fd;
  const absl::StatusOr<v1::KeeperReply> reply = Ask(request, -1, &fd);
  if (absl::IsNotFound(reply.status())) {
    if (!options_.start_keeper) return out;
    if (absl::Status status = options_.start_keeper(); !status.ok()) Warn(status.message());
    return out;
  }
  if (!reply.ok()) {
    Warn(reply.status().message());
    return out;
  }
  if (!reply->found() || !fd.valid()) return out;
  auto arena = model::WeightArena::Map(fd.Release(), keys[rank], options_.threads);
  if (arena.ok()) {
    out.arena = *std::move(arena);
    out.agreed = reply->agreed();
    return out;
  }
  Warn(absl::StrCat(arena.status().message(), "; packing them again"));
  v1::KeeperRequest drop;
  drop.mutable_drop()->set_key(keys[rank]);
  Ask(drop, -1, &fd).status().IgnoreError();
  return out;
}

void KeeperStore::Keep(const model::WeightArena& arena) {
  v1::KeeperRequest request;
  request.mutable_keep()->set_key(arena.key());
  const absl::Time deadline = absl::Now() + options_.start_timeout;
  absl::Status status = Connect();
  while (absl::IsNotFound(status) && absl::Now() < deadline) {
    absl::SleepFor(kRetryPause);
    status = Connect();
  }
  Descriptor none;
  if (status.ok()) status = Ask(request, arena.fd(), &none).status();
  if (!status.ok()) {
    Warn(absl::StrCat("packed weights will not survive this rank: ", status.message()));
  }
}

void KeeperStore::Agreed(uint64_t content) {
  if (!socket_.valid()) return;
  v1::KeeperRequest request;
  request.mutable_agreed()->set_content(content);
  Descriptor none;
  const absl::Status status = Ask(request, -1, &none).status();
  if (!status.ok()) Warn(status.message());
  socket_ = Descriptor();  // that was the last word
}

void KeeperStore::Warn(absl::string_view why) {
  if (options_.warn) options_.warn(std::string(why));
}

absl::Status StartDetached(const std::vector<std::string>& arguments,
                           const std::map<std::string, std::string>& environment) {
  const std::vector<std::string> variables = EnvironmentWith(environment);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(variables);
  const long descriptors = sysconf(_SC_OPEN_MAX);

  const pid_t child = fork();
  if (child < 0) return absl::ResourceExhaustedError(absl::StrCat("fork: ", std::strerror(errno)));
  if (child == 0) {
    // Between fork and exec only what signal handlers may do: other threads' locks are held here.
    setsid();
    if (fork() != 0) _exit(0);
    const int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3 && null >= 0; ++fd) dup2(null, fd);
    if (syscall(SYS_close_range, 3, ~0U, 0) != 0) {
      for (long fd = 3; fd < descriptors; ++fd) close(static_cast<int>(fd));
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
    execve(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return absl::OkStatus();
}

}  // namespace phalanx::launcher
