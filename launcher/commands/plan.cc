// `phalanx plan`: the layout it would choose, memory and time per rank, and why; starts nothing.

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/calibration.h"
#include "launcher/commands/commands.h"
#include "launcher/config.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"
#include "launcher/measure.h"
#include "launcher/options.h"
#include "launcher/planning.h"
#include "launcher/slurm.h"
#include "parallel/planner.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

using parallel::Candidate;
using parallel::LayoutPlan;
using parallel::PlanOptions;

struct PlanCommandOptions {
  ServiceOptions service;
  PlanningOptions planning;
  std::string calibrate;
  MeasureOptions measure;
  int top = 8;
  bool json = false;
};

// The candidates that are shown: the best of every pp x sp x tp, so that a row is a shape of its
// own and not the last one with another dp.
std::vector<const Candidate*> Shown(const LayoutPlan& plan, int top) {
  std::vector<const Candidate*> out;
  std::set<std::tuple<int, int, int>> seen;
  for (const Candidate& c : plan.candidates) {
    if (!seen.insert({c.layout.pp, c.layout.sp, c.layout.tp}).second) continue;
    out.push_back(&c);
    if (static_cast<int>(out.size()) == top) break;
  }
  return out;
}

// "4 x h100 (8 devices of 80.0 GiB)".
std::string DescribeCluster(const parallel::ClusterSpec& cluster) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < cluster.nodes.size();) {
    const parallel::NodeSpec& node = cluster.nodes[i];
    size_t end = i;
    while (end < cluster.nodes.size() && cluster.nodes[end].name == node.name) ++end;
    const std::string what =
        node.shared ? absl::StrCat(node.cores, node.cores == 1 ? " core, " : " cores, ",
                                   FormatBytes(node.memory_bytes), ", up to ", node.devices,
                                   node.devices == 1 ? " rank" : " ranks")
                    : absl::StrCat(node.devices, node.devices == 1 ? " device of " : " devices of ",
                                   FormatBytes(node.memory_bytes));
    parts.push_back(absl::StrCat(end - i, " x ", node.name, " (", what,
                                 node.measured.empty() ? ", rates as stated)" : ", measured)"));
    i = end;
  }
  return absl::StrJoin(parts, ", ");
}

std::string Seconds(double seconds) {
  if (seconds >= 10) return absl::StrFormat("%.1f s", seconds);
  if (seconds >= 0.1) return absl::StrFormat("%.0f ms", seconds * 1e3);
  return absl::StrFormat("%.2f ms", seconds * 1e3);
}

// Within a hundredth of one another.
bool Alike(const parallel::RankPlan& a, const parallel::RankPlan& b) {
  const auto near = [](int64_t x, int64_t y) {
    return std::abs(static_cast<double>(x - y)) <= 0.01 * static_cast<double>(std::max(x, y));
  };
  return near(a.memory.fixed_bytes(), b.memory.fixed_bytes()) &&
         near(a.memory.embedding_bytes, b.memory.embedding_bytes) &&
         a.memory.kv_block_bytes == b.memory.kv_block_bytes &&
         a.memory.stripes == b.memory.stripes && a.budget_bytes == b.budget_bytes;
}

