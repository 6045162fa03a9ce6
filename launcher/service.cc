#include "launcher/service.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "launcher/env.h"
#include "launcher/gpus.h"
#include "launcher/machine.h"
#include "launcher/progress_bar.h"
#include "launcher/step_trace.h"
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

// As the schema's slots of a host.
constexpr int kMaxRanksHere = 1024;

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
  const bool cuda = options.device == "cuda";
  out.device.kind = cuda ? kernels::DeviceKind::kCuda : kernels::DeviceKind::kCpu;
  const absl::StatusOr<worker::DeviceTransport> transport =
      ParseDeviceTransport(options.device_comm);
  if (!transport.ok()) return transport.status();
  out.device_transport = *transport;
  out.gpu_memory_fraction = options.gpu_memory_fraction;
  const absl::StatusOr<kernels::Numerics> numerics = ParseNumerics(options);
  if (!numerics.ok()) return numerics.status();
  out.device.cuda.numerics = *numerics;
  out.profile.ComputeOn(out.device);
  const absl::StatusOr<kernels::WeightFormat> weights = ParseWeightDtype(options.weight_dtype);
  if (!weights.ok()) return weights.status();
  out.profile.weight_format = *weights;
  const absl::StatusOr<kernels::KvFormat> kv = ParseKvDtype(options.kv_dtype);
  if (!kv.ok()) return kv.status();
  out.profile.kv = *kv;
  out.profile.reduction_leaves = options.reduction_leaves;
  out.profile.sequence_stripes = options.sequence_stripes;
  const absl::StatusOr<kernels::CpuPath> path = FindCpuPath(options.cpu_path);
  if (!path.ok()) return path.status();
  out.device.cpu.path = *path;
  ranks_here = std::max(ranks_here, 1);
  out.device.cpu.threads =
      options.threads > 0 ? options.threads : std::max(1, AvailableCores() / ranks_here);
  out.device.cuda.pack_threads = out.device.cpu.threads;
  out.max_step_tokens = options.max_step_tokens;
  out.max_positions = options.max_context;
  out.kv_blocks = options.kv_blocks;
  if (options.kv_memory.empty() && cuda) {
    out.kv_memory_bytes = 0;
  } else if (options.kv_memory.empty()) {
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
                                                         const PlanningOptions& planning,
                                                         bool one_process_by_default) {
  std::unique_ptr<Service> service(new Service());
  service->options_ = options;
  service->planning_ = planning;
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.rank.layout);
  if (!layout.ok()) return layout.status();
  service->layout_ = layout->ToString();
  std::string& workers = service->options_.workers;
  if (workers == "auto") {
    workers = one_process_by_default && layout->world_size() == 1 && !options.hosts_are_named
                  ? "threads"
                  : options.auto_workers;
  }
  service->replicas_ = layout->dp;
  service->group_size_ = layout->group_size();
  auto worker_options =
      MakeWorkerOptions(options.rank, service->many_hosts() ? 1 : layout->world_size());
  if (!worker_options.ok()) return worker_options.status();
  service->worker_options_ = *std::move(worker_options);
  if (absl::Status status = service->Place(); !status.ok()) return status;
  if (!service->many_hosts() && workers != "external" && layout->world_size() > kMaxRanksHere) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--layout ", options.rank.layout, ": ", layout->world_size(),
        " ranks are too many for one machine (", kMaxRanksHere, "); name more hosts with --hosts"));
  }
  // What ranks elsewhere have, they say themselves.
  if (workers == "threads" || (workers != "external" && !service->many_hosts())) {
    const absl::Status devices =
        CheckDevicesHere(options.rank, layout->world_size(), workers == "threads");
    if (!devices.ok()) return devices;
  }

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
  service->num_parameters_ = (*checkpoint)->NumParameters();
  if (absl::Status status = service->worker_options_.profile.HoldWeightsOf(service->config_);
      !status.ok()) {
    return status;
  }
  service->max_context_ = service->config_.max_position_embeddings;
  if (options.rank.max_context > service->max_context_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-context ", options.rank.max_context, ": the model was made for at most ",
        service->max_context_, " tokens (max_position_embeddings)"));
  }
  if (options.rank.max_context > 0) service->max_context_ = options.rank.max_context;
  auto tokenizer = tokenizer::Tokenizer::Load(options.rank.model);
  if (tokenizer.ok()) {
    service->tokenizer_ = *std::move(tokenizer);
    const int32_t tokens = service->tokenizer_->vocab_size();
    if (tokens > service->config_.vocab_size) {
      spdlog::warn(
          "{}: the tokenizer has {} tokens, but config.json says vocab_size {}: are they one "
          "model's? Prompts with a token that the model doesn't have are refused",
          options.rank.model, tokens, service->config_.vocab_size);
    }
  } else if (options.needs_text || !absl::IsNotFound(tokenizer.status())) {
    return tokenizer.status();
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
    control.build_version = BuildIdentity();
    // No rank is lost by its connection's silence before it is by its own.
    control.keepalive_timeout =
        std::max(control.keepalive_timeout, absl::Seconds(options.heartbeat_timeout));
    auto server = control::ControlServer::Listen(control);
    if (!server.ok()) return server.status();
    service->control_ = *std::move(server);
  }

  coordinator::CoordinatorOptions coordinator;
  service->limits_.vocab_size = service->config_.vocab_size;
  service->limits_.max_context = service->max_context_;
  for (const int64_t id : service->config_.eos_token_ids) {
    service->limits_.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
  coordinator.limits = service->limits_;
  coordinator.eos_token_ids = service->limits_.eos_token_ids;
  coordinator.scheduler.max_batch_tokens = options.rank.max_step_tokens;
  coordinator.scheduler.max_batch_sequences =
      std::min<int64_t>(options.max_sequences, options.rank.max_step_tokens);
  coordinator.scheduler.prefill_chunk = options.prefill_chunk;
  coordinator.scheduler.look_ahead = true;
  coordinator.scheduler.max_queued_requests = options.max_queue;
  coordinator.scheduler.max_context = service->max_context_;
  coordinator.scheduler.prefix_reuse = options.prefix_reuse;
  coordinator.scheduler.sequence_stripes = options.rank.sequence_stripes;
  if (service->tokenizer_ != nullptr) {
    coordinator.text_decoder = serving::MakeTextDecoderFactory(*service->tokenizer_);
  }
  coordinator.restart.max_tries = options.max_restarts;
  if (workers == "external") {
    coordinator.restart.max_tries = 0;
    coordinator.restart.why_never =
        "workers that were started by hand can't be started again from here: start serve and the "
        "workers anew";
  } else if (workers == "threads") {
    coordinator.restart.max_tries = 0;
  }
  coordinator.log = [](const std::string& line) { spdlog::warn("{}", line); };
  coordinator.replica_changed = [made = service.get()] { made->on_replica_change_(); };
  auto sources = service->CreateSources();
  if (!sources.ok()) return sources.status();
  service->coordinator_ =
      std::make_unique<coordinator::Coordinator>(std::move(coordinator), *std::move(sources));
  return service;
}

