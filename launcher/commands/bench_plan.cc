// `phalanx bench plan`: what the planner's cost model says of a step against what a step takes.

#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "launcher/calibration.h"
#include "launcher/commands/bench.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"
#include "launcher/measure.h"
#include "launcher/planning.h"
#include "launcher/random_checkpoint.h"
#include "launcher/scratch_directory.h"
#include "launcher/statistics.h"
#include "parallel/cost_model.h"
#include "runtime/cache/block_striping.h"
#include "runtime/worker/in_process_group.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

using parallel::CostParts;
using parallel::Layout;

struct PlanBenchOptions {
  std::string calibration;
  std::vector<std::string> models;  // directories; empty: two of random weights
  std::vector<std::string> layouts;
  int repeats = 9;
  bool quick = false;
  bool json = false;
};

// One plan's shape. Prefill: `sequences` chunks of `rows_each` rows from `start` on.
struct Shape {
  const char* name;
  int64_t sequences;
  int64_t rows_each;
  int64_t start;  // tokens of context before the rows
};

constexpr Shape kShapes[] = {{"decode 1", 1, 1, 255},
                             {"decode 8", 8, 1, 511},
                             {"decode 48", 48, 1, 255},
                             {"prefill 128", 1, 128, 128}};

// Plans of one timing, of as many as are out at once: a full pipeline is timed over its filling and
// some more.
constexpr int kRounds = 2;
constexpr int64_t kMaxRows = 512;
constexpr int64_t kMaxContext = 2048;
constexpr int64_t kBlocks = 400;  // of each rank: what the largest shape needs
constexpr int64_t kFilled = 512;  // context tokens that are computed once

constexpr char kDense[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "hidden_size": 1024, "intermediate_size": 1536, "num_hidden_layers": 8,
  "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8192,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
  "torch_dtype": "bfloat16"})";
constexpr char kExperts[] = R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
  "hidden_size": 512, "intermediate_size": 1536, "moe_intermediate_size": 384,
  "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
  "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": true, "decoder_sparse_step": 1,
  "mlp_only_layers": [], "vocab_size": 8192, "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "hidden_act": "silu",
  "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"})";

const std::vector<std::string>& DefaultLayouts(bool experts) {
  static const auto* dense = new std::vector<std::string>{
      "tp=1", "tp=2", "tp=3", "tp=4",      "tp=8",      "sp=2",     "sp=4",
      "pp=2", "pp=3", "pp=4", "pp=2,tp=2", "sp=2,tp=2", "pp=2,sp=2"};
  static const auto* moe = new std::vector<std::string>{
      "tp=1", "tp=2,ep=2",      "tp=2,ep=1",      "tp=4,ep=4", "tp=4,ep=2",     "sp=2,ep=2",
      "pp=2", "sp=2,tp=2,ep=4", "sp=2,tp=2,ep=2", "pp=4",      "pp=2,tp=2,ep=2"};
  return experts ? *moe : *dense;
}

struct Row {
  std::string model;
  Layout layout;
  std::string shape;
  int in_flight = 1;
  double predicted_ms = 0;  // with the calibration of the run's start
  double again_ms = 0;      // with rates measured right before and after the steps
  double measured_ms = 0;
  double least_ms = 0;
  double most_ms = 0;
  CostParts parts;  // of the prediction

  double Error() const { return predicted_ms / measured_ms - 1; }
  double ErrorAgain() const { return again_ms / measured_ms - 1; }
};

// A worker group of threads that takes plans and tells when each was done.
class Runner {
 public:
  Runner(const std::string& directory, const Layout& layout, int threads) {
    options_.model_directory = directory;
    options_.layout = layout;
    options_.device.cpu.threads = threads;
    options_.max_step_tokens = kMaxRows;
    options_.max_positions = kMaxContext;
    options_.kv_blocks = kBlocks;
    group_ = worker::CreateInProcessGroup(options_);
  }
  ~Runner() { group_->Stop(); }

  absl::Status Start() {
    const auto info = group_->Start([this](const absl::StatusOr<scheduler::StepResult>& result) {
      absl::MutexLock lock(&mutex_);
      if (!result.ok() && failure_.ok()) failure_ = result.status();
      ++results_;
    });
    return info.status();
  }

