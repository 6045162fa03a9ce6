#include "launcher/planning.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/kernels.h"
#include "launcher/calibration.h"
#include "launcher/fp8_matrices.h"
#include "launcher/gpus.h"
#include "launcher/machine.h"
#include "launcher/placement.h"
#include "parallel/gpu_types.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/model/decoder.h"
#include "runtime/model/profile.h"
#include "runtime/model/shape.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr double kMicro = 1e-6;
// Of machines that nobody has measured or described.
constexpr double kGuessedReadPerCore = 8 * kGiga;
constexpr double kGuessedFlopsPerCore = 0.06 * kTera;
constexpr double kCpuOp = 1 * kMicro;
constexpr double kCudaOp = 3 * kMicro;
// A CUDA context with its modules, about half a GiB, and what kernels/cuda keeps for attention's
// partials and for packing. Assumed: a rank sizes its KV cache by what it finds free.
constexpr int64_t kCudaScratch = int64_t{640} << 20;
constexpr parallel::Link kCpuLink = {2 * kMicro, 5 * kGiga};
constexpr parallel::Link kGuessedNetwork = {50 * kMicro, 1 * kGiga};
// One port of 200 Gb/s.
constexpr parallel::Link kGuessedGpuNetwork = {25 * kMicro, 22 * kGiga};
constexpr double kHandover = 50 * kMicro;

std::optional<kernels::DType> DTypeNamed(const std::string& name) {
  if (name == "bfloat16") return kernels::DType::kBF16;
  if (name == "float16") return kernels::DType::kF16;
  if (name == "float32") return kernels::DType::kF32;
  return std::nullopt;
}

// From the index's own figure: bytes of all tensors.
std::optional<kernels::DType> DTypeOfIndex(const std::string& directory,
                                           const parallel::ModelSpec& spec) {
  const std::string path = directory + "/model.safetensors.index.json";
  const auto text = checkpoint::ReadTextFile(path, checkpoint::kMaxIndexBytes);
  if (!text.ok()) return std::nullopt;
  const auto index = checkpoint::ParseJsonObject(*text, path);
  if (!index.ok()) return std::nullopt;
  const auto metadata = index->find("metadata");
  if (metadata == index->end() || !metadata->is_object()) return std::nullopt;
  const auto total = metadata->find("total_size");
  if (total == metadata->end() || !total->is_number()) return std::nullopt;
  const double each = total->get<double>() / static_cast<double>(spec.Parameters());
  return each > 3 ? kernels::DType::kF32 : kernels::DType::kBF16;
}

parallel::NodeSpec ThisMachine(const std::string& name, int slots) {
  parallel::NodeSpec node;
  node.name = name;
  node.shared = true;
  node.cores = AvailableCores();
  node.devices = slots > 0 ? slots : node.cores;
  node.memory_bytes = AvailableMemoryBytes();
  node.read_bytes_per_s = kGuessedReadPerCore * node.cores;
  node.matrix_flops_per_s = kGuessedFlopsPerCore * node.cores;
  node.op_s = kCpuOp;
  node.link = kCpuLink;
  node.network = kGuessedNetwork;
  return node;
}

parallel::NodeSpec FromConfig(const v1::NodeConfig& config) {
  parallel::NodeSpec node;
  node.shared = config.device() != v1::NodeConfig::DEVICE_CUDA;
  node.op_s = node.shared ? kCpuOp : kCudaOp;
  node.link = kCpuLink;
  if (const auto* type = parallel::FindGpuType(config.gpu_type()); type != nullptr) {
    node = parallel::GpuNode(*type, config.devices());
  }
  node.name = config.name();
  node.cores = std::max(1, config.cores());
  node.devices = config.has_devices() ? config.devices() : node.cores;
  if (config.has_memory_bytes()) node.memory_bytes = config.memory_bytes();
  if (config.has_read_gb_per_s()) node.read_bytes_per_s = config.read_gb_per_s() * kGiga;
  if (config.has_matrix_tflops()) node.matrix_flops_per_s = config.matrix_tflops() * kTera;
  if (config.has_op_us()) node.op_s = config.op_us() * kMicro;
  if (config.has_link_us()) node.link.latency_s = config.link_us() * kMicro;
  if (config.has_link_gb_per_s()) node.link.bytes_per_s = config.link_gb_per_s() * kGiga;
  node.network = kGuessedNetwork;
  if (config.has_network_us()) node.network.latency_s = config.network_us() * kMicro;
  if (config.has_network_gb_per_s()) node.network.bytes_per_s = config.network_gb_per_s() * kGiga;
  return node;
}

