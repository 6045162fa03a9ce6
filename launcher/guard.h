// What makes sure that no process of a worker group outlives the coordinator, or a group that the
// coordinator has given up: on this host or another one, stopped (SIGSTOP) or not, its link up or
// cut.
//
// The coordinator's side is a Leash, a TCP port on which nothing is ever said. Whatever starts
// processes for a group runs under `phalanx guard --leash HOST:PORT COMMAND`: mpirun and srun here,
// orted on other hosts, ranks where srun starts them. The guard holds a connection to the port, and
// when that ends, kills its command and all that came of it. It ends at once where the coordinator
// lets go of the leash or dies (its kernel resets the connection), and after at most kLinkTimeout
// where the link is cut.
//
// Measured with Open MPI 4.1.4 and two namespaced hosts: mpirun's SIGKILL alone ends all ranks and
// orteds in 0.05 s, but not those of a stopped orted, nor the remote shell that holds it; Open
// MPI's own keepalive ends an orted behind a cut link after its time only if the orted had nothing
// to say, since TCP sends no probes while data is unacknowledged (15 minutes by default). A guard
// never says anything.
#ifndef PHALANX_LAUNCHER_GUARD_H_
#define PHALANX_LAUNCHER_GUARD_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace phalanx::launcher {

// After this long without an answer from the coordinator's host, a guard takes the leash for lost:
// 3 s idle, then 3 probes 2 s apart.
inline constexpr absl::Duration kLinkTimeout = absl::Seconds(9);
inline constexpr int kKeepaliveIdleSeconds = 3;
inline constexpr int kKeepaliveIntervalSeconds = 2;
inline constexpr int kKeepaliveProbes = 3;

// Name (/proc/PID/comm) of the processes that a guard lets live when all else that its command has
// left behind is killed: keepers of weights (launcher/keeper.h), which end with the coordinator by
// themselves.
inline constexpr char kKeeperName[] = "phalanx-keeper";

class Leash {
 public:
  // Listens on a free port: of 127.0.0.1, or with `other_hosts` of all addresses.
  // RESOURCE_EXHAUSTED: there is none.
  static absl::StatusOr<std::unique_ptr<Leash>> Listen(bool other_hosts);
  ~Leash();  // lets go: what is held by it is killed
  Leash(const Leash&) = delete;
  Leash& operator=(const Leash&) = delete;

  int port() const { return port_; }

 private:
  Leash(int fd, int port) : fd_(fd), port_(port) {}
  const int fd_;
  const int port_;
};

struct GuardOptions {
  std::string leash;  // HOST:PORT
  // The command ignores SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, as the guard does: batch systems send
  // them to every process of a job at once, but when ranks end is for the coordinator to say.
  // Without it the guard hands these signals on. A deaf command is a rank under srun.
  bool deaf = false;
  // Of mpirun and orted: the directory for Open MPI's files (launcher/group_files.h), the same name
  // in all guards of a group; empty: Open MPI's own places. A deaf command has one of its own.
  std::string files;
  std::vector<std::string> command;
};

// Runs the command (looked up in PATH) as a child and waits for its end; returns its exit code. If
// a signal ended the command, the same signal ends this process. INVALID_ARGUMENT, UNAVAILABLE
// (nobody holds the leash) or NOT_FOUND: nothing was started.
absl::StatusOr<int> RunGuard(const GuardOptions& options);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_GUARD_H_