  // Fills the KV blocks that shapes read: one sequence is computed, the others' blocks are copies
  // of its.
  absl::Status Fill(int64_t vocab) {
    const cache::BlockStriping striping(options_.layout.sp, options_.profile.sequence_stripes);
    const Shape all = {"", 1, kFilled, 0};
    scheduler::StepPlan plan = MakePlan(all, vocab);
    plan.sequences[0].samples.clear();
    const std::vector<int32_t> from = plan.sequences[0].block_table;
    if (absl::Status status = group_->Submit(std::move(plan)); !status.ok()) return status;
    plan = MakePlan({"", 1, 1, 0}, vocab);
    for (int rank = 0; rank < options_.layout.sp; ++rank) {
      std::vector<int32_t> own;
      for (size_t b = 0; b < from.size(); ++b) {
        if (striping.RankOf(static_cast<int64_t>(b)) == rank) own.push_back(from[b]);
      }
      for (int64_t b = static_cast<int64_t>(own.size()); b < kBlocks; ++b) {
        plan.copies.push_back({own[b % own.size()], static_cast<int32_t>(rank * kBlocks + b)});
      }
    }
    if (absl::Status status = group_->Submit(std::move(plan)); !status.ok()) return status;
    return WaitFor(2);
  }

  // Seconds of `count` plans of the shape with at most `in_flight` out at once.
  absl::StatusOr<double> Run(const Shape& shape, int count, int in_flight, int64_t vocab) {
    std::vector<scheduler::StepPlan> plans;
    plans.reserve(count);
    for (int i = 0; i < count; ++i) plans.push_back(MakePlan(shape, vocab));
    const absl::Time begin = absl::Now();
    int64_t submitted = 0;
    int64_t first = 0;
    {
      absl::MutexLock lock(&mutex_);
      first = results_;
    }
    for (scheduler::StepPlan& plan : plans) {
      if (absl::Status status = WaitFor(first + submitted - in_flight + 1); !status.ok()) {
        return status;
      }
      if (absl::Status status = group_->Submit(std::move(plan)); !status.ok()) return status;
      ++submitted;
    }
    if (absl::Status status = WaitFor(first + submitted); !status.ok()) return status;
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  absl::Status WaitFor(int64_t results) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return results_ >= results || !failure_.ok();
    };
    mutex_.Await(absl::Condition(&there));
    return failure_;
  }

  // Every plan has tokens of its own, so that its experts are drawn anew.
  scheduler::StepPlan MakePlan(const Shape& shape, int64_t vocab) {
    const int sp = options_.layout.sp;
    const cache::BlockStriping striping(sp, options_.profile.sequence_stripes);
    std::vector<int64_t> used(sp, 0);
    scheduler::StepPlan plan;
    plan.epoch = 1;
    plan.number = ++number_;
    for (int64_t s = 0; s < shape.sequences; ++s) {
      scheduler::SequenceStep step;
      step.sequence_id = s + 1;
      step.start = static_cast<int32_t>(shape.start);
      for (int64_t i = 0; i < shape.rows_each; ++i) {
        step.token_ids.push_back(static_cast<int32_t>(random_() % vocab));
      }
      const int64_t tokens = shape.start + shape.rows_each;
      for (int64_t b = 0; b * kernels::kBlockTokens < tokens; ++b) {
        const int rank = striping.RankOf(b);
        step.block_table.push_back(static_cast<int32_t>(rank * kBlocks + used[rank]++));
      }
      step.samples = {{step.sequence_id, 0}};
      step.sampling.temperature = 0;
      step.prompt_length = static_cast<int32_t>(tokens);
      plan.sequences.push_back(std::move(step));
    }
    return plan;
  }

  worker::WorkerOptions options_;
  std::unique_ptr<coordinator::WorkerGroup> group_;
  std::mt19937 random_{7};
  uint64_t number_ = 0;
  absl::Mutex mutex_;
  int64_t results_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

parallel::StepShape ToStepShape(const Shape& shape) {
  parallel::StepShape out;
  out.rows = static_cast<double>(shape.sequences * shape.rows_each);
  out.sequences = out.logit_rows = static_cast<double>(shape.sequences);
  out.context = static_cast<double>(shape.start) + static_cast<double>(shape.rows_each + 1) / 2;
  return out;
}

// A step shape with so many plans in the pipeline.
struct Case {
  const Shape* shape;
  int in_flight;
  std::vector<double> seconds;  // of one plan
};

