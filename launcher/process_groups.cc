#include "launcher/process_groups.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "launcher/config.h"
#include "launcher/env.h"
#include "launcher/machine.h"
#include "runtime/worker/parallel_context.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

// Within this a host starts a process, or counts as away.
constexpr absl::Duration kProbe = absl::Seconds(5);
// For ranks that were told to leave.
constexpr absl::Duration kFarewell = absl::Seconds(5);

std::string Names(const std::vector<HostSlots>& hosts) {
  return absl::StrJoin(hosts, ", ", [](std::string* out, const HostSlots& host) {
    absl::StrAppend(out, host.host);
  });
}

}  // namespace

ProcessGroupSource::ProcessGroupSource(const GroupSetup& setup, int replica, Placement placement,
                                       std::function<void(int64_t done, int64_t total)> progress)
    : setup_(setup),
      replica_(replica),
      placement_(std::move(placement)),
      progress_(std::move(progress)),
      launcher_(setup.options, CoordinatorAddress()),
      whole_kv_blocks_(setup.options.rank.kv_blocks) {}

absl::StatusOr<ProcessGroupSource::Shape> ProcessGroupSource::Settle(
    const coordinator::GroupNeed& need) {
  if (need.last_layout == setup_.layout.ToString()) whole_kv_blocks_ = need.last_kv_blocks;
  const Shape whole = {setup_.layout, placement_.hosts, whole_kv_blocks_};
  if (need.epoch == 1 || placement_.hosts.empty()) return whole;
  const std::vector<HostSlots> there = launcher_.Reachable(placement_.hosts, kProbe);
  std::vector<HostSlots> away;
  std::map<std::string, absl::Time> away_since;
  const absl::Time now = absl::Now();
  absl::Time last_left = absl::InfinitePast();
  for (const HostSlots& host : placement_.hosts) {
    if (std::find(there.begin(), there.end(), host) != there.end()) continue;
    away.push_back(host);
    const auto before = away_since_.find(host.host);
    const absl::Time since = before != away_since_.end() ? before->second : now;
    away_since[host.host] = since;
    last_left = std::max(last_left, since);
  }
  away_since_ = std::move(away_since);
  if (away.empty()) {
    const std::vector<HostSlots> some = HostsToTry(there, need.fruitless);
    if (some.size() == there.size()) return whole;
    absl::StatusOr<Shape> shape = ShapeOn(some, need);
    if (!shape.ok()) return whole;  // these can't hold the model
    spdlog::warn(
        "{} worker groups in a row came to nothing although every host can be reached: the hosts "
        "may not reach each other; trying {} on {}",
        need.fruitless, shape->layout.ToString(), ToHostList(shape->hosts));
    return shape;
  }
  const absl::Duration wait = absl::Seconds(setup_.options.host_wait);
  if (there.empty() && setup_.replicas > 1 && now - last_left >= wait) {
    // Its requests go on with the other replicas.
    return absl::FailedPreconditionError(absl::StrCat(
        "no process can be started on ", Names(away), ", for ", absl::FormatDuration(wait),
        " by now (--host-wait), and the replica has no other hosts; it died first of this: ",
        need.cause.message()));
  }
  if (now - last_left < wait) {
    return absl::UnavailableError(absl::StrCat("no process can be started on ", Names(away),
                                               "; waiting for it up to ",
                                               absl::FormatDuration(wait), " (--host-wait)"));
  }
  if (there.empty()) {
    return absl::ResourceExhaustedError(absl::StrCat("no process can be started on ", Names(away)));
  }
  absl::StatusOr<Shape> shape = ShapeOn(there, need);
  if (!shape.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no process can be started on ", Names(away),
                     ", and without it: ", shape.status().message()));
  }
  spdlog::warn("{} is away; going on with {} on {}", Names(away), shape->layout.ToString(),
               ToHostList(shape->hosts));
  return shape;
}

absl::StatusOr<ProcessGroupSource::Shape> ProcessGroupSource::ShapeOn(
    const std::vector<HostSlots>& hosts, const coordinator::GroupNeed& need) const {
  const absl::StatusOr<parallel::Layout> layout = PlanOn(hosts);
  if (!layout.ok()) return layout.status();
  Shape shape = {*layout, {}, setup_.options.rank.kv_blocks};
  if (need.last_layout == layout->ToString()) shape.kv_blocks = need.last_kv_blocks;
  int ranks = layout->group_size();
  for (HostSlots host : hosts) {
    if (ranks == 0) break;
    host.slots = std::min(host.slots, ranks);
    ranks -= host.slots;
    shape.hosts.push_back(std::move(host));
  }
  return shape;
}