absl::Status Service::Place() {
  if (!many_hosts()) return absl::OkStatus();
  auto hosts =
      options_.hosts.empty() ? ReadHostfile(options_.hostfile) : ParseHosts(options_.hosts);
  if (!hosts.ok()) return hosts.status();
  auto placement = PlaceReplicas(*hosts, replicas_, group_size_);
  if (!placement.ok()) return placement.status();
  placement_ = *std::move(placement);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::unique_ptr<coordinator::GroupSource>>> Service::CreateSources() {
  setup_.options = options_;
  setup_.planning = planning_;
  setup_.layout = worker_options_.layout;
  setup_.replicas = replicas_;
  setup_.profile = worker_options_.profile.ToString();
  setup_.checkpoint_digest = checkpoint_digest_;
  setup_.token = token_;
  setup_.max_context = max_context_;
  setup_.control = control_.get();
  loading_ = std::make_shared<LoadingProgress>(replicas_);
  std::vector<std::unique_ptr<coordinator::GroupSource>> sources;
  for (int replica = 0; replica < replicas_; ++replica) {
    const auto progress = [loading = loading_, replica](int64_t done, int64_t total) {
      loading->Update(replica, done, total);
    };
    if (options_.workers == "threads") {
      worker::WorkerOptions options = worker_options_;
      options.progress = progress;
      if (absl::Status status = PlaceReplica(replica, replicas_, group_size_, options);
          !status.ok()) {
        return status;
      }
      if (!options_.rank.step_trace.empty()) {
        auto trace = TraceSteps(options_.rank.step_trace, replica, /*epoch=*/1);
        if (!trace.ok()) return trace.status();
        options.trace = *std::move(trace);
      }
      sources.push_back(
          std::make_unique<coordinator::SingleGroupSource>(worker::CreateInProcessGroup(options)));
      continue;
    }
    auto source = std::make_unique<ProcessGroupSource>(
        setup_, replica, placement_.empty() ? Placement() : placement_[replica], progress);
    sources_.push_back(source.get());
    sources.push_back(std::move(source));
  }
  return sources;
}

std::string Service::WorkerCommand(int replica) const { return sources_[replica]->CommandLine(); }

absl::Status Service::Start() {
  if (options_.workers == "external") {
    std::string commands;
    for (int r = 0; r < replicas_; ++r) absl::StrAppend(&commands, "\n  ", WorkerCommand(r));
    const std::string text =
        absl::StrCat("waiting for ", replicas_ * group_size_, " ranks",
                     replicas_ > 1 ? absl::StrCat(" of ", replicas_, " replicas") : "",
                     "; start them with:", commands);
    spdlog::info("{}", text);
    // Nothing goes on before it has been typed, so no level of the log hides it.
    if (!spdlog::should_log(spdlog::level::info)) std::cerr << text << std::endl;
  }
  if (absl::Status status = coordinator_->Start(); !status.ok()) return status;
  LogRanks(coordinator_->GetStatus());
  return absl::OkStatus();
}

std::vector<control::RankHealth> Service::Health() const {
  std::vector<control::RankHealth> out;
  for (const ProcessGroupSource* source : sources_) {
    const std::vector<control::RankHealth> health = source->Health();
    out.insert(out.end(), health.begin(), health.end());
  }
  return out;
}

void Service::Stop() {
  if (coordinator_ != nullptr) coordinator_->Stop();
}

Service::~Service() { Stop(); }

}  // namespace phalanx::launcher