// Seconds of one plan, as Runner::Run counts them.
double PredictedSeconds(const parallel::CostModel& cost, const Case& c) {
  const parallel::StepShape shape = ToStepShape(*c.shape);
  const double alone = cost.Step(shape, 0, 1, 1).Latency();
  if (c.in_flight == 1) return alone;
  // A pipeline's first plan takes its whole way, each later one a slot.
  const double plans = kRounds * c.in_flight;
  return (alone + (plans - 1) * cost.Slot(shape, 0, c.in_flight, 1)) / plans;
}

// The cluster with the rates that matter for `cases` measured anew.
absl::StatusOr<parallel::ClusterSpec> MeasuredAnew(const v1::Calibration& calibration,
                                                   parallel::ClusterSpec cluster,
                                                   const Layout& layout, int threads,
                                                   const std::vector<Case>& cases) {
  v1::Calibration fresh;
  std::set<int> seen;
  for (const Case& c : cases) {
    const int running = layout.group_size() * std::min(c.in_flight, layout.pp) / layout.pp;
    if (!seen.insert(running).second) continue;
    kernels::CpuOptions cpu;
    cpu.threads = threads;
    absl::StatusOr<v1::RateMeasurement> rates =
        MeasureRatesHere(running, cpu, {.rounds = 5, .max_rows = 128});
    if (!rates.ok()) return rates.status();
    *fresh.add_rates() = *std::move(rates);
  }
  *fresh.mutable_collectives() = calibration.collectives();
  fresh.set_handover_us(calibration.handover_us());
  cluster.collectives.clear();
  if (absl::Status status = Apply(fresh, cluster); !status.ok()) return status;
  return cluster;
}

absl::Status BenchLayout(const PlanBenchOptions& options, const std::string& directory,
                         const parallel::ModelSpec& spec, const v1::Calibration& calibration,
                         parallel::ClusterSpec cluster, const std::string& layout_text,
                         std::vector<Row>& rows) {
  const absl::StatusOr<Layout> layout = parallel::ParseLayout(layout_text);
  if (!layout.ok()) return layout.status();
  const parallel::DeviceTraits traits = CpuTraits(kernels::DType::kBF16);
  absl::Status check = parallel::DecoderShards::Check(spec.shape, *layout, 8, 8);
  if (!check.ok()) return check;
  const parallel::DecoderShards shards(spec.shape, *layout, 8, 8);
  cluster.nodes[0].devices = std::max(cluster.nodes[0].devices, layout->group_size());
  const auto placement = parallel::Placement::Make(cluster, shards.layout(), false);
  const int threads = cluster.ThreadsOn(cluster.nodes[0], layout->group_size());

  std::vector<Case> cases;
  for (const Shape& shape : kShapes) {
    cases.push_back({&shape, 1, {}});
    if (layout->pp > 1 && shape.sequences == 8) cases.push_back({&shape, layout->pp, {}});
  }
  std::vector<double> again(cases.size());
  const auto predict_again = [&]() -> absl::Status {
    if (options.quick) return absl::OkStatus();
    const auto anew = MeasuredAnew(calibration, cluster, *layout, threads, cases);
    if (!anew.ok()) return anew.status();
    const parallel::CostModel cost(spec, traits, *anew, shards, *placement);
    for (size_t i = 0; i < cases.size(); ++i) {
      again[i] += PredictedSeconds(cost, cases[i]) / 2;
    }
    return absl::OkStatus();
  };
  if (absl::Status status = predict_again(); !status.ok()) return status;
  {
    Runner runner(directory, *layout, threads);
    if (absl::Status status = runner.Start(); !status.ok()) return status;
    if (absl::Status status = runner.Fill(spec.shape.vocab_size); !status.ok()) return status;
    // In turns, so that a slow moment of the machine falls on all shapes.
    for (int repeat = -1; repeat < options.repeats; ++repeat) {
      for (Case& c : cases) {
        const int count = c.in_flight == 1 ? 1 : kRounds * c.in_flight;
        const absl::StatusOr<double> seconds =
            runner.Run(*c.shape, count, c.in_flight, spec.shape.vocab_size);
        if (!seconds.ok()) return seconds.status();
        if (repeat >= 0) c.seconds.push_back(*seconds / count);
      }
    }
  }
  if (absl::Status status = predict_again(); !status.ok()) return status;

  const parallel::CostModel cost(spec, traits, cluster, shards, *placement);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    const parallel::StepCost step = cost.Step(ToStepShape(*c.shape), 0, 1, 1);
    Row row;
    row.model = spec.name;
    row.layout = shards.layout();
    row.shape = c.shape->name;
    row.in_flight = c.in_flight;
    row.predicted_ms = 1e3 * PredictedSeconds(cost, c);
    row.again_ms = options.quick ? row.predicted_ms : 1e3 * again[i];
    row.measured_ms = 1e3 * Median(c.seconds);
    row.least_ms = 1e3 * *std::min_element(c.seconds.begin(), c.seconds.end());
    row.most_ms = 1e3 * *std::max_element(c.seconds.begin(), c.seconds.end());
    row.parts = step.Sum();
    rows.push_back(row);
  }
  return absl::OkStatus();
}

