#include "launcher/config.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "google/protobuf/descriptor.h"
#include "launcher/machine.h"
#include "launcher/nccl_settings.h"
#include "launcher/yaml_reader.h"
#include "parallel/gpu_types.h"
#include "parallel/mesh.h"

namespace phalanx::launcher {
namespace {

using google::protobuf::EnumDescriptor;

bool IsHostName(const std::string& name) {
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
  });
}

bool IsVariableName(const std::string& name) {
  return !absl::ascii_isdigit(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return absl::ascii_isalnum(c) || c == '_'; });
}

void CheckNodes(const v1::ClusterConfig& cluster, YamlFaults& reader) {
  const auto& nodes = cluster.nodes();
  if (reader.Given("cluster.nodes") && nodes.empty()) {
    reader.FaultAt("cluster.nodes", "describe at least one machine, or leave the key out");
  }
  int64_t machines = 0;
  for (const v1::NodeConfig& node : nodes) machines += node.has_count() ? node.count() : 1;
  for (int i = 0; i < nodes.size(); ++i) {
    const std::string path = absl::StrCat("cluster.nodes[", i, "]");
    const bool cuda = nodes[i].device() == v1::NodeConfig::DEVICE_CUDA;
    const bool typed = nodes[i].has_gpu_type();
    std::vector<std::string> needed = {"name"};
    if (!typed) needed.insert(needed.end(), {"memory_bytes", "read_gb_per_s", "matrix_tflops"});
    needed.push_back(cuda ? "devices" : "cores");
    if (!typed && cuda && nodes[i].devices() > 1) {
      needed.insert(needed.end(), {"link_us", "link_gb_per_s"});
    }
    if (typed && !cuda) {
      reader.FaultAt(path + ".gpu_type", "needs device: cuda beside it");
    } else if (typed && parallel::FindGpuType(nodes[i].gpu_type()) == nullptr) {
      reader.FaultAt(path + ".gpu_type",
                     absl::StrCat("expected ", parallel::GpuTypeNames(), ", found ",
                                  Quoted(nodes[i].gpu_type()),
                                  "; others are described by memory_bytes, read_gb_per_s, "
                                  "matrix_tflops, link_us and link_gb_per_s"));
    }
    if (machines > 1) needed.insert(needed.end(), {"network_us", "network_gb_per_s"});
    std::vector<std::string> missing;
    for (const std::string& key : needed) {
      if (!reader.Given(absl::StrCat(path, ".", key))) missing.push_back(key);
    }
    if (!missing.empty()) {
      reader.FaultAt(
          path, absl::StrCat(absl::StrJoin(missing, ", "),
                             missing.size() == 1 ? " is missing" : " are missing",
                             cuda && !typed
                                 ? absl::StrCat(" (or gpu_type: ", parallel::GpuTypeNames(), ")")
                                 : ""));
    }
    if (cuda && reader.Given(path + ".cores")) {
      reader.FaultAt(path + ".cores", "has no effect where device is cuda; remove one of the two");
    }
  }
  if (!nodes.empty() && !cluster.hosts().empty() && machines != cluster.hosts_size()) {
    reader.FaultAt("cluster.nodes",
                   absl::StrCat("describes ", machines, machines == 1 ? " machine" : " machines",
                                ", but cluster.hosts names ", cluster.hosts_size(),
                                "; describe each host, in the same order"));
  }
}

// Fields of GPUs beside what makes them void.
void CheckGpuFields(const v1::Config& config, YamlFaults& reader) {
  CheckNccl(config.cluster().nccl(), reader);
  const auto without_effect = [&reader](const std::string& path, const char* where) {
    if (!reader.Given(path)) return;
    reader.FaultAt(path, absl::StrCat("has no effect where ", where, "; remove one of the two"));
  };
  if (config.worker().device() == v1::WorkerConfig::DEVICE_CPU) {
    for (const char* path : {"worker.device_comm", "worker.gpu_memory_fraction", "cluster.nccl"}) {
      without_effect(path, "worker.device is cpu");
    }
    if (config.worker().profile().numerics() == v1::WorkerConfig::Profile::NUMERICS_FAST) {
      reader.FaultAt("worker.profile.numerics",
                     "fast is of GPUs alone; write worker.device: cuda, or leave numerics exact");
    }
  }
  if (config.worker().device_comm() == v1::WorkerConfig::DEVICE_COMM_STAGED) {
    without_effect("cluster.nccl", "worker.device_comm is staged");
  }
  const auto environment = NcclEnvironment(config.cluster().nccl());
  const v1::LauncherConfig& launcher = config.cluster().launcher();
  for (int i = 0; i < launcher.pass_environment_size(); ++i) {
    if (environment.count(launcher.pass_environment(i)) == 0) continue;
    reader.FaultAt(absl::StrCat("cluster.launcher.pass_environment[", i, "]"),
                   absl::StrCat(launcher.pass_environment(i),
                                " is set by cluster.nccl already; remove one of the two"));
  }
}