// "8xh200": a type and how many of it a machine has.
absl::StatusOr<parallel::NodeSpec> ParseGpuType(const std::string& text) {
  const size_t times = text.find('x');
  int devices = 0;
  const bool counted =
      times != std::string::npos && absl::SimpleAtoi(text.substr(0, times), &devices);
  if (!counted) devices = 1;
  const auto* type = parallel::FindGpuType(counted ? text.substr(times + 1) : text);
  if (type == nullptr || devices < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--gpu-type ", text, ": expected ", parallel::GpuTypeNames(),
        ", with how many a machine has in front, 8xh200; describe others in a --cluster "
        "file under cluster.nodes"));
  }
  return parallel::GpuNode(*type, devices);
}

// The GPUs of this machine, as its driver names them.
absl::StatusOr<parallel::NodeSpec> GpusHere() {
  const absl::StatusOr<int> devices = kernels::CudaDeviceCount();
  if (!devices.ok()) {
    return absl::Status(
        devices.status().code(),
        absl::StrCat(
            "to plan for GPUs that this machine doesn't have, name them with --gpu-type or "
            "describe the machines in a --cluster file; ",
            devices.status().message()));
  }
  std::vector<std::string> models = GpuModels();
  models.erase(std::unique(models.begin(), models.end()), models.end());
  const auto* type = models.size() == 1 ? parallel::FindGpuModel(models[0]) : nullptr;
  if (type == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the planner doesn't know this machine's GPUs (",
        models.empty() ? "unnamed by the driver" : absl::StrJoin(models, ", "),
        "); say --gpu-type ", parallel::GpuTypeNames(),
        ", describe them in a --cluster file under cluster.nodes, or give a --layout"));
  }
  return parallel::GpuNode(*type, *devices);
}

// Where nobody describes the machines: `named` hosts of GPUs, or this one.
absl::StatusOr<std::vector<parallel::NodeSpec>> GpuMachines(const std::vector<HostSlots>& named,
                                                            const std::string& gpu_type) {
  absl::StatusOr<parallel::NodeSpec> node = gpu_type.empty() ? GpusHere() : ParseGpuType(gpu_type);
  if (!node.ok()) return node.status();
  node->network = kGuessedGpuNetwork;
  if (named.empty()) return std::vector<parallel::NodeSpec>{*std::move(node)};
  std::vector<parallel::NodeSpec> out;
  for (const HostSlots& host : named) {
    out.push_back(*node);
    out.back().devices = host.slots;
  }
  if (out.size() > 1) {
    spdlog::warn(
        "nothing is said of the network between the hosts: taken for {} GB/s a host; describe it "
        "in "
        "a --cluster file under cluster.nodes",
        kGuessedGpuNetwork.bytes_per_s / kGiga);
  }
  return out;
}

// Lets `node` take as many ranks as `host` has slots. Ranks that share a GPU have a part of it.
absl::Status GiveSlots(const HostSlots& host, bool staged, parallel::NodeSpec& node) {
  const int sharing = (host.slots - 1) / node.devices + 1;
  if (!node.shared && sharing > 1) {
    if (!staged) {
      return absl::InvalidArgumentError(absl::StrCat(
          "host ", host.host, " has ", host.slots, " slots, but cluster.nodes says that ",
          node.name, " has ", node.devices, node.devices == 1 ? " GPU" : " GPUs",
          ", and NCCL needs one for each rank; give it fewer slots, or --device-comm staged"));
    }
    node.memory_bytes /= sharing;
    node.read_bytes_per_s /= sharing;
    node.matrix_flops_per_s /= sharing;
  }
  node.devices = host.slots;
  return absl::OkStatus();
}