// Of one model and shape: how near the layout that the model prefers comes to the best measured.
struct Choice {
  std::string model;
  std::string shape;
  std::string chosen;
  std::string best;
  double ratio = 0;
};

std::vector<Choice> Choices(const std::vector<Row>& rows) {
  std::vector<Choice> out;
  for (const Row& row : rows) {
    const auto same = [&](const Choice& c) { return c.model == row.model && c.shape == row.shape; };
    if (std::any_of(out.begin(), out.end(), same)) continue;
    const Row* chosen = nullptr;
    const Row* best = nullptr;
    for (const Row& other : rows) {
      if (other.model != row.model || other.shape != row.shape || other.in_flight > 1) continue;
      if (chosen == nullptr || other.predicted_ms < chosen->predicted_ms) chosen = &other;
      if (best == nullptr || other.measured_ms < best->measured_ms) best = &other;
    }
    if (chosen == nullptr) continue;
    out.push_back({row.model, row.shape, chosen->layout.ToString(), best->layout.ToString(),
                   best->measured_ms / chosen->measured_ms});
  }
  return out;
}

void PrintTable(const std::vector<Row>& rows, const std::vector<Choice>& choices) {
  std::cout << absl::StrFormat("%-10s %-16s %-12s %9s %11s %24s %7s %15s  %s\n", "model", "layout",
                               "plan", "in flight", "predicted", "measured", "error", "rates anew",
                               "parts: matmul + attention + collectives + other");
  for (const Row& row : rows) {
    std::cout << absl::StrFormat(
        "%-10s %-16s %-12s %9d %8.2f ms %24s %+6.1f%% %7.2f %+6.1f%%  %.2f + %.2f + %.2f + %.2f\n",
        row.model, row.layout.ToString(), row.shape, row.in_flight, row.predicted_ms,
        absl::StrFormat("%.2f [%.2f, %.2f]", row.measured_ms, row.least_ms, row.most_ms),
        100 * row.Error(), row.again_ms, 100 * row.ErrorAgain(), 1e3 * row.parts.matmul,
        1e3 * row.parts.attention, 1e3 * row.parts.collectives, 1e3 * row.parts.other);
  }
  std::cout << "\n";
  for (const Choice& c : choices) {
    std::cout << absl::StrFormat(
        "%-10s %-12s chosen %-16s best measured %-16s chosen / best %.3f\n", c.model, c.shape,
        c.chosen, c.best, c.ratio);
  }
}