void PrintTable(const PlanOptions& options, const LayoutPlan& plan, int top) {
  const parallel::ModelSpec& model = options.model;
  const double parameters = static_cast<double>(model.Parameters());
  std::cout << absl::StrFormat(
      "Model     %s: %.1f %s parameters, %d layers, %s\n", model.name,
      parameters >= 1e9 ? parameters / 1e9 : parameters / 1e6,
      parameters >= 1e9 ? "billion" : "million", model.shape.num_layers,
      model.shape.num_experts > 0
          ? absl::StrCat(model.shape.num_experts, " experts, ", model.shape.experts_per_token,
                         " of them for a token")
          : "dense");
  std::cout << "Cluster   " << DescribeCluster(options.cluster) << "\n";
  std::cout << "Workload  " << options.workload.concurrency << " requests at a time, "
            << options.workload.prompt_tokens << " prompt and " << options.workload.output_tokens
            << " output tokens each; for "
            << (options.objective == parallel::Objective::kLatency ? "latency" : "throughput")
            << "\n\n";
  const std::vector<const Candidate*> shown = Shown(plan, top);
  size_t width = 6;
  for (const Candidate* c : shown) width = std::max(width, c->layout.ToString().size());
  std::cout << absl::StrFormat("%-*s %6s %11s %11s %11s %11s %10s %10s %10s %10s  %s\n",
                               static_cast<int>(width), "layout", "ranks", "weights", "workspace",
                               "KV", "free", "1st token", "per token", "request", "tokens/s", "");
  for (const Candidate* c : shown) {
    std::cout << absl::StrFormat(
        "%-*s %6d %11s %11s %11s %11s %10s %10s %10s %10.1f  %s\n", static_cast<int>(width),
        c->layout.ToString(), c->layout.world_size(), FormatBytes(c->memory.weight_bytes),
        FormatBytes(c->memory.workspace_bytes), FormatBytes(c->kv_bytes),
        FormatBytes(c->free_bytes()), Seconds(c->ttft_s), Seconds(c->tpot_s), Seconds(c->request_s),
        c->tokens_per_s, c == shown[0] ? "chosen" : Compare(*shown[0], *c, options.objective));
  }
  std::cout << "\nMemory is of the rank with least room; KV is that of " << shown[0]->sequences
            << " sequences over " << shown[0]->layout.dp
            << (shown[0]->layout.dp == 1 ? " replica" : " replicas") << " in the chosen layout.\n";
  std::cout << Reason(options, plan) << ".\n\n";

  // Ranks that hold about the same share a line: that of the first.
  std::cout << "Ranks of " << (shown[0]->layout.dp > 1 ? "each replica" : "it") << ":\n";
  for (size_t i = 0; i < plan.ranks.size();) {
    const parallel::RankPlan& rank = plan.ranks[i];
    size_t end = i + 1;
    while (end < plan.ranks.size() && Alike(plan.ranks[end], rank)) {
      ++end;
    }
    const std::string ranks =
        end - i == 1 ? absl::StrCat("rank ", rank.rank)
                     : absl::StrCat("ranks ", rank.rank, " to ", plan.ranks[end - 1].rank);
    std::cout << absl::StrFormat(
        "  %-16s weights %s%s, workspace %s, KV block %s x %d of %d stripes; may hold %s\n", ranks,
        FormatBytes(rank.memory.weight_bytes),
        rank.memory.embedding_bytes > 0
            ? absl::StrCat(" (embedding ", FormatBytes(rank.memory.embedding_bytes), ")")
            : "",
        FormatBytes(rank.memory.workspace_bytes), FormatBytes(rank.memory.kv_block_bytes),
        rank.memory.stripes, options.sequence_stripes, FormatBytes(rank.budget_bytes));
    i = end;
  }
}

nlohmann::json ToJson(const parallel::RankMemory& memory) {
  return {{"weight_bytes", memory.weight_bytes},
          {"embedding_bytes", memory.embedding_bytes},
          {"workspace_bytes", memory.workspace_bytes},
          {"kv_block_bytes", memory.kv_block_bytes},
          {"stripes", memory.stripes}};
}

nlohmann::json ToJson(const Candidate& c) {
  nlohmann::json out = {{"layout", c.layout.ToString()},
                        {"axes",
                         {{"dp", c.layout.dp},
                          {"pp", c.layout.pp},
                          {"sp", c.layout.sp},
                          {"tp", c.layout.tp},
                          {"ep", c.layout.ep}}},
                        {"ranks", c.layout.world_size()},
                        {"tp_across_nodes", c.tp_across_nodes},
                        {"memory", ToJson(c.memory)},
                        {"budget_bytes", c.budget_bytes},
                        {"kv_bytes", c.kv_bytes},
                        {"kv_tokens", c.kv_tokens},
                        {"free_bytes", c.free_bytes()},
                        {"sequences", c.sequences},
                        {"time_to_first_token_ms", c.ttft_s * 1e3},
                        {"time_per_token_ms", c.tpot_s * 1e3},
                        {"request_ms", c.request_s * 1e3},
                        {"tokens_per_second", c.tokens_per_s},
                        {"token_time_ms",
                         {{"matmul", c.token_parts.matmul * 1e3},
                          {"attention", c.token_parts.attention * 1e3},
                          {"collectives", c.token_parts.collectives * 1e3},
                          {"other", c.token_parts.other * 1e3},
                          {"waiting", c.bubble_s * 1e3}}}};
  std::vector<double> stages;
  for (const parallel::CostParts& stage : c.decode.stages) stages.push_back(stage.total() * 1e3);
  out["stage_ms"] = stages;
  return out;
}