// Ranks start on this machine where no hosts are named, whatever machines are described: an error
// where the layout is planned for those, else a warning.
absl::Status CheckMachinesAreNamed(const ConfigFile& file, const ServiceOptions& options,
                                   bool planned) {
  if (!options.hosts.empty() || !options.hostfile.empty()) return absl::OkStatus();
  int machines = 0;
  for (const v1::NodeConfig& node : file.config.cluster().nodes()) {
    machines += node.has_count() ? node.count() : 1;
  }
  if (machines < 2) return absl::OkStatus();
  const std::string fault = absl::StrCat(
      file.path, ": cluster.nodes describes ", machines,
      " machines, but no hosts are named, so that all ranks start on this one; name the hosts "
      "under cluster.hosts or with --hosts");
  if (planned) return absl::InvalidArgumentError(absl::StrCat(fault, ", or describe one machine"));
  spdlog::warn("{}", fault);
  return absl::OkStatus();
}

// Puts what `text` settles into `plan`.
absl::Status SettleAxes(const std::string& text, parallel::PlanOptions& plan) {
  if (text.empty() || text == "auto") return absl::OkStatus();
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(text);
  if (!layout.ok()) return layout.status();
  const auto settle = [&](const char* axis, int size, int& out) {
    if (absl::StrContains(text, axis)) out = size;
  };
  settle("dp", layout->dp, plan.dp);
  settle("pp", layout->pp, plan.pp);
  settle("sp", layout->sp, plan.sp);
  settle("tp", layout->tp, plan.tp);
  settle("ep", layout->ep, plan.ep);
  return absl::OkStatus();
}

}  // namespace

