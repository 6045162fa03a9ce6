#include "launcher/guard.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "launcher/descriptor.h"
#include "launcher/env.h"
#include "launcher/group_files.h"
#include "launcher/process.h"

namespace phalanx::launcher {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(10);
// What mpirun and orted get to clean up (session directories): they need 0.05 s.
constexpr absl::Duration kEndTimeout = absl::Milliseconds(250);

constexpr std::array<int, 4> kForwarded = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2};

// Connects with a deadline; the connection is found dead after kLinkTimeout.
absl::StatusOr<Descriptor> Connect(const std::string& leash) {
  const size_t colon = leash.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("--leash ", leash, ": not HOST:PORT"));
  }
  absl::string_view host(leash.data(), colon);
  if (absl::ConsumePrefix(&host, "[")) host = absl::StripSuffix(host, "]");
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(std::string(host).c_str(), leash.c_str() + colon + 1, &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("--leash ", leash, ": ", gai_strerror(error)));
  }
  std::string reason = "no address";
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    Descriptor fd(socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) continue;
    const auto set = [&fd](int level, int option, int value) {
      setsockopt(fd.get(), level, option, &value, sizeof(value));
    };
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdleSeconds);
    set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveIntervalSeconds);
    set(IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
    int failure = 0;
    if (connect(fd.get(), at->ai_addr, at->ai_addrlen) != 0) {
      failure = errno;
      if (failure == EINPROGRESS) {
        pollfd wait = {fd.get(), POLLOUT, 0};
        failure = ETIMEDOUT;
        if (poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(kConnectTimeout))) == 1) {
          socklen_t size = sizeof(failure);
          getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
        }
      }
    }
    if (failure == 0) {
      freeaddrinfo(found);
      return fd;
    }
    reason = strerror(failure);
  }
  freeaddrinfo(found);
  return absl::UnavailableError(
      absl::StrCat("--leash ", leash, ": ", reason,
                   "; the coordinator that asked for this process is gone or out of reach"));
}

std::vector<pid_t> Children() {
  std::ifstream in(absl::StrCat("/proc/self/task/", getpid(), "/children"));
  std::vector<pid_t> out;
  for (pid_t pid = 0; in >> pid;) {
    std::string name;
    std::getline(std::ifstream(absl::StrCat("/proc/", pid, "/comm")), name);
    if (name != kKeeperName) out.push_back(pid);
  }
  return out;
}

// Kills every descendant: what a killed child leaves behind becomes a child of this process, its
// subreaper. Returns when all are gone; *status: how `child` ended, if it is among them.
void KillAll(pid_t child, int* status) {
  while (true) {
    const std::vector<pid_t> children = Children();
    if (children.empty()) return;
    for (const pid_t pid : children) kill(pid, SIGKILL);
    int ended = 0;
    const pid_t pid = waitpid(-1, &ended, 0);
    if (pid == child) *status = ended;
    if (pid < 0 && errno == ECHILD) return;
  }
}

class Guard {
 public:
  // `deaf`: signals are not handed on. `asks`: the command gets kEndTimeout to clean up.
  Guard(Descriptor leash, Descriptor signals, pid_t child, bool deaf, bool asks)
      : leash_(std::move(leash)),
        signals_(std::move(signals)),
        child_(child),
        deaf_(deaf),
        asks_(asks) {}

  // The wait status of the command.
  int Run() {
    while (!Reap()) {
      std::array<pollfd, 2> wait = {pollfd{leash_.get(), POLLIN, 0},
                                    pollfd{signals_.get(), POLLIN, 0}};
      if (poll(wait.data(), wait.size(), -1) < 0) continue;
      // First: with the leash the coordinator's SIGTERM comes, too.
      if (wait[0].revents != 0) {
        End();
        break;
      }
      if (wait[1].revents != 0) HandleSignals();
    }
    // Of what the command leaves behind, nothing is to live on.
    KillAll(child_, &status_);
    return status_;
  }

 private:
  // Reaps what has ended; whether the command is among it.
  bool Reap() {
    while (!ended_) {
      int status = 0;
      const pid_t pid = waitpid(-1, &status, WNOHANG);
      if (pid <= 0) return false;
      if (pid == child_) {
        status_ = status;
        ended_ = true;
      }
    }
    return true;
  }

  void HandleSignals() {
    signalfd_siginfo signal;
    while (read(signals_.get(), &signal, sizeof(signal)) == sizeof(signal)) {
      if (signal.ssi_signo == SIGCHLD || deaf_) continue;
      if (signal.ssi_signo == SIGTERM) {
        Ask();
      } else {
        kill(child_, static_cast<int>(signal.ssi_signo));
      }
    }
  }

  // Once: an mpirun that is at its end already takes one more for impatience.
  void Ask() {
    if (!asked_) kill(child_, SIGTERM);
    asked_ = true;
  }