// What the schema alone can't say.
void CheckTogether(const v1::Config& config, YamlFaults& reader) {
  const auto& hosts = config.cluster().hosts();
  std::set<std::string> names;
  for (int i = 0; i < hosts.size(); ++i) {
    const std::string path = absl::StrCat("cluster.hosts[", i, "]");
    const std::string name_path = path + ".name";
    if (!reader.Given(name_path)) {
      reader.FaultAt(path, "the host's name is missing");
    } else if (!IsHostName(hosts[i].name())) {
      reader.FaultAt(name_path, absl::StrCat(Quoted(hosts[i].name()),
                                             " is not a host's name: letters, digits, '.', '-' "
                                             "and '_'; ranks per host are written as slots"));
    } else if (hosts[i].has_name() && !names.insert(hosts[i].name()).second) {
      reader.FaultAt(name_path, absl::StrCat("the host ", hosts[i].name(),
                                             " is given twice; add up its slots"));
    }
  }
  if (reader.Given("cluster.hosts") && hosts.empty()) {
    reader.FaultAt("cluster.hosts", "name at least one host, or leave the key out");
  }
  CheckNodes(config.cluster(), reader);
  const v1::LauncherConfig& launcher = config.cluster().launcher();
  for (int i = 0; i < launcher.pass_environment_size(); ++i) {
    const std::string& name = launcher.pass_environment(i);
    if (!IsVariableName(name)) {
      reader.FaultAt(absl::StrCat("cluster.launcher.pass_environment[", i, "]"),
                     absl::StrCat(Quoted(name), " is not the name of an environment variable"));
    }
  }
  std::vector<std::string> unused;
  if (launcher.kind() == v1::LauncherConfig::KIND_THREADS) {
    unused = {"control.listen", "control.start_timeout_ms", "control.step_timeout_ms",
              "cluster.nccl"};
  }
  if (launcher.kind() == v1::LauncherConfig::KIND_THREADS ||
      launcher.kind() == v1::LauncherConfig::KIND_EXTERNAL) {
    unused.insert(unused.end(),
                  {"cluster.hosts", "cluster.launcher.mpirun_path", "cluster.launcher.extra_args",
                   "cluster.launcher.pass_environment", "cluster.launcher.binding"});
  }
  // srun hands on the whole environment.
  if (launcher.kind() == v1::LauncherConfig::KIND_SRUN) {
    unused.insert(unused.end(),
                  {"cluster.launcher.mpirun_path", "cluster.launcher.pass_environment"});
  }
  for (const std::string& path : unused) {
    if (!reader.Given(path)) continue;
    const std::string kind =
        YamlName(*v1::LauncherConfig::Kind_descriptor()->FindValueByNumber(launcher.kind()));
    reader.FaultAt(path, absl::StrCat("has no effect where cluster.launcher.kind is ", kind,
                                      "; remove one of the two"));
  }
  CheckGpuFields(config, reader);
}

// Whether the command line gives the flag; false where the command has no such flag.
bool Given(const CLI::App& flags, const std::string& name) {
  const CLI::Option* option = flags.get_option_no_throw(name);
  return option != nullptr && option->count() > 0;
}

std::string LayoutText(const v1::LayoutConfig& layout) {
  std::vector<std::string> axes;
  if (layout.has_tp()) axes.push_back(absl::StrCat("tp=", layout.tp()));
  if (layout.has_pp()) axes.push_back(absl::StrCat("pp=", layout.pp()));
  if (layout.has_sp()) axes.push_back(absl::StrCat("sp=", layout.sp()));
  if (layout.has_ep()) axes.push_back(absl::StrCat("ep=", layout.ep()));
  if (layout.has_dp()) axes.push_back(absl::StrCat("dp=", layout.dp()));
  return absl::StrJoin(axes, ",");
}

template <typename E>
std::string EnumText(const EnumDescriptor* type, E value) {
  return YamlName(*type->FindValueByNumber(static_cast<int>(value)));
}

