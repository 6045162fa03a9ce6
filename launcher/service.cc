#include "launcher/service.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "launcher/env.h"
#include "launcher/machine.h"
#include "launcher/progress_bar.h"
#include "launcher/version.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/shape.h"
#include "runtime/serving/text_decoder.h"
#include "runtime/worker/in_process_group.h"
#include "runtime/worker/parallel_context.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

// Without --kv-memory a rank takes no more than this many sequences of full length can use: a small
// model has no use for a share of a large machine, and the memory is backed at the start.
constexpr int64_t kDefaultKvSequences = 64;

absl::StatusOr<kernels::CpuPath> FindCpuPath(const std::string& name) {
  const std::vector<kernels::CpuPath> available = kernels::AvailableCpuPaths();
  if (name.empty()) return available.back();
  std::vector<std::string> names;
  for (const kernels::CpuPath path : available) {
    names.emplace_back(kernels::Name(path));
    if (names.back() == name) return path;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--cpu-path ", name, ": this machine has ", absl::StrJoin(names, ", ")));
}

// For a command that a person copies into a shell.
std::string ShellQuoted(const std::string& word) {
  const auto plain = [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("-_./:=,+@", c);
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

void LogRanks(const coordinator::CoordinatorStatus& status) {
  for (const coordinator::ReplicaStatus& replica : status.replicas) {
    for (const coordinator::RankInfo& rank : replica.group.ranks) {
      spdlog::info(
          "{}rank {} of {}: host {}, pid {}, {}, weights {}, KV cache {} ({} tokens)",
          status.replicas.size() > 1 ? absl::StrCat("replica ", replica.replica, ", ") : "",
          rank.rank, replica.group.ranks.size(), rank.host, rank.pid, rank.device,
          FormatBytes(rank.weight_bytes), FormatBytes(rank.kv_blocks * rank.kv_block_bytes),
          rank.kv_blocks * kernels::kBlockTokens);
    }
  }
}

// Loading of all replicas in one bar.
class LoadingProgress {
 public:
  explicit LoadingProgress(int replicas) : parts_(replicas) {}
  void Update(int replica, int64_t done, int64_t total) {
    absl::MutexLock lock(&mutex_);
    parts_[replica] = {done, total};
    int64_t sum_done = 0;
    int64_t sum_total = 0;
    for (const auto& [part_done, part_total] : parts_) {
      sum_done += part_done;
      sum_total += part_total;
    }
    bar_.Update(sum_done, sum_total);
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::pair<int64_t, int64_t>> parts_ ABSL_GUARDED_BY(mutex_);
  ProgressBar bar_{"loading"};
};

}  // namespace

absl::StatusOr<worker::WorkerOptions> MakeWorkerOptions(const RankOptions& options,
                                                        int ranks_here) {
  worker::WorkerOptions out;
  out.model_directory = options.model;
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.layout);
  if (!layout.ok()) return layout.status();
  out.layout = *layout;
  out.layout.dp = 1;
  const absl::Status check =
      worker::CheckLayout(out.layout, options.reduction_leaves, options.sequence_stripes);
  if (!check.ok()) return check;
  if (options.device != "cpu") {
    return absl::UnimplementedError(
        absl::StrCat("--device ", options.device, ": this binary computes on CPUs only"));
  }
  out.profile.reduction_leaves = options.reduction_leaves;
  out.profile.sequence_stripes = options.sequence_stripes;
  const absl::StatusOr<kernels::CpuPath> path = FindCpuPath(options.cpu_path);
  if (!path.ok()) return path.status();
  out.cpu.path = *path;
  ranks_here = std::max(ranks_here, 1);
  out.cpu.threads =
      options.threads > 0 ? options.threads : std::max(1, AvailableCores() / ranks_here);
  out.max_step_tokens = options.max_step_tokens;
  out.max_positions = options.max_context;
  out.kv_blocks = options.kv_blocks;
  if (options.kv_memory.empty()) {
    out.kv_memory_bytes = AvailableMemoryBytes() / 4 / ranks_here;
    out.max_kv_sequences = kDefaultKvSequences;
  } else {
    const absl::StatusOr<int64_t> bytes = ParseBytes(options.kv_memory);
    if (!bytes.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--kv-memory: ", bytes.status().message()));
    }
    out.kv_memory_bytes = *bytes;
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Service>> Service::Create(const ServiceOptions& options,
                                                         bool one_process_by_default) {
  std::unique_ptr<Service> service(new Service());
  service->options_ = options;
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.rank.layout);
  if (!layout.ok()) return layout.status();
  service->layout_ = layout->ToString();
  service->replicas_ = layout->dp;
  service->group_size_ = layout->group_size();
  auto worker_options =
      MakeWorkerOptions(options.rank, service->many_hosts() ? 1 : layout->world_size());
  if (!worker_options.ok()) return worker_options.status();
  service->worker_options_ = *std::move(worker_options);
  service->group_layout_ = service->worker_options_.layout.ToString();
  if (absl::Status status = service->Place(); !status.ok()) return status;

  auto checkpoint = checkpoint::Checkpoint::Open(options.rank.model);
  if (!checkpoint.ok()) return checkpoint.status();
  service->config_ = (*checkpoint)->config();
  if (absl::Status status = parallel::DecoderShards::Check(
          model::ShapeOf(service->config_), service->worker_options_.layout,
          options.rank.reduction_leaves, options.rank.sequence_stripes);
      !status.ok()) {
    return status;
  }
  service->checkpoint_digest_ = (*checkpoint)->CheckpointDigest();
  service->num_parameters_ =
      (*checkpoint)->TotalBytes() / kernels::SizeOf(service->config_.weight_dtype);
  service->worker_options_.profile.weights = service->config_.weight_dtype;
  service->max_context_ = service->config_.max_position_embeddings;
  if (options.rank.max_context > service->max_context_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-context ", options.rank.max_context, ": the model was made for at most ",
        service->max_context_, " tokens (max_position_embeddings)"));
  }
  if (options.rank.max_context > 0) service->max_context_ = options.rank.max_context;
  auto tokenizer = tokenizer::Tokenizer::Load(options.rank.model);
  if (!tokenizer.ok()) return tokenizer.status();
  service->tokenizer_ = *std::move(tokenizer);

  std::string& workers = service->options_.workers;
  if (workers == "auto") {
    workers = one_process_by_default && layout->world_size() == 1 ? "threads" : "mpirun";
  }
  if (workers != "threads") {
    control::ControlServerOptions control;
    control.listen = options.control_listen;
    if (control.listen.empty()) {
      control.listen = service->many_hosts() ? "0.0.0.0:0" : "127.0.0.1:0";
    }
    control.replicas = service->replicas_;
    control.token = ReadEnvironment().control_token;
    if (control.token.empty()) control.token = RandomToken();
    service->token_ = control.token;
    control.build_version = kVersion;
    auto server = control::ControlServer::Listen(control);
    if (!server.ok()) return server.status();
    service->control_ = *std::move(server);
  }

  coordinator::CoordinatorOptions coordinator;
  service->limits_.vocab_size = service->config_.vocab_size;
  service->limits_.max_context = service->max_context_;
  coordinator.limits = service->limits_;
  for (const int64_t id : service->config_.eos_token_ids) {
    coordinator.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
  coordinator.scheduler.max_batch_tokens = options.rank.max_step_tokens;
  coordinator.scheduler.max_batch_sequences =
      std::min<int64_t>(options.max_sequences, options.rank.max_step_tokens);
  coordinator.scheduler.prefill_chunk = options.prefill_chunk;
  coordinator.scheduler.max_queued_requests = options.max_queue;
  coordinator.scheduler.max_context = service->max_context_;
  coordinator.scheduler.prefix_reuse = options.prefix_reuse;
  coordinator.scheduler.sequence_stripes = options.rank.sequence_stripes;
  coordinator.text_decoder = serving::MakeTextDecoderFactory(*service->tokenizer_);
  service->coordinator_ =
      std::make_unique<coordinator::Coordinator>(std::move(coordinator), service->CreateGroups());
  return service;
}

absl::Status Service::Place() {
  if (replicas_ == 1 || !many_hosts()) return absl::OkStatus();
  auto hosts =
      options_.hosts.empty() ? ReadHostfile(options_.hostfile) : ParseHosts(options_.hosts);
  if (!hosts.ok()) return hosts.status();
  auto placement = PlaceReplicas(*hosts, replicas_, group_size_);
  if (!placement.ok()) return placement.status();
  placement_ = *std::move(placement);
  return absl::OkStatus();
}

std::vector<std::unique_ptr<coordinator::WorkerGroup>> Service::CreateGroups() {
  auto bar = std::make_shared<LoadingProgress>(replicas_);
  std::vector<std::unique_ptr<coordinator::WorkerGroup>> groups;
  mpirun_.resize(replicas_);
  for (int replica = 0; replica < replicas_; ++replica) {
    const auto progress = [bar, replica](int64_t done, int64_t total) {
      bar->Update(replica, done, total);
    };
    if (options_.workers == "threads") {
      worker::WorkerOptions options = worker_options_;
      options.progress = progress;
      groups.push_back(worker::CreateInProcessGroup(options));
    } else {
      groups.push_back(CreateRemoteGroup(replica, progress));
    }
  }
  return groups;
}

std::unique_ptr<coordinator::WorkerGroup> Service::CreateRemoteGroup(
    int replica, std::function<void(int64_t done, int64_t total)> progress) {
  control::RemoteGroupOptions remote;
  remote.replica = replica;
  remote.world_size = group_size_;
  remote.result_rank = worker::ResultRank(worker_options_.layout);
  remote.layout = group_layout_;
  remote.profile = worker_options_.profile.ToString();
  remote.checkpoint_digest = checkpoint_digest_;
  remote.start_timeout = absl::Seconds(options_.start_timeout);
  remote.step_timeout = absl::Seconds(options_.step_timeout);
  remote.on_progress = std::move(progress);
  remote.log = [prefix = replicas_ > 1 ? absl::StrCat("replica ", replica, ": ") : ""](
                   absl::string_view line) { spdlog::debug("{}{}", prefix, std::string(line)); };
  if (options_.workers == "mpirun") {
    remote.launch = [this, replica] { return LaunchMpirun(replica); };
    remote.liveness = [this, replica] { return CheckMpirun(replica); };
    remote.terminate = [this, replica] { EndMpirun(replica); };
  }
  auto group = std::make_unique<control::RemoteWorkerGroup>(*control_, remote);
  remote_.push_back(group.get());
  return group;
}

std::vector<std::string> Service::MpirunArguments() const {
  std::vector<std::string> out = {"-np", absl::StrCat(group_size_)};
  if (geteuid() == 0) out.push_back("--allow-run-as-root");
  // Ranks place their own threads; bound to one core, two ranks would be hundreds of times slower.
  out.insert(out.end(), {"--bind-to", "none"});
  if (!many_hosts()) out.push_back("--oversubscribe");
  out.insert(out.end(), {"-x", kControlTokenVariable});
  return out;
}

std::vector<std::string> Service::WorkerArguments(int replica, const std::string& model) const {
  const RankOptions& rank = options_.rank;
  // An address that stands for all of this machine's is no address for another machine.
  std::string coordinator = control_->address();
  const bool loopback = absl::StartsWith(coordinator, "127.") ||
                        absl::StartsWith(coordinator, "[::1]:") ||
                        absl::StartsWith(coordinator, "localhost:");
  if (absl::StartsWith(coordinator, "0.0.0.0:") || absl::StartsWith(coordinator, "[::]:")) {
    coordinator = absl::StrCat(HostName(), ":", control_->port());
  }
  std::vector<std::string> out = {"worker", "--coordinator", coordinator,  "--model",
                                  model,    "--layout",      group_layout_};
  const auto add = [&out](const char* flag, int64_t value) {
    out.insert(out.end(), {flag, absl::StrCat(value)});
  };
  add("--kv-blocks", rank.kv_blocks);
  add("--max-context", max_context_);
  add("--max-step-tokens", rank.max_step_tokens);
  add("--reduction-leaves", rank.reduction_leaves);
  add("--sequence-stripes", rank.sequence_stripes);
  if (replicas_ > 1) {
    add("--replica", replica);
    // mpirun tells a rank how many of its own world share its host, not how many of other replicas.
    if (!placement_.empty()) {
      add("--ranks-per-host", placement_[replica].ranks_per_host);
    } else if (loopback) {
      add("--ranks-per-host", replicas_ * group_size_);
    }
  }
  // Left out, they are settled by every rank for the host that it finds itself on.
  if (rank.threads > 0) add("--threads", rank.threads);
  if (!rank.cpu_path.empty()) out.insert(out.end(), {"--cpu-path", rank.cpu_path});
  if (!rank.kv_memory.empty()) out.insert(out.end(), {"--kv-memory", rank.kv_memory});
  return out;
}

std::string Service::WorkerCommand(int replica) const {
  const RankOptions& rank = options_.rank;
  // Absolute: the command may be typed in another directory.
  std::error_code error;
  const std::string model = std::filesystem::absolute(rank.model, error).lexically_normal();
  std::vector<std::string> words = {options_.mpirun};
  const auto append = [&words](const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
  };
  append(MpirunArguments());
  append({OwnPath()});
  append(WorkerArguments(replica, error ? rank.model : model));
  return absl::StrCat(kControlTokenVariable, "=", token_, " ",
                      absl::StrJoin(words, " ", [](std::string* out, const std::string& word) {
                        absl::StrAppend(out, ShellQuoted(word));
                      }));
}

absl::Status Service::LaunchMpirun(int replica) {
  std::vector<std::string> command = {options_.mpirun};
  const auto append = [&command](const std::vector<std::string>& more) {
    command.insert(command.end(), more.begin(), more.end());
  };
  append(MpirunArguments());
  if (!placement_.empty()) {
    append({"--host", ToHostList(placement_[replica].hosts)});
  } else {
    if (!options_.hosts.empty()) append({"--host", options_.hosts});
    if (!options_.hostfile.empty()) append({"--hostfile", options_.hostfile});
  }
  // One rank's death ends the others at once instead of after a second.
  append({"--mca", "odls_base_sigkill_timeout", "0"});
  append(options_.mpirun_args);
  append({OwnPath()});
  append(WorkerArguments(replica, options_.rank.model));
  spdlog::debug("starting: {}", absl::StrJoin(command, " "));
  auto process = Process::Start(command, {{kControlTokenVariable, token_}});
  if (!process.ok()) {
    return absl::Status(
        process.status().code(),
        absl::StrCat(process.status().message(), "; install Open MPI or name it with --mpirun"));
  }
  mpirun_[replica] = *std::move(process);
  return absl::OkStatus();
}

absl::Status Service::CheckMpirun(int replica) {
  Process& mpirun = *mpirun_[replica];
  const std::optional<std::string> ended = mpirun.Ended();
  if (!ended.has_value()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("mpirun (pid ", mpirun.pid(), ") ", *ended));
}

void Service::EndMpirun(int replica) {
  Process* mpirun = mpirun_[replica].get();
  if (mpirun == nullptr) return;
  if (!mpirun->Wait(absl::Seconds(5))) mpirun->Kill(absl::Seconds(2));
}

absl::Status Service::Start() {
  if (options_.workers == "external") {
    std::string commands;
    for (int r = 0; r < replicas_; ++r) absl::StrAppend(&commands, "\n  ", WorkerCommand(r));
    spdlog::info("waiting for {} ranks{}; start them with:{}", replicas_ * group_size_,
                 replicas_ > 1 ? absl::StrCat(" of ", replicas_, " replicas") : "", commands);
  }
  if (absl::Status status = coordinator_->Start(); !status.ok()) return status;
  LogRanks(coordinator_->GetStatus());
  return absl::OkStatus();
}

std::vector<control::RankHealth> Service::Health() const {
  std::vector<control::RankHealth> out;
  for (const control::RemoteWorkerGroup* group : remote_) {
    const std::vector<control::RankHealth> health = group->Health();
    out.insert(out.end(), health.begin(), health.end());
  }
  return out;
}

void Service::Stop() {
  if (coordinator_ != nullptr) coordinator_->Stop();
}

Service::~Service() { Stop(); }

}  // namespace phalanx::launcher