  // Asks, where that is of use; Run kills what is left.
  void End() {
    if (!asks_) return;
    Ask();
    const absl::Time deadline = absl::Now() + kEndTimeout;
    while (!Reap()) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return;
      pollfd wait = {signals_.get(), POLLIN, 0};
      poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
      signalfd_siginfo signal;
      while (read(signals_.get(), &signal, sizeof(signal)) == sizeof(signal)) continue;
    }
  }

  const Descriptor leash_;
  const Descriptor signals_;
  const pid_t child_;
  const bool deaf_;
  const bool asks_;
  bool asked_ = false;
  bool ended_ = false;
  int status_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Leash>> Leash::Listen(bool other_hosts) {
  // Never accepted: the kernel completes connections and answers their probes by itself, and resets
  // them all when the port is closed, by whatever kind of end.
  int fd = -1;
  sockaddr_storage address = {};
  socklen_t size = 0;
  if (other_hosts) {
    // Both kinds of addresses, where this machine has both.
    auto* any = reinterpret_cast<sockaddr_in6*>(&address);
    any->sin6_family = AF_INET6;
    any->sin6_addr = in6addr_any;
    size = sizeof(*any);
    fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int only = 0;
    if (fd >= 0 && (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only)) != 0 ||
                    bind(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0)) {
      close(fd);
      fd = -1;
    }
  }
  bool ok = fd >= 0;
  if (!ok) {
    auto* any = reinterpret_cast<sockaddr_in*>(&address);
    *any = {};
    any->sin_family = AF_INET;
    any->sin_addr.s_addr = htonl(other_hosts ? INADDR_ANY : INADDR_LOOPBACK);
    size = sizeof(*any);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ok = fd >= 0 && bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0;
  }
  size = sizeof(address);
  if (!ok || listen(fd, 4096) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    return absl::ResourceExhaustedError(
        absl::StrCat("no port for the leash that worker processes are held by: ", strerror(error)));
  }
  const in_port_t port = address.ss_family == AF_INET6
                             ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                             : reinterpret_cast<const sockaddr_in*>(&address)->sin_port;
  return std::unique_ptr<Leash>(new Leash(fd, ntohs(port)));
}

Leash::~Leash() { close(fd_); }

absl::StatusOr<int> RunGuard(const GuardOptions& options) {
  if (options.command.empty()) {
    return absl::InvalidArgumentError("guard: no command; write guard --leash HOST:PORT COMMAND");
  }
  absl::StatusOr<Descriptor> leash = Connect(options.leash);
  if (!leash.ok()) return leash.status();

  const std::string name = options.deaf ? GroupFiles::NewName() : options.files;
  auto files = name.empty() ? nullptr : std::make_unique<GroupFiles>(name);
  if (files != nullptr && !files->path().empty()) {
    setenv("OMPI_MCA_btl_vader_backing_directory", files->path().c_str(), /*overwrite=*/1);
    // A site may have its own.
    setenv("OMPI_MCA_orte_tmpdir_base", files->path().c_str(), /*overwrite=*/0);
  }
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t handled;
  sigemptyset(&handled);
  sigaddset(&handled, SIGCHLD);
  for (const int signal : kForwarded) sigaddset(&handled, signal);
  sigset_t before;
  sigprocmask(SIG_BLOCK, &handled, &before);
  Descriptor signals(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));

  const std::vector<char*> argv = Pointers(options.command);
  std::array<int, 2> failure;  // tells whether exec failed: closed by a successful one
  if (pipe2(failure.data(), O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("guard: pipe: ", strerror(errno)));
  }
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("guard: fork: ", strerror(errno)));
  }
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    if (options.deaf) {
      for (const int signal : kForwarded) ::signal(signal, SIG_IGN);
    }
    sigprocmask(SIG_SETMASK, &before, nullptr);
    execvp(argv[0], argv.data());
    const int error = errno;
    (void)!write(failure[1], &error, sizeof(error));
    _exit(127);
  }
  close(failure[1]);
  int error = 0;
  const ssize_t got = read(failure[0], &error, sizeof(error));
  close(failure[0]);
  if (got > 0) {
    waitpid(child, nullptr, 0);
    return absl::NotFoundError(
        absl::StrCat("can't start ", options.command[0], ": ", strerror(error)));
  }

  // Where all that mpirun would clean up goes with `files`, nothing is lost by killing it. One that
  // is asked while it ends by itself, for a rank has died, may crash (in 30 of 108 recoveries, Open
  // MPI 4.1.4: a segmentation fault in PMIx_Finalize, with its backtrace in the log).
  const auto moves = [](const std::string& word) { return word == "orte_tmpdir_base"; };
  const bool cleans = files != nullptr && !files->path().empty() &&
                      files->path() == ReadEnvironment().mpi_session_base &&
                      std::none_of(options.command.begin(), options.command.end(), moves);
  const int status = Guard(*std::move(leash), std::move(signals), child, options.deaf,
                           /*asks=*/!options.deaf && !cleans)
                         .Run();
  files.reset();
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  signal(WTERMSIG(status), SIG_DFL);
  raise(WTERMSIG(status));
  sigprocmask(SIG_UNBLOCK, &handled, nullptr);
  return 128 + WTERMSIG(status);
}

}  // namespace phalanx::launcher