void AddPlanningOptions(CLI::App& app, PlanningOptions& o) {
  const char* group = "Planning";
  app.add_option("--objective", o.objective, "What to choose a layout for: latency or throughput")
      ->check(CLI::IsMember({"latency", "throughput"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--calibration", o.calibration,
                 "What `phalanx plan --calibrate` measured on these machines (default: the "
                 "configuration's figures)")
      ->group(group);
  app.add_option(
         "--gpu-type", o.gpu_type,
         absl::StrCat("GPUs of each machine, where no --cluster file describes them: ",
                      parallel::GpuTypeNames(), "; 8xh200: eight on one (default: this machine's)"))
      ->group(group);
  const auto count = [&](const char* flag, int64_t& value, const char* help) {
    app.add_option(flag, value, help)
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
        ->capture_default_str()
        ->group(group);
  };
  count("--prompt-tokens", o.prompt_tokens, "Tokens of a prompt, in what the plan is made for");
  count("--output-tokens", o.output_tokens, "Tokens of an answer");
  count("--concurrency", o.concurrency, "Requests under way at once");
}

parallel::ModelSpec MakeModelSpec(const checkpoint::ModelConfig& config, kernels::DType weights,
                                  const std::string& name) {
  parallel::ModelSpec spec;
  spec.name = name;
  spec.shape = model::ShapeOf(config);
  spec.element_bytes = kernels::SizeOf(weights);
  spec.activation_bytes = kernels::SizeOf(kernels::ActivationType(weights));
  spec.qkv_bias = config.qkv_bias;
  spec.o_bias = config.o_bias;
  spec.mlp_bias = config.mlp_bias;
  spec.qk_norm = config.qk_norm;
  spec.shared_expert_gate = config.shared_expert_gate;
  spec.tied_head = config.tie_word_embeddings;
  spec.fine_scales = config.fine_scales;
  spec.max_positions = config.max_position_embeddings;
  spec.windows = config.layer_windows;
  return spec;
}

absl::StatusOr<parallel::ModelSpec> ReadModelSpec(const std::string& directory) {
  const absl::StatusOr<checkpoint::ModelConfig> config = checkpoint::LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(directory, error).lexically_normal();
  const std::string name =
      path.has_filename() ? path.filename().string() : path.parent_path().filename().string();

  kernels::DType weights = kernels::DType::kBF16;
  const auto opened = checkpoint::Checkpoint::Open(directory);
  if (opened.ok()) {
    const checkpoint::ModelConfig& found = (*opened)->config();
    parallel::ModelSpec spec = MakeModelSpec(found, found.weight_dtype, name);
    spec.fp8_matrices = Fp8Matrices(**opened);
    return spec;
  }
  // FP8 is read beside BF16 alone.
  if (config->fp8.has_value()) {
    parallel::ModelSpec spec = MakeModelSpec(*config, weights, name);
    spec.fp8_matrices = Fp8Matrices(*config);
    return spec;
  }
  if (const auto declared = DTypeNamed(config->declared_dtype); declared.has_value()) {
    weights = *declared;
  } else {
    const parallel::ModelSpec spec = MakeModelSpec(*config, weights, name);
    weights = DTypeOfIndex(directory, spec).value_or(weights);
  }
  return MakeModelSpec(*config, weights, name);
}

parallel::DeviceTraits CpuTraits(kernels::DType weights) {
  parallel::DeviceTraits traits;
  traits.leaf_granule = kernels::kDotGroup;
  traits.block_tokens = kernels::kBlockTokens;
  traits.key_granule = weights == kernels::DType::kBF16 ? kernels::kDotGroup : 1;
  traits.logit_rows = model::kLogitRows;
  return traits;
}

parallel::DeviceTraits CudaTraits(kernels::DType weights) {
  const bool bf16 = weights == kernels::DType::kBF16;
  parallel::DeviceTraits traits;
  traits.panel_columns = bf16 ? 16 : 32;
  traits.leaf_granule = kernels::kDotGroup;
  traits.key_granule = bf16 ? kernels::kDotGroup : 1;
  traits.value_granule = bf16 ? 8 : 16;
  traits.block_tokens = kernels::kBlockTokens;
  traits.matmul_rows = 0;
  traits.logit_rows = model::kDeviceLogitRows;
  traits.scratch_bytes = kCudaScratch;
  return traits;
}

absl::Status CheckGpuType(const ConfigFile* file, const RankOptions& rank,
                          const std::string& gpu_type) {
  if (gpu_type.empty()) return absl::OkStatus();
  if (rank.device != "cuda") {
    return absl::InvalidArgumentError("--gpu-type is for --device cuda; give both or neither");
  }
  if (file != nullptr && file->config.cluster().nodes_size() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu-type: ", file->path,
                     " describes the machines already (cluster.nodes); leave one of the two out"));
  }
  return absl::OkStatus();
}

