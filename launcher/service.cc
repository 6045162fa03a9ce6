#include "launcher/service.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "launcher/env.h"
#include "launcher/machine.h"
#include "launcher/progress_bar.h"
#include "launcher/version.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/serving/text_decoder.h"
#include "runtime/worker/in_process_group.h"
#include "runtime/worker/parallel_context.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

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

void LogRanks(const coordinator::GroupInfo& group) {
  for (const coordinator::RankInfo& rank : group.ranks) {
    spdlog::info("rank {} of {}: host {}, pid {}, {}, weights {}, KV cache {} ({} tokens)",
                 rank.rank, group.ranks.size(), rank.host, rank.pid, rank.device,
                 FormatBytes(rank.weight_bytes), FormatBytes(rank.kv_blocks * rank.kv_block_bytes),
                 rank.kv_blocks * kernels::kBlockTokens);
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
  const absl::Status check = worker::CheckLayout(*layout, options.reduction_leaves);
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
  const bool many_hosts = !options.hosts.empty() || !options.hostfile.empty();

  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.rank.layout);
  if (!layout.ok()) return layout.status();
  service->layout_ = layout->ToString();
  service->world_size_ = layout->group_size();
  auto worker_options = MakeWorkerOptions(options.rank, many_hosts ? 1 : service->world_size_);
  if (!worker_options.ok()) return worker_options.status();
  service->worker_options_ = *std::move(worker_options);

  auto checkpoint = checkpoint::Checkpoint::Open(options.rank.model);
  if (!checkpoint.ok()) return checkpoint.status();
  service->config_ = (*checkpoint)->config();
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
    workers = one_process_by_default && service->world_size_ == 1 ? "threads" : "mpirun";
  }
  if (workers != "threads") {
    control::ControlServerOptions control;
    control.listen = options.control_listen;
    if (control.listen.empty()) control.listen = many_hosts ? "0.0.0.0:0" : "127.0.0.1:0";
    control.token = ReadEnvironment().control_token;
    if (control.token.empty()) control.token = RandomToken();
    service->token_ = control.token;
    control.build_version = kVersion;
    auto server = control::ControlServer::Listen(control);
    if (!server.ok()) return server.status();
    service->control_ = *std::move(server);
  }
  if (absl::Status status = service->CreateGroup(); !status.ok()) return status;

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
  coordinator.text_decoder = serving::MakeTextDecoderFactory(*service->tokenizer_);
  service->coordinator_ = std::make_unique<coordinator::Coordinator>(std::move(coordinator),
                                                                     std::move(service->group_));
  return service;
}

absl::Status Service::CreateGroup() {
  auto bar = std::make_shared<ProgressBar>("loading");
  if (options_.workers == "threads") {
    worker_options_.progress = [bar](int64_t done, int64_t total) { bar->Update(done, total); };
    group_ = worker::CreateInProcessGroup(worker_options_);
    return absl::OkStatus();
  }
  control::RemoteGroupOptions remote;
  remote.world_size = world_size_;
  remote.layout = layout_;
  remote.profile = worker_options_.profile.ToString();
  remote.checkpoint_digest = checkpoint_digest_;
  remote.start_timeout = absl::Seconds(options_.start_timeout);
  remote.step_timeout = absl::Seconds(options_.step_timeout);
  remote.on_progress = [bar](int64_t done, int64_t total) { bar->Update(done, total); };
  remote.log = [](absl::string_view line) { spdlog::debug("{}", std::string(line)); };
  if (options_.workers == "mpirun") {
    remote.launch = [this] { return LaunchMpirun(); };
    remote.liveness = [this] { return CheckMpirun(); };
    remote.terminate = [this] {
      if (mpirun_ == nullptr) return;
      if (!mpirun_->Wait(absl::Seconds(5))) mpirun_->Kill(absl::Seconds(2));
    };
  }
  auto group = std::make_unique<control::RemoteWorkerGroup>(*control_, remote);
  remote_ = group.get();
  group_ = std::move(group);
  return absl::OkStatus();
}