absl::StatusOr<parallel::Layout> ProcessGroupSource::PlanOn(
    const std::vector<HostSlots>& hosts) const {
  std::optional<ConfigFile> file;
  if (!setup_.options.cluster_file.empty()) {
    absl::StatusOr<ConfigFile> read = ReadConfig(setup_.options.cluster_file);
    if (!read.ok()) return read.status();
    file = *std::move(read);
  }
  ServiceOptions options = setup_.options;
  options.rank.layout = "dp=1";
  options.rank.max_context = setup_.max_context;
  absl::StatusOr<parallel::PlanOptions> plan =
      MakePlanOptions(options, setup_.planning, file.has_value() ? &*file : nullptr);
  if (!plan.ok()) return plan.status();
  // The machines that are left, of all that the service was given.
  std::vector<HostSlots> all;
  if (!options.hosts.empty() || !options.hostfile.empty()) {
    auto named = options.hosts.empty() ? ReadHostfile(options.hostfile) : ParseHosts(options.hosts);
    if (!named.ok()) return named.status();
    all = *std::move(named);
  }
  std::vector<parallel::NodeSpec> nodes;
  for (const HostSlots& host : hosts) {
    const auto at = std::find_if(all.begin(), all.end(),
                                 [&](const HostSlots& other) { return other.host == host.host; });
    const size_t index = std::min<size_t>(at - all.begin(), plan->cluster.nodes.size() - 1);
    nodes.push_back(plan->cluster.nodes[index]);
    nodes.back().devices = host.slots;
  }
  plan->cluster.nodes = std::move(nodes);
  return ChooseLayout(*plan);
}

std::string ProcessGroupSource::CoordinatorAddress() const {
  // An address that stands for all of this machine's is no address for another machine.
  const std::string& address = setup_.control->address();
  if (absl::StartsWith(address, "0.0.0.0:") || absl::StartsWith(address, "[::]:")) {
    return absl::StrCat(HostName(), ":", setup_.control->port());
  }
  return address;
}

std::vector<std::string> ProcessGroupSource::WorkerArguments(const Shape& shape, uint64_t epoch,
                                                             const std::string& model) const {
  const RankOptions& rank = setup_.options.rank;
  const std::string coordinator = CoordinatorAddress();
  const bool loopback = absl::StartsWith(coordinator, "127.") ||
                        absl::StartsWith(coordinator, "[::1]:") ||
                        absl::StartsWith(coordinator, "localhost:");
  std::vector<std::string> out = {"worker",   "--coordinator",        coordinator, "--model", model,
                                  "--layout", shape.layout.ToString()};
  const auto add = [&out](const char* flag, int64_t value) {
    out.insert(out.end(), {flag, absl::StrCat(value)});
  };
  if (epoch > 0) add("--epoch", static_cast<int64_t>(epoch));
  add("--kv-blocks", shape.kv_blocks);
  add("--max-context", setup_.max_context);
  add("--max-step-tokens", rank.max_step_tokens);
  add("--reduction-leaves", rank.reduction_leaves);
  add("--sequence-stripes", rank.sequence_stripes);
  if (rank.weight_dtype != "auto") out.insert(out.end(), {"--weight-dtype", rank.weight_dtype});
  if (rank.kv_dtype != "auto") out.insert(out.end(), {"--kv-dtype", rank.kv_dtype});
  if (!rank.keep_weights) out.emplace_back("--no-keeper");
  if (setup_.replicas > 1) {
    add("--replica", replica_);
    // mpirun tells a rank how many of its own world share its host, not how many of other replicas.
    if (!shape.hosts.empty()) {
      add("--ranks-per-host", placement_.ranks_per_host);
    } else if (loopback) {
      add("--ranks-per-host", setup_.replicas * setup_.layout.group_size());
    }
  }
  // Left out, they are settled by every rank for the host that it finds itself on.
  if (rank.threads > 0) add("--threads", rank.threads);
  if (!rank.step_trace.empty()) out.insert(out.end(), {"--step-trace", rank.step_trace});
  if (rank.device == "cuda") {
    out.insert(out.end(),
               {"--device", "cuda", "--device-comm", rank.device_comm, "--gpu-memory-fraction",
                absl::StrCat(rank.gpu_memory_fraction), "--numerics", rank.numerics});
    // A rank knows its number among its own group's ranks on its host, not among other replicas'.
    if (setup_.replicas > 1) {
      std::vector<int> gpus;
      for (const HostSlots& host : shape.hosts) {
        for (int i = 0; i < host.slots; ++i) gpus.push_back(host.first + i);
      }
      if (shape.hosts.empty()) {
        const int size = setup_.layout.group_size();
        for (int i = 0; i < size; ++i) gpus.push_back(replica_ * size + i);
      }
      out.insert(out.end(), {"--gpu", absl::StrJoin(gpus, ",")});
    }
  }
  if (!rank.cpu_path.empty()) out.insert(out.end(), {"--cpu-path", rank.cpu_path});
  if (!rank.kv_memory.empty()) out.insert(out.end(), {"--kv-memory", rank.kv_memory});
  return out;
}