absl::StatusOr<parallel::ClusterSpec> MakeCluster(const ConfigFile* file, const std::string& hosts,
                                                  const RankOptions& rank,
                                                  const std::string& gpu_type) {
  if (absl::Status fits = CheckGpuType(file, rank, gpu_type); !fits.ok()) return fits;
  const bool cuda = rank.device == "cuda";
  parallel::ClusterSpec cluster;
  cluster.threads = rank.threads;
  if (cuda) cluster.memory_share = rank.gpu_memory_fraction;
  cluster.handover_s = kHandover;
  std::vector<HostSlots> named;
  if (!hosts.empty()) {
    absl::StatusOr<std::vector<HostSlots>> parsed = ParseHosts(hosts);
    if (!parsed.ok()) return parsed.status();
    named = *std::move(parsed);
  }
  if (file != nullptr && file->config.cluster().nodes_size() > 0) {
    for (const v1::NodeConfig& node : file->config.cluster().nodes()) {
      if ((node.device() == v1::NodeConfig::DEVICE_CUDA) != cuda) {
        return absl::InvalidArgumentError(absl::StrCat(
            file->path, ": cluster.nodes: ", node.name(), " is described ",
            cuda ? "without device: cuda" : "with device: cuda", ", but ranks are to compute on ",
            rank.device, " (--device, worker.device); say the same in both"));
      }
      const int count = node.has_count() ? node.count() : 1;
      for (int i = 0; i < count; ++i) cluster.nodes.push_back(FromConfig(node));
    }
    // Hosts say which machines there are, in order, and how many ranks each is given.
    if (named.size() > cluster.nodes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file->path, ": cluster.nodes describes ", cluster.nodes.size(),
                       " machines, but ", named.size(), " hosts are named; describe as many"));
    }
    if (!named.empty()) cluster.nodes.resize(named.size());
    for (size_t i = 0; i < named.size(); ++i) {
      const bool staged = rank.device_comm == "staged";
      absl::Status given = GiveSlots(named[i], staged, cluster.nodes[i]);
      if (!given.ok()) return given;
    }
  } else if (cuda) {
    absl::StatusOr<std::vector<parallel::NodeSpec>> nodes = GpuMachines(named, gpu_type);
    if (!nodes.ok()) return nodes.status();
    cluster.nodes = *std::move(nodes);
  } else if (!named.empty()) {
    for (const HostSlots& host : named) {
      cluster.nodes.push_back(ThisMachine(host.host, host.slots));
    }
  } else {
    cluster.nodes.push_back(ThisMachine(HostName(), 0));
  }
  return cluster;
}

absl::StatusOr<parallel::PlanOptions> MakePlanOptions(const ServiceOptions& options,
                                                      const PlanningOptions& planning,
                                                      const ConfigFile* file) {
  parallel::PlanOptions plan;
  absl::StatusOr<parallel::ModelSpec> spec = ReadModelSpec(options.rank.model);
  if (!spec.ok()) return spec.status();
  plan.model = *std::move(spec);
  if (plan.model.max_positions > 0 && options.rank.max_context > plan.model.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-context ", options.rank.max_context, ": the model was made for at most ",
        plan.model.max_positions, " tokens (max_position_embeddings)"));
  }
  const bool bf16 = plan.model.element_bytes == 2 && plan.model.activation_bytes == 2;
  const kernels::DType weights = bf16 ? kernels::DType::kBF16 : kernels::DType::kF32;
  const absl::StatusOr<kernels::WeightFormat> format = ParseWeightDtype(options.rank.weight_dtype);
  if (!format.ok()) return format.status();
  model::Profile profile;
  profile.weight_format = *format;
  checkpoint::ModelConfig config;
  config.weight_dtype = bf16                            ? kernels::DType::kBF16
                        : plan.model.element_bytes == 2 ? kernels::DType::kF16
                                                        : kernels::DType::kF32;
  if (absl::Status status = profile.HoldWeightsOf(config); !status.ok()) return status;
  // A checkpoint's own codes stay as they are, and so does what is beside them.
  if (kernels::IsFp8(*format) && plan.model.fp8_matrices.empty()) {
    plan.model.fp8_matrices.assign(plan.model.shape.num_layers, parallel::kAllLayerMatrices);
  }
  // A CPU keeps what FP8 is read back as.
  if (options.rank.device != "cuda") plan.model.fp8_matrices.clear();
  const absl::StatusOr<kernels::KvFormat> kv = ParseKvDtype(options.rank.kv_dtype);
  if (!kv.ok()) return kv.status();
  plan.model.fp8_kv = *kv == kernels::KvFormat::kF8E4M3;
  // Memory and times are reckoned alike for both.
  if (absl::Status status = ParseNumerics(options.rank).status(); !status.ok()) return status;
  plan.traits = options.rank.device == "cuda" ? CudaTraits(weights) : CpuTraits(weights);
  std::string hosts = options.hosts;
  if (hosts.empty() && !options.hostfile.empty()) {
    const absl::StatusOr<std::vector<HostSlots>> read = ReadHostfile(options.hostfile);
    if (!read.ok()) return read.status();
    hosts = ToHostList(*read);
  }
  absl::StatusOr<parallel::ClusterSpec> cluster =
      MakeCluster(file, hosts, options.rank, planning.gpu_type);
  if (!cluster.ok()) return cluster.status();
  plan.cluster = *std::move(cluster);
  if (!planning.calibration.empty()) {
    const absl::StatusOr<v1::Calibration> measured = ReadCalibration(planning.calibration);
    if (!measured.ok()) return measured.status();
    if (absl::Status status = Apply(*measured, plan.cluster); !status.ok()) return status;
    if (measured->has_weights() &&
        (measured->weights() == "F32") != (plan.model.element_bytes == 4)) {
      spdlog::warn("{} was measured with {} weights, but the model's have {} bytes each",
                   planning.calibration, measured->weights(), plan.model.element_bytes);
    }
  }
  plan.objective = planning.objective == "throughput" ? parallel::Objective::kThroughput
                                                      : parallel::Objective::kLatency;
  plan.workload = {planning.prompt_tokens, planning.output_tokens, planning.concurrency};
  plan.reduction_leaves = options.rank.reduction_leaves;
  plan.sequence_stripes = options.rank.sequence_stripes;
  plan.max_step_tokens = options.rank.max_step_tokens;
  plan.prefill_chunk = options.prefill_chunk;
  plan.max_sequences = std::min<int64_t>(options.max_sequences, options.rank.max_step_tokens);
  plan.max_positions = options.rank.max_context;
  if (absl::Status status = SettleAxes(options.rank.layout, plan); !status.ok()) return status;
  return plan;
}