void PrintJson(const PlanOptions& options, const LayoutPlan& plan, int top) {
  nlohmann::json out;
  out["model"] = {{"name", options.model.name},
                  {"parameters", options.model.Parameters()},
                  {"bytes_per_weight", static_cast<double>(options.model.ParameterBytes()) /
                                           static_cast<double>(options.model.Parameters())}};
  out["cluster"] = {{"devices", options.cluster.devices()},
                    {"nodes", options.cluster.nodes.size()},
                    {"measured", !options.cluster.nodes[0].measured.empty()}};
  out["workload"] = {{"prompt_tokens", options.workload.prompt_tokens},
                     {"output_tokens", options.workload.output_tokens},
                     {"concurrency", options.workload.concurrency}};
  out["objective"] = options.objective == parallel::Objective::kLatency ? "latency" : "throughput";
  out["tried"] = plan.tried;
  out["fit"] = plan.candidates.size();
  out["reason"] = Reason(options, plan);
  const std::vector<const Candidate*> shown = Shown(plan, top);
  out["chosen"] = ToJson(*shown[0]);
  for (const Candidate* c : shown) {
    nlohmann::json row = ToJson(*c);
    if (c != shown[0]) row["against_chosen"] = Compare(*shown[0], *c, options.objective);
    out["candidates"].push_back(row);
  }
  for (const parallel::RankPlan& rank : plan.ranks) {
    nlohmann::json row = ToJson(rank.memory);
    row["rank"] = rank.rank;
    row["node"] = options.cluster.nodes[rank.node].name;
    row["budget_bytes"] = rank.budget_bytes;
    out["ranks"].push_back(row);
  }
  std::cout << out.dump() << "\n";
}