absl::Status RunPlanBench(const PlanBenchOptions& options) {
  const ScratchDirectory scratch("bench plan");
  absl::StatusOr<v1::Calibration> calibration;
  if (options.calibration.empty()) {
    MeasureOptions measure;
    measure.quick = options.quick;
    calibration = Measure(measure);
  } else {
    calibration = ReadCalibration(options.calibration);
  }
  if (!calibration.ok()) return calibration.status();
  absl::StatusOr<parallel::ClusterSpec> cluster = MakeCluster(nullptr, "", RankOptions(), "");
  if (!cluster.ok()) return cluster.status();
  calibration->clear_node();
  if (absl::Status status = Apply(*calibration, *cluster); !status.ok()) return status;

  std::vector<std::string> directories = options.models;
  if (directories.empty()) {
    const std::pair<const char*, const char*> random[] = {{"dense", kDense}, {"experts", kExperts}};
    for (const auto& [name, config] : random) {
      directories.push_back(absl::StrCat(scratch.path(), "/", name));
      absl::Status written = WriteRandomCheckpoint(directories.back(), config, 1);
      if (!written.ok()) return written;
    }
  }
  std::vector<Row> rows;
  absl::Status status;
  const ForeignLoad others;
  for (const std::string& directory : directories) {
    const absl::StatusOr<parallel::ModelSpec> spec = ReadModelSpec(directory);
    status = spec.status();
    if (!status.ok()) break;
    std::vector<std::string> layouts = options.layouts;
    if (layouts.empty()) layouts = DefaultLayouts(spec->shape.num_experts > 0);
    if (options.quick && layouts.size() > 3) layouts.resize(3);
    for (const std::string& layout : layouts) {
      spdlog::info("{} with {}", spec->name, layout);
      status = BenchLayout(options, directory, *spec, *calibration, *cluster, layout, rows);
      if (!status.ok()) break;
    }
    if (!status.ok()) break;
  }
  if (!status.ok()) return status;

  const double busy = others.Cores();
  std::vector<double> errors;
  std::vector<double> errors_again;
  for (const Row& row : rows) {
    errors.push_back(std::abs(row.Error()));
    errors_again.push_back(std::abs(row.ErrorAgain()));
  }
  const std::vector<Choice> choices = Choices(rows);
  std::vector<double> ratios;
  ratios.reserve(choices.size());
  for (const Choice& c : choices) ratios.push_back(c.ratio);
  const double worst_ratio = *std::min_element(ratios.begin(), ratios.end());
  if (options.json) {
    nlohmann::json out;
    for (const Row& row : rows) {
      out["steps"].push_back(
          {{"model", row.model},
           {"layout", row.layout.ToString()},
           {"plan", row.shape},
           {"in_flight", row.in_flight},
           {"predicted_ms", row.predicted_ms},
           {"measured_ms",
            {{"min", row.least_ms}, {"median", row.measured_ms}, {"max", row.most_ms}}},
           {"error", row.Error()}});
    }
    for (const Choice& c : choices) {
      out["choices"].push_back({{"model", c.model},
                                {"plan", c.shape},
                                {"chosen", c.chosen},
                                {"best_measured", c.best},
                                {"chosen_over_best", c.ratio}});
    }
    out["cores"] = cluster->nodes[0].cores;
    out["foreign_cores"] = busy;
    out["repeats"] = options.repeats;
    out["median_error"] = Median(errors);
    out["median_error_with_rates_anew"] = Median(errors_again);
    out["median_chosen_over_best"] = Median(ratios);
    out["least_chosen_over_best"] = worst_ratio;
    std::cout << out.dump() << "\n";
    return absl::OkStatus();
  }
  PrintTable(rows, choices);
  std::cout << absl::StrFormat("\nOther processes were busy on %.2f of %d cores meanwhile.", busy,
                               cluster->nodes[0].cores);
  std::cout << absl::StrFormat(
      "\n%d steps, medians of %d: median error %.1f%% with the calibration of the run's start, "
      "%.1f%% with\nrates measured around each layout's steps; chosen / best measured: median "
      "%.3f, least %.3f\n",
      rows.size(), options.repeats, 100 * Median(errors), 100 * Median(errors_again),
      Median(ratios), worst_ratio);
  return absl::OkStatus();
}

}  // namespace

void AddBenchPlanCommand(CLI::App& bench, Command* run) {
  CLI::App* app = bench.add_subcommand(
      "plan", "Step times that the planner predicts against what ranks as threads take here");
  auto options = std::make_shared<PlanBenchOptions>();
  app->add_option("--calibration", options->calibration,
                  "A file of `phalanx plan --calibrate` (default: measure first)");
  app->add_option("--model", options->models,
                  "Checkpoint directories (default: a dense and a mixture-of-experts model of "
                  "random weights, some 150 MB each)");
  app->add_option("--layout", options->layouts, "Layouts, several times (default: a dozen each)");
  app->add_option("--repeats", options->repeats, "Steps of each kind")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app->add_flag("--quick", options->quick, "Three layouts, a coarse calibration");
  app->add_flag("--json", options->json, "One JSON object");
  app->callback([options, run] {
    *run = [options] {
      const absl::Status status = RunPlanBench(*options);
      return status.ok() ? kExitDone : Fail("bench plan", status);
    };
  });
}

}  // namespace phalanx::launcher
