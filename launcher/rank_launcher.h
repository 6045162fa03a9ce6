// Starts, watches and ends the processes of a worker group: mpirun or srun, and by them the ranks.
//
// All of them are held by a leash (launcher/guard.h), so that End() leaves nothing behind, nor does
// the coordinator's own death. Measured, Open MPI 4.1.4: a rank's SIGKILL ends mpirun and all ranks
// in 0.1 s (odls_base_sigkill_timeout 0); End(0) takes as long, and 0.25 s more where mpirun or an
// orted is stopped.
//
// Slurm 22.05: srun's SIGTERM or a job's end sends SIGTERM to every process of a job, srun too, and
// SIGKILL after KillWait (30 s by default), as does --kill-on-bad-exit to a dead rank's peers.
// Ranks under srun ignore SIGTERM and SIGUSR1 (`scancel --signal` reaches just them), so that it is
// the coordinator that drains and the leash that ends them.
#ifndef PHALANX_LAUNCHER_RANK_LAUNCHER_H_
#define PHALANX_LAUNCHER_RANK_LAUNCHER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launcher/guard.h"
#include "launcher/options.h"
#include "launcher/placement.h"
#include "launcher/process.h"

namespace phalanx::launcher {

struct RankLaunch {
  int replica = 0;
  uint64_t epoch = 0;
  int num_ranks = 1;
  // In rank order, with num_ranks slots in all; empty: all ranks on this machine.
  std::vector<HostSlots> hosts;
  std::vector<std::string> command;  // binary and arguments of a rank
  // For the ranks, and so also for what starts them.
  std::map<std::string, std::string> environment;
};

// One per replica; used by one thread at a time.
class RankLauncher {
 public:
  // `options.workers` is "mpirun" or "srun". `coordinator`: the address that ranks are told,
  // HOST:PORT; other hosts reach this machine by its host.
  RankLauncher(const ServiceOptions& options, const std::string& coordinator);
  ~RankLauncher();  // End()s at once

  // Ends what is left of an earlier start, then starts the ranks. NOT_FOUND: mpirun or srun isn't
  // there.
  absl::Status Start(const RankLaunch& launch);
  // UNAVAILABLE: "mpirun exited with code 1". What it said is in the log by then.
  absl::Status Check();
  // Waits up to `grace` for the ranks' own end, then kills them all, on every host. Returns when
  // nothing is left on this one; elsewhere the end comes at the same time, or within kLinkTimeout
  // where a link is cut. Zero: at once.
  void End(absl::Duration grace);

  // What Start runs but for the leash, for people: "mpirun -np 2 … worker …", quoted for a shell.
  std::string CommandLine(const RankLaunch& launch) const;
  // Those of `hosts` on which a process can be started the same way now, in their order. They are
  // tried at the same time, for at most `timeout` each.
  std::vector<HostSlots> Reachable(const std::vector<HostSlots>& hosts,
                                   absl::Duration timeout) const;

 private:
  bool srun() const { return options_.workers == "srun"; }
  // `guard`: what precedes orted or ranks, empty: nothing.
  std::vector<std::string> Arguments(const RankLaunch& launch,
                                     const std::vector<std::string>& guard) const;
  // mpirun or srun of `launch`, held by `leash` here and wherever it starts processes.
  absl::StatusOr<std::unique_ptr<Process>> StartHeld(const RankLaunch& launch,
                                                     const Leash& leash) const;

  const ServiceOptions options_;
  const std::string coordinator_host_;
  const bool other_hosts_;  // the coordinator's address is one for other hosts, too
  std::unique_ptr<Leash> leash_;
  std::unique_ptr<Process> process_;
};

// The pure parts, for tests: command lines with `launch.command` at their ends. `guard`: BINARY
// guard
// --leash HOST:PORT, or empty: by mpirun it holds orteds on other hosts, by srun each rank.
std::vector<std::string> MpirunArguments(const ServiceOptions& options, const RankLaunch& launch,
                                         const std::vector<std::string>& guard);
std::vector<std::string> SrunArguments(const ServiceOptions& options, const RankLaunch& launch,
                                       const std::vector<std::string>& guard);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_RANK_LAUNCHER_H_