std::vector<std::string> Service::MpirunArguments() const {
  std::vector<std::string> out = {"-np", absl::StrCat(world_size_)};
  if (geteuid() == 0) out.push_back("--allow-run-as-root");
  // Ranks place their own threads; bound to one core, two ranks would be hundreds of times slower.
  out.insert(out.end(), {"--bind-to", "none"});
  const bool many_hosts = !options_.hosts.empty() || !options_.hostfile.empty();
  if (!many_hosts) out.push_back("--oversubscribe");
  out.insert(out.end(), {"-x", kControlTokenVariable});
  return out;
}

std::vector<std::string> Service::WorkerArguments(const std::string& model) const {
  const RankOptions& rank = options_.rank;
  // An address that stands for all of this machine's is no address for another machine.
  std::string coordinator = control_->address();
  if (absl::StartsWith(coordinator, "0.0.0.0:") || absl::StartsWith(coordinator, "[::]:")) {
    coordinator = absl::StrCat(HostName(), ":", control_->port());
  }
  std::vector<std::string> out = {"worker", "--coordinator", coordinator, "--model",
                                  model,    "--layout",      layout_};
  const auto add = [&out](const char* flag, int64_t value) {
    out.insert(out.end(), {flag, absl::StrCat(value)});
  };
  add("--kv-blocks", rank.kv_blocks);
  add("--max-context", max_context_);
  add("--max-step-tokens", rank.max_step_tokens);
  add("--reduction-leaves", rank.reduction_leaves);
  add("--sequence-stripes", rank.sequence_stripes);
  // Left out, they are settled by every rank for the host that it finds itself on.
  if (rank.threads > 0) add("--threads", rank.threads);
  if (!rank.cpu_path.empty()) out.insert(out.end(), {"--cpu-path", rank.cpu_path});
  if (!rank.kv_memory.empty()) out.insert(out.end(), {"--kv-memory", rank.kv_memory});
  return out;
}

std::string Service::WorkerCommand() const {
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
  append(WorkerArguments(error ? rank.model : model));
  return absl::StrCat(kControlTokenVariable, "=", token_, " ",
                      absl::StrJoin(words, " ", [](std::string* out, const std::string& word) {
                        absl::StrAppend(out, ShellQuoted(word));
                      }));
}

absl::Status Service::LaunchMpirun() {
  std::vector<std::string> command = {options_.mpirun};
  const auto append = [&command](const std::vector<std::string>& more) {
    command.insert(command.end(), more.begin(), more.end());
  };
  append(MpirunArguments());
  if (!options_.hosts.empty()) append({"--host", options_.hosts});
  if (!options_.hostfile.empty()) append({"--hostfile", options_.hostfile});
  // One rank's death ends the others at once instead of after a second.
  append({"--mca", "odls_base_sigkill_timeout", "0"});
  append(options_.mpirun_args);
  append({OwnPath()});
  append(WorkerArguments(options_.rank.model));
  spdlog::debug("starting: {}", absl::StrJoin(command, " "));
  auto process = Process::Start(command, {{kControlTokenVariable, token_}});
  if (!process.ok()) {
    return absl::Status(
        process.status().code(),
        absl::StrCat(process.status().message(), "; install Open MPI or name it with --mpirun"));
  }
  mpirun_ = *std::move(process);
  return absl::OkStatus();
}

absl::Status Service::CheckMpirun() {
  const std::optional<std::string> ended = mpirun_->Ended();
  if (!ended.has_value()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("mpirun (pid ", mpirun_->pid(), ") ", *ended));
}

absl::Status Service::Start() {
  if (options_.workers == "external") {
    spdlog::info("waiting for {} ranks; start them with:\n  {}", world_size_, WorkerCommand());
  }
  if (absl::Status status = coordinator_->Start(); !status.ok()) return status;
  LogRanks(coordinator_->GetStatus().group);
  return absl::OkStatus();
}

std::vector<control::RankHealth> Service::Health() const {
  return remote_ == nullptr ? std::vector<control::RankHealth>{} : remote_->Health();
}

void Service::Stop() {
  if (coordinator_ != nullptr) coordinator_->Stop();
}

Service::~Service() { Stop(); }

}  // namespace phalanx::launcher