absl::Status RunPlan(const CLI::App& flags, PlanCommandOptions& options) {
  // The file's layout is what `serve` would take; here it is what is asked for.
  const std::string layout = options.service.rank.layout;
  std::optional<ConfigFile> file;
  if (!options.service.cluster_file.empty()) {
    absl::StatusOr<ConfigFile> read = ReadConfig(options.service.cluster_file);
    if (!read.ok()) return read.status();
    file = *std::move(read);
    file->config.clear_layout();
    absl::Status applied = ApplyConfig(*file, flags, options.service, /*serving=*/nullptr);
    if (!applied.ok()) return applied;
  }
  options.service.rank.layout = layout;
  // Machines that are described say what ranks would compute on, where nothing else does.
  if (file.has_value() && file->config.worker().device() == v1::WorkerConfig::DEVICE_UNSPECIFIED &&
      flags.get_option("--device")->count() == 0 && file->config.cluster().nodes_size() > 0 &&
      file->config.cluster().nodes(0).device() == v1::NodeConfig::DEVICE_CUDA) {
    options.service.rank.device = "cuda";
  }
  if (absl::Status fit = CheckDeviceFlags(flags, options.service.rank); !fit.ok()) return fit;
  // Where nothing describes the machines, they are those that `serve` would use.
  if (options.planning.gpu_type.empty() &&
      (!file.has_value() || file->config.cluster().nodes_size() == 0)) {
    absl::Status settled = SettleHosts(ReadEnvironment(), options.service);
    if (!settled.ok()) return settled;
  }
  if (!options.calibrate.empty()) {
    if (options.service.rank.device == "cuda") {
      return absl::InvalidArgumentError(
          "--calibrate measures CPUs; leave it out with --device cuda and describe the GPUs in a "
          "--cluster file under cluster.nodes");
    }
    if (absl::Status can = CheckCalibrationCanBeWritten(options.calibrate); !can.ok()) return can;
    options.measure.cpu_path = options.service.rank.cpu_path;
    options.measure.threads = options.service.rank.threads;
    options.measure.hosts = options.service.hosts;
    options.measure.mpirun = options.service.mpirun;
    const absl::StatusOr<v1::Calibration> measured = Measure(options.measure);
    if (!measured.ok()) return measured.status();
    absl::Status written = WriteCalibration(*measured, options.calibrate);
    if (!written.ok()) return written;
    spdlog::info("written to {}", options.calibrate);
    options.planning.calibration = options.calibrate;
    if (flags.get_option("--model")->count() == 0) return absl::OkStatus();
  }
  if (options.service.rank.model.empty()) {
    return absl::InvalidArgumentError(
        "--model is missing; give it, or a --cluster file with a model");
  }
  absl::StatusOr<PlanOptions> plan_options =
      MakePlanOptions(options.service, options.planning, file.has_value() ? &*file : nullptr);
  if (!plan_options.ok()) return plan_options.status();
  // Requests that nobody asked for fit any context.
  if (flags.get_option("--prompt-tokens")->count() == 0 &&
      flags.get_option("--output-tokens")->count() == 0) {
    FitWorkload(*plan_options);
  }
  const absl::StatusOr<LayoutPlan> plan = parallel::PlanLayouts(*plan_options);
  if (!plan.ok()) return plan.status();
  if (options.json) {
    PrintJson(*plan_options, *plan, options.top);
  } else {
    PrintTable(*plan_options, *plan, options.top);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand(
      "plan", "The layout that would be chosen, its memory and times, and why; starts nothing");
  auto options = std::make_shared<PlanCommandOptions>();
  ServiceOptions& service = options->service;
  service.rank.layout = "auto";
  app->add_option("--model", service.rank.model,
                  "Hugging Face directory; config.json and the index are all that is read");
  app->add_option("--cluster", service.cluster_file,
                  "YAML that describes the machines (default: --hosts)");
  app->add_option("--layout", service.rank.layout,
                  "Axes that are settled, e.g. tp=8; the others are planned")
      ->capture_default_str();
  app->add_option("--hosts", service.hosts,
                  "Hosts and their ranks, a:2,b:2, like this machine (default: the Slurm "
                  "allocation, else this machine)")
      ->check(CheckGiven);
  app->add_option("--threads", service.rank.threads,
                  "Compute threads per rank on CPUs (default: cores / ranks)")
      ->check(CLI::Range(1, 1024));
  app->add_option("--cpu-path", service.rank.cpu_path,
                  "With --calibrate: portable, avx2, avx512 or amx (default: the fastest)");
  AddDeviceOptions(*app, service.rank);
  AddPlanningOptions(*app, options->planning);
  const char* engine = "Engine";
  app->add_option("--max-step-tokens", service.rank.max_step_tokens, "Rows of one step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->group(engine);
  app->add_option("--prefill-chunk", service.prefill_chunk,
                  "Prompt tokens of one request in a step (default: --max-step-tokens)")
      ->check(CLI::NonNegativeNumber)
      ->group(engine);
  app->add_option("--max-sequences", service.max_sequences, "Sequences in one step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(engine);
  app->add_option("--max-context", service.rank.max_context,
                  "Tokens of prompt and answer (default: the model's)")
      ->check(CLI::NonNegativeNumber)
      ->group(engine);
  AddNumericsOptions(*app, service.rank, engine);
  app->add_option("--reduction-leaves", service.rank.reduction_leaves,
                  "Of the profile: tp is at most this")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(engine);
  app->add_option("--sequence-stripes", service.rank.sequence_stripes,
                  "Of the profile: sp is at most this")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(engine);
  const char* calibration = "Calibration";
  app->add_option("--calibrate", options->calibrate,
                  "Measure these machines into this file first, then plan with it (with --model)")
      ->group(calibration);
  app->add_option("--calibrate-ranks", options->measure.max_ranks,
                  "Ranks at once, at most, that are measured (default: twice the cores, up to 8)")
      ->check(CLI::Range(1, 64))
      ->group(calibration);
  app->add_flag("--quick", options->measure.quick, "Measure less exactly, in seconds")
      ->group(calibration);
  app->add_option("--mpirun", service.mpirun, "mpirun, with --calibrate --hosts")
      ->capture_default_str()
      ->group(calibration);
  app->add_option("--top", options->top, "Layouts to show")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_flag("--json", options->json, "One JSON object");
  app->callback([app, options, run] {
    *run = [app, options] {
      const absl::Status status = RunPlan(*app, *options);
      return status.ok() ? kExitDone : Fail("plan", status);
    };
  });
}

}  // namespace phalanx::launcher