RankLaunch ProcessGroupSource::Launch(const Shape& shape, uint64_t epoch,
                                      const std::string& model) const {
  RankLaunch launch;
  launch.replica = replica_;
  launch.epoch = epoch;
  launch.num_ranks = shape.layout.group_size();
  launch.hosts = shape.hosts;
  launch.command = WorkerArguments(shape, epoch, model);
  launch.command.insert(launch.command.begin(), shape.hosts.empty() ? OwnPath() : InstalledPath());
  if (setup_.options.rank.device == "cuda" && setup_.options.rank.device_comm != "staged") {
    launch.environment = setup_.options.rank_environment;
  }
  launch.environment[kControlTokenVariable] = setup_.token;
  return launch;
}

std::string ProcessGroupSource::CommandLine() const {
  // Absolute: the command may be typed in another directory.
  std::error_code error;
  const std::string& given = setup_.options.rank.model;
  const std::string model = std::filesystem::absolute(given, error).lexically_normal();
  return launcher_.CommandLine(
      Launch({setup_.layout, placement_.hosts, setup_.options.rank.kv_blocks}, /*epoch=*/0,
             error ? given : model));
}

absl::StatusOr<std::unique_ptr<coordinator::WorkerGroup>> ProcessGroupSource::Next(
    const coordinator::GroupNeed& need) {
  const absl::StatusOr<Shape> shape = Settle(need);
  if (!shape.ok()) return shape.status();
  const ServiceOptions& options = setup_.options;
  control::RemoteGroupOptions remote;
  remote.epoch = need.epoch;
  remote.replica = replica_;
  remote.world_size = shape->layout.group_size();
  remote.result_rank = worker::ResultRank(shape->layout);
  remote.address = CoordinatorAddress();
  remote.layout = shape->layout.ToString();
  remote.profile = setup_.profile;
  remote.max_step_tokens = options.rank.max_step_tokens;
  remote.max_context = setup_.max_context;
  remote.checkpoint_digest = setup_.checkpoint_digest;
  remote.start_timeout = absl::Seconds(options.start_timeout);
  remote.step_timeout = absl::Seconds(options.step_timeout);
  remote.heartbeat_timeout = absl::Seconds(options.heartbeat_timeout);
  remote.hang_timeout = absl::Seconds(options.hang_timeout);
  if (need.epoch == 1) remote.on_progress = progress_;
  remote.log = [prefix = setup_.replicas > 1 ? absl::StrCat("replica ", replica_, ": ") : ""](
                   absl::string_view line) { spdlog::debug("{}{}", prefix, std::string(line)); };
  if (options.workers != "external") {
    remote.launch = [this, launch = Launch(*shape, need.epoch, options.rank.model)] {
      return launcher_.Start(launch);
    };
    remote.liveness = [this] { return launcher_.Check(); };
    remote.terminate = [this](bool fence) {
      launcher_.End(fence ? absl::ZeroDuration() : kFarewell);
    };
  }
  auto group = std::make_unique<control::RemoteWorkerGroup>(*setup_.control, std::move(remote));
  std::lock_guard<std::mutex> lock(mu_);
  health_ = group->HealthReader();
  return group;
}

std::vector<control::RankHealth> ProcessGroupSource::Health() const {
  std::lock_guard<std::mutex> lock(mu_);
  return health_ ? health_() : std::vector<control::RankHealth>();
}

}  // namespace phalanx::launcher
