#include "launcher/rank_launcher.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "launcher/env.h"
#include "launcher/group_files.h"
#include "launcher/machine.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

// For a command that a person copies into a shell.
std::string ShellQuoted(const std::string& word) {
  const auto plain = [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("-_./:=,+@", c);
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string HostPart(const std::string& address) { return address.substr(0, address.rfind(':')); }

bool IsLoopback(absl::string_view host) {
  return absl::StartsWith(host, "127.") || host == "[::1]" || host == "localhost";
}

void Append(std::vector<std::string>& words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
}

std::string Joined(const RankLaunch& launch) {
  return launch.hosts.empty() ? std::string("this machine") : ToHostList(launch.hosts);
}

std::map<std::string, std::string> WholeEnvironment(const RankLaunch& launch) {
  std::map<std::string, std::string> out = launch.environment;
  // In an allocation mpirun starts orteds by srun, and would wait for the CPUs that the job's other
  // steps hold.
  out["SLURM_OVERLAP"] = "1";
  out["SLURM_OVERCOMMIT"] = "1";
  return out;
}

}  // namespace

std::vector<std::string> MpirunArguments(const ServiceOptions& options, const RankLaunch& launch,
                                         const std::vector<std::string>& guard) {
  std::vector<std::string> out = {options.mpirun, "-np", absl::StrCat(launch.num_ranks)};
  if (geteuid() == 0) out.push_back("--allow-run-as-root");
  if (options.binding == "core") {
    Append(out, {"--map-by", absl::StrCat("slot:PE=", options.rank.threads), "--bind-to", "core"});
  } else {
    // Ranks place their own threads; bound to one core, two ranks would be hundreds of times
    // slower.
    Append(out, {"--bind-to", "none"});
  }
  if (launch.hosts.empty()) {
    // Nor where a site's default hostfile says.
    Append(out, {"--oversubscribe", "--mca", "orte_default_hostfile", "none"});
  } else {
    Append(out, {"--host", ToHostList(launch.hosts)});
  }
  for (const auto& [name, value] : launch.environment) Append(out, {"-x", name});
  // One rank's death ends the others at once instead of after a second.
  Append(out, {"--mca", "odls_base_sigkill_timeout", "0"});
  if (!launch.hosts.empty()) {
    // A host out of reach is told of by mpirun, too.
    Append(out, {"--mca", "oob_tcp_keepalive_time", absl::StrCat(kKeepaliveIdleSeconds), "--mca",
                 "oob_tcp_keepalive_intvl", absl::StrCat(kKeepaliveIntervalSeconds), "--mca",
                 "oob_tcp_keepalive_probes", absl::StrCat(kKeepaliveProbes)});
    if (!guard.empty()) {
      // A shell on the other host takes it apart; but where srun starts orteds there is none, so no
      // quotes are put where nothing is to be taken apart.
      const auto quote = [](std::string* to, const std::string& word) {
        to->append(word.find_first_of(" \t'\"$&;") == std::string::npos ? word : ShellQuoted(word));
      };
      Append(out, {"--mca", "orte_launch_agent",
                   absl::StrCat(absl::StrJoin(guard, " ", quote), " orted")});
    }
  }
  Append(out, options.mpirun_args);
  Append(out, launch.command);
  return out;
}

std::vector<std::string> SrunArguments(const ServiceOptions& options, const RankLaunch& launch,
                                       const std::vector<std::string>& guard) {
  // The coordinator's own step holds the job's CPUs, too; they are shared, not waited for.
  std::vector<std::string> out = {options.srun, "--mpi=pmix", "--overlap", "--kill-on-bad-exit=1",
                                  "--input=none", "--unbuffered",
                                  // Also in a job of sbatch --export=NONE.
                                  "--export=ALL"};
  // A rank finds its device among all of the node's.
  if (options.rank.device == "cuda") out.push_back("--gpu-bind=none");
  out.push_back(absl::StrCat("--ntasks=", launch.num_ranks));
  if (launch.hosts.empty()) {
    out.push_back("--nodes=1");
  } else {
    std::vector<std::string> nodes;  // by rank
    std::set<std::string> different;
    for (const HostSlots& host : launch.hosts) {
      nodes.insert(nodes.end(), host.slots, host.host);
      different.insert(host.host);
    }
    Append(out, {absl::StrCat("--nodes=", different.size()), "--distribution=arbitrary",
                 absl::StrCat("--nodelist=", absl::StrJoin(nodes, ","))});
  }
  if (options.binding == "core") {
    Append(out, {absl::StrCat("--cpus-per-task=", options.rank.threads), "--cpu-bind=cores"});
  } else {
    Append(out, {"--overcommit", "--cpu-bind=none"});
  }
  Append(out, options.srun_args);
  Append(out, guard);
  if (!guard.empty()) out.push_back("--deaf");
  Append(out, launch.command);
  return out;
}

RankLauncher::RankLauncher(const ServiceOptions& options, const std::string& coordinator)
    : options_(options),
      coordinator_host_(HostPart(coordinator)),
      other_hosts_(!IsLoopback(coordinator_host_)) {}

RankLauncher::~RankLauncher() { End(absl::ZeroDuration()); }

std::vector<std::string> RankLauncher::Arguments(const RankLaunch& launch,
                                                 const std::vector<std::string>& guard) const {
  return srun() ? SrunArguments(options_, launch, guard) : MpirunArguments(options_, launch, guard);
}

absl::StatusOr<std::unique_ptr<Process>> RankLauncher::StartHeld(const RankLaunch& launch,
                                                                 const Leash& leash) const {
  const auto guard = [&, files = GroupFiles::NewName()](const std::string& program,
                                                        const std::string& host) {
    std::vector<std::string> words = {program, "guard", "--leash",
                                      absl::StrCat(host, ":", leash.port())};
    if (!srun()) Append(words, {"--files", files});
    return words;
  };
  std::vector<std::string> command = guard(OwnPath(), "127.0.0.1");
  const std::string there = launch.hosts.empty() ? OwnPath() : InstalledPath();
  Append(command, Arguments(launch, guard(there, coordinator_host_)));
  spdlog::debug("starting epoch {} of replica {} on {}: {}", launch.epoch, launch.replica,
                Joined(launch), absl::StrJoin(command, " "));
  return Process::Start(command, WholeEnvironment(launch));
}

absl::Status RankLauncher::Start(const RankLaunch& launch) {
  End(absl::ZeroDuration());
  const std::string& program = srun() ? options_.srun : options_.mpirun;
  if (!IsProgram(program)) {
    return absl::NotFoundError(absl::StrCat(
        "can't start ", program, ": no such program; ",
        srun() ? "name Slurm's with --srun" : "install Open MPI or name it with --mpirun"));
  }
  auto leash = Leash::Listen(other_hosts_);
  if (!leash.ok()) return leash.status();
  leash_ = *std::move(leash);
  auto process = StartHeld(launch, *leash_);
  if (!process.ok()) {
    leash_.reset();
    return process.status();
  }
  process_ = *std::move(process);
  return absl::OkStatus();
}

absl::Status RankLauncher::Check() {
  if (process_ == nullptr) return absl::OkStatus();
  const std::optional<std::string> ended = process_->Ended();
  if (!ended.has_value()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(options_.workers, " ", *ended));
}

void RankLauncher::End(absl::Duration grace) {
  if (process_ != nullptr) process_->Wait(grace);
  // Every guard sees its connection end and kills what it guards, mpirun and srun included.
  leash_.reset();
  process_.reset();
}

std::string RankLauncher::CommandLine(const RankLaunch& launch) const {
  std::vector<std::string> words;
  for (const auto& [name, value] : launch.environment) {
    words.push_back(absl::StrCat(name, "=", ShellQuoted(value)));
  }
  for (const std::string& word : Arguments(launch, {})) words.push_back(ShellQuoted(word));
  return absl::StrJoin(words, " ");
}

std::vector<HostSlots> RankLauncher::Reachable(const std::vector<HostSlots>& hosts,
                                               absl::Duration timeout) const {
  auto leash = Leash::Listen(other_hosts_);
  if (!leash.ok()) return {};
  std::vector<std::unique_ptr<Process>> trials;
  for (const HostSlots& host : hosts) {
    RankLaunch launch;
    launch.hosts = {{host.host, 1}};
    launch.command = {"true"};
    auto process = StartHeld(launch, **leash);
    trials.push_back(process.ok() ? *std::move(process) : nullptr);
  }
  std::vector<HostSlots> out;
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t i = 0; i < hosts.size(); ++i) {
    if (trials[i] == nullptr) continue;
    const bool ended = trials[i]->Wait(std::max(deadline - absl::Now(), absl::ZeroDuration()));
    if (ended && trials[i]->Succeeded()) out.push_back(hosts[i]);
  }
  leash->reset();
  return out;
}

}  // namespace phalanx::launcher