double Seconds(int64_t milliseconds) { return static_cast<double>(milliseconds) / 1000; }

absl::Status ApplyHosts(const ConfigFile& file, ServiceOptions& options) {
  int64_t slots = 0;
  std::vector<std::string> hosts;
  for (const v1::HostConfig& host : file.config.cluster().hosts()) {
    const int here = host.has_slots() ? host.slots() : 1;
    slots += here;
    hosts.push_back(absl::StrCat(host.name(), ":", here));
  }
  // A layout that doesn't parse is reported where it is used.
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.rank.layout);
  if (layout.ok() && layout->world_size() > slots) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.positions.at("cluster.hosts"), ": cluster.hosts: ", slots,
        slots == 1 ? " slot" : " slots", " for the ", layout->world_size(), " ranks of layout ",
        layout->ToString(), "; add hosts or slots, or take a smaller layout"));
  }
  options.hosts = absl::StrJoin(hosts, ",");
  // Named hosts are meant to be used even where the layout is a single rank.
  if (options.workers == "auto") options.workers = "mpirun";
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ConfigFile> ParseConfig(const std::string& text, const std::string& path) {
  ConfigFile file;
  file.path = path;
  YamlFaults faults(path);
  if (absl::Status status = ReadYaml(text, path, file.config, faults); !status.ok()) return status;
  CheckTogether(file.config, faults);
  if (absl::Status status = faults.status(); !status.ok()) return status;
  file.positions = faults.positions();
  return file;
}

absl::StatusOr<ConfigFile> ReadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, absl::StrCat("--cluster ", path));
  if (!text.ok()) return text.status();
  return ParseConfig(*text, path);
}