void FitWorkload(parallel::PlanOptions& plan) {
  const int64_t context = plan.max_positions > 0 ? plan.max_positions : plan.model.max_positions;
  plan.workload.prompt_tokens =
      std::clamp<int64_t>(context - plan.workload.output_tokens, 1, plan.workload.prompt_tokens);
  plan.workload.output_tokens =
      std::clamp<int64_t>(context - plan.workload.prompt_tokens, 1, plan.workload.output_tokens);
}

absl::StatusOr<parallel::Layout> ChooseLayout(parallel::PlanOptions plan) {
  // A context that the plan's own requests would not fill must not keep a layout from being found.
  FitWorkload(plan);
  const absl::StatusOr<parallel::LayoutPlan> chosen = parallel::PlanLayouts(plan);
  if (!chosen.ok()) return chosen.status();
  spdlog::info("planned: {}", parallel::Reason(plan, *chosen));
  return chosen->candidates[0].layout;
}

absl::Status SettleLayout(const PlanningOptions& planning, ServiceOptions& options) {
  std::optional<ConfigFile> file;
  if (!options.cluster_file.empty()) {
    absl::StatusOr<ConfigFile> read = ReadConfig(options.cluster_file);
    if (!read.ok()) return read.status();
    file = *std::move(read);
  }
  absl::Status fits =
      CheckGpuType(file.has_value() ? &*file : nullptr, options.rank, planning.gpu_type);
  if (!fits.ok()) return fits;
  const bool planned = options.rank.layout == "auto";
  if (file.has_value() && options.workers != "external") {
    absl::Status named = CheckMachinesAreNamed(*file, options, planned);
    if (!named.ok()) return named;
  }
  if (!planned) return absl::OkStatus();
  absl::StatusOr<parallel::PlanOptions> plan =
      MakePlanOptions(options, planning, file.has_value() ? &*file : nullptr);
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<parallel::Layout> chosen = ChooseLayout(*std::move(plan));
  if (!chosen.ok()) {
    return absl::Status(chosen.status().code(),
                        absl::StrCat("--layout auto: ", chosen.status().message()));
  }
  options.rank.layout = chosen->ToString();
  return absl::OkStatus();
}

}  // namespace phalanx::launcher