absl::Status ApplyConfig(const ConfigFile& file, const CLI::App& flags, ServiceOptions& options,
                         ServingOptions* serving) {
  const v1::Config& config = file.config;
  // Sets what the file gives unless the command line gives `flag`.
  const auto apply = [&flags](bool in_file, const char* flag, auto& option, auto value) {
    if (in_file && !Given(flags, flag)) option = std::move(value);
  };
  RankOptions& rank = options.rank;
  // Absolute, since ranks on other hosts may start in another directory.
  apply(config.has_model(), "--model", rank.model,
        (std::filesystem::absolute(file.path).parent_path() / config.model()).string());
  const std::string layout = LayoutText(config.layout());
  apply(!layout.empty(), "--layout", rank.layout, layout);

  const v1::WorkerConfig& worker = config.worker();
  const std::string device = EnumText(v1::WorkerConfig::Device_descriptor(), worker.device());
  apply(!device.empty(), "--device", rank.device, device);
  const std::string device_comm =
      EnumText(v1::WorkerConfig::DeviceComm_descriptor(), worker.device_comm());
  apply(!device_comm.empty(), "--device-comm", rank.device_comm, device_comm);
  apply(worker.has_gpu_memory_fraction(), "--gpu-memory-fraction", rank.gpu_memory_fraction,
        worker.gpu_memory_fraction());
  const std::string cpu_path = EnumText(v1::WorkerConfig::CpuPath_descriptor(), worker.cpu_path());
  apply(!cpu_path.empty(), "--cpu-path", rank.cpu_path, cpu_path);
  apply(worker.has_threads(), "--threads", rank.threads, worker.threads());
  apply(worker.has_kv_cache_bytes(), "--kv-memory", rank.kv_memory,
        absl::StrCat(worker.kv_cache_bytes()));
  const v1::WorkerConfig::Profile& profile = worker.profile();
  const std::string numerics =
      EnumText(v1::WorkerConfig::Profile::Numerics_descriptor(), profile.numerics());
  apply(!numerics.empty(), "--numerics", rank.numerics, numerics);
  const std::string weight_dtype =
      EnumText(v1::WorkerConfig::Profile::WeightDtype_descriptor(), profile.weight_dtype());
  apply(!weight_dtype.empty(), "--weight-dtype", rank.weight_dtype, weight_dtype);
  const std::string kv_dtype =
      EnumText(v1::WorkerConfig::Profile::KvDtype_descriptor(), profile.kv_dtype());
  apply(!kv_dtype.empty(), "--kv-dtype", rank.kv_dtype, kv_dtype);
  apply(profile.has_reduction_leaves(), "--reduction-leaves", rank.reduction_leaves,
        profile.reduction_leaves());
  apply(profile.has_sequence_stripes(), "--sequence-stripes", rank.sequence_stripes,
        profile.sequence_stripes());

  const v1::SchedulerConfig& scheduler = config.scheduler();
  apply(scheduler.has_max_step_tokens(), "--max-step-tokens", rank.max_step_tokens,
        scheduler.max_step_tokens());
  apply(scheduler.has_max_running_sequences(), "--max-sequences", options.max_sequences,
        scheduler.max_running_sequences());
  apply(scheduler.has_max_waiting_requests(), "--max-queue", options.max_queue,
        scheduler.max_waiting_requests());
  apply(scheduler.has_prefill_chunk_tokens(), "--prefill-chunk", options.prefill_chunk,
        scheduler.prefill_chunk_tokens());
  apply(scheduler.has_max_context_length(), "--max-context", rank.max_context,
        scheduler.max_context_length());
  apply(scheduler.has_prefix_cache(), "--prefix-reuse", options.prefix_reuse,
        scheduler.prefix_cache());

  const v1::LauncherConfig& launcher = config.cluster().launcher();
  const std::string kind = EnumText(v1::LauncherConfig::Kind_descriptor(), launcher.kind());
  apply(!kind.empty(), "--workers", options.workers, kind);
  apply(launcher.has_mpirun_path(), "--mpirun", options.mpirun, launcher.mpirun_path());
  const std::vector<std::string> arguments(launcher.extra_args().begin(),
                                           launcher.extra_args().end());
  const bool srun = launcher.kind() == v1::LauncherConfig::KIND_SRUN;
  apply(!arguments.empty() && !srun, "--mpirun-arg", options.mpirun_args, arguments);
  apply(!arguments.empty() && srun, "--srun-arg", options.srun_args, arguments);
  const std::string binding =
      EnumText(v1::LauncherConfig::Binding_descriptor(), launcher.binding());
  apply(!binding.empty(), "--binding", options.binding, binding);
  options.rank_environment = NcclEnvironment(config.cluster().nccl());
  for (const std::string& name : launcher.pass_environment()) {
    options.mpirun_args.insert(options.mpirun_args.end(), {"-x", name});
  }

  const v1::ControlConfig& control = config.control();
  apply(control.has_listen(), "--control-listen", options.control_listen, control.listen());
  apply(control.has_start_timeout_ms(), "--start-timeout", options.start_timeout,
        Seconds(control.start_timeout_ms()));
  apply(control.has_step_timeout_ms(), "--step-timeout", options.step_timeout,
        Seconds(control.step_timeout_ms()));

  if (serving != nullptr) {
    const v1::ServiceConfig& service = config.service();
    apply(config.has_model_name(), "--model-name", serving->model_name, config.model_name());
    apply(service.has_listen(), "--listen", serving->listen, service.listen());
    apply(service.has_max_request_bytes(), "--max-request-bytes", serving->max_request_bytes,
          service.max_request_bytes());
    apply(service.has_drain_timeout_ms(), "--grace", serving->grace,
          Seconds(service.drain_timeout_ms()));
  }

  const bool processes = options.workers != "threads" && options.workers != "external";
  if (config.cluster().hosts().empty() || !processes || Given(flags, "--hosts") ||
      Given(flags, "--hostfile")) {
    return absl::OkStatus();
  }
  return ApplyHosts(file, options);
}

absl::Status ApplyClusterFile(const CLI::App& flags, ServiceOptions& options,
                              ServingOptions* serving) {
  if (!options.cluster_file.empty()) {
    const absl::StatusOr<ConfigFile> file = ReadConfig(options.cluster_file);
    if (!file.ok()) return file.status();
    absl::Status applied = ApplyConfig(*file, flags, options, serving);
    if (!applied.ok()) return applied;
  }
  if (absl::Status fit = CheckDeviceFlags(flags, options.rank); !fit.ok()) return fit;
  options.hosts_are_named = !options.hosts.empty() || !options.hostfile.empty();
  if (options.hosts_are_named && options.workers == "threads") {
    return absl::InvalidArgumentError(absl::StrCat(
        options.hosts.empty() ? "--hostfile" : "--hosts",
        " has no effect with --workers threads, which are all of this process; leave one out"));
  }
  if (!options.rank.model.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      options.cluster_file.empty()
          ? "--model is missing; give it, or a --cluster file with a model"
          : absl::StrCat(options.cluster_file, ": model is missing; add it, or give --model"));
}

}  // namespace phalanx::launcher
