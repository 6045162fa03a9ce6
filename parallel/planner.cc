#include "parallel/planner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace phalanx::parallel {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string Bytes(int64_t bytes) {
  const double gib = static_cast<double>(bytes) / (int64_t{1} << 30);
  if (gib >= 1) return absl::StrFormat("%.1f GiB", gib);
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string Milliseconds(double seconds) {
  return absl::StrFormat("%.*f ms", seconds < 0.01 ? 2 : 1, seconds * 1e3);
}

// Memory of one layout.
struct Fit {
  bool fits = false;
  int64_t missing = 0;  // on the rank that misses most, for one sequence of the workload
  Candidate worst;      // memory fields alone
};

class Planner {
 public:
  explicit Planner(const PlanOptions& options) : options_(options) {
    max_positions_ =
        options.max_positions > 0 ? options.max_positions : options.model.max_positions;
    tokens_ = options.workload.prompt_tokens + options.workload.output_tokens;
  }

  absl::StatusOr<LayoutPlan> Run();

 private:
  absl::Status CheckOptions() const;
  void Enumerate(bool split_tp);
  void TryGroup(const Layout& group, bool split_tp);
  Fit CheckMemory(const MemoryModel& memory, const Layout& layout,
                  const Placement& placement) const;
  void Predict(const MemoryModel& memory, const DecoderShards& shards, const Placement& placement,
               Candidate candidate);
  std::string Refusal() const;

  const PlanOptions& options_;
  int64_t max_positions_ = 0;
  int64_t tokens_ = 0;  // of one sequence at its end
  std::map<int, std::vector<Range>> stages_;
  LayoutPlan plan_;
  std::optional<Candidate> nearest_;  // of those that don't fit
  int64_t nearest_missing_ = 0;
  absl::Status last_refusal_;
};

absl::Status Planner::CheckOptions() const {
  const Workload& work = options_.workload;
  if (work.prompt_tokens < 1 || work.output_tokens < 1 || work.concurrency < 1) {
    return absl::InvalidArgumentError(
        "workload: prompt tokens, output tokens and concurrency must be at least 1");
  }
  if (max_positions_ > 0 && tokens_ > max_positions_) {
    return absl::InvalidArgumentError(
        absl::StrCat("workload: ", work.prompt_tokens, " prompt and ", work.output_tokens,
                     " output tokens are more than the context of ", max_positions_, " tokens"));
  }
  Layout settled;
  settled.tp = std::max(1, options_.tp);
  settled.sp = std::max(1, options_.sp);
  absl::Status axes =
      DecoderShards::CheckAxes(settled, options_.reduction_leaves, options_.sequence_stripes);
  if (!axes.ok()) return axes;
  if (options_.cluster.nodes.empty() || options_.cluster.devices() < 1) {
    return absl::InvalidArgumentError("the cluster has no device");
  }
  return absl::OkStatus();
}

Fit Planner::CheckMemory(const MemoryModel& memory, const Layout& layout,
                         const Placement& placement) const {
  const ClusterSpec& cluster = options_.cluster;
  const int size = layout.group_size();
  const int64_t block_tokens = options_.traits.block_tokens;
  Fit fit;
  fit.fits = true;
  int64_t least_tokens = std::numeric_limits<int64_t>::max();
  int64_t most_missing = std::numeric_limits<int64_t>::min();
  std::vector<RankMemory> ranks;
  ranks.reserve(size);
  for (int r = 0; r < size; ++r) ranks.push_back(memory.rank(r));
  for (int i = 0; i < layout.world_size(); ++i) {
    const int r = i % size;
    const int node_index = placement.node[i];
    // Replicas on nodes of the kind that this rank was seen on already say nothing new.
    const NodeSpec& node = cluster.nodes[node_index];
    int64_t budget =
        static_cast<int64_t>(static_cast<double>(node.memory_bytes) * cluster.memory_share);
    if (node.shared) budget /= placement.ranks_on_node[node_index];
    const RankMemory& needs = ranks[r];
    const int64_t one = memory.BlocksPerSequence(r, tokens_) * needs.kv_block_bytes;
    const int64_t missing = needs.fixed_bytes() + one - budget;
    int64_t kv_tokens = std::numeric_limits<int64_t>::max();
    if (missing > 0) {
      fit.fits = false;
      kv_tokens = 0;
    } else if (needs.kv_block_bytes > 0) {
      const int64_t blocks = (budget - needs.fixed_bytes()) / needs.kv_block_bytes;
      kv_tokens = blocks * block_tokens * options_.sequence_stripes / std::max(1, needs.stripes);
    }
    if (missing > most_missing || (fit.fits && kv_tokens < least_tokens)) {
      fit.worst.memory = needs;
      fit.worst.budget_bytes = budget;
      fit.worst.kv_bytes = one;
      fit.worst.kv_tokens = kv_tokens;
    }
    most_missing = std::max(most_missing, missing);
    least_tokens = std::min(least_tokens, kv_tokens);
    if (i + 1 == size && cluster.nodes.size() == 1) break;
  }
  fit.worst.kv_tokens = least_tokens;
  fit.missing = most_missing;
  fit.worst.layout = layout;
  return fit;
}

void Planner::Predict(const MemoryModel& memory, const DecoderShards& shards,
                      const Placement& placement, Candidate candidate) {
  const Layout& layout = candidate.layout;
  const Workload& work = options_.workload;
  const CostModel cost(options_.model, options_.traits, options_.cluster, shards, placement);
  const int64_t pp = layout.pp;

  // Sequences of the busiest replica, and how many of them run at once.
  const int busy = static_cast<int>(std::min<int64_t>(layout.dp, work.concurrency));
  const int64_t wanted = CeilDiv(work.concurrency, layout.dp);
  const int64_t most = std::max<int64_t>(
      1,
      std::min(options_.max_sequences * pp, candidate.kv_tokens / std::max<int64_t>(1, tokens_)));
  const int64_t batch = std::min(wanted, most);
  const double waves = static_cast<double>(CeilDiv(wanted, batch));
  const int64_t in_flight = std::min(pp, batch);
  const int64_t plan_rows = CeilDiv(batch, in_flight);

  // Prompts: alone, and all of a batch packed into full steps.
  const int64_t chunk =
      std::min(options_.prefill_chunk > 0 ? options_.prefill_chunk : options_.max_step_tokens,
               options_.max_step_tokens);
  const double lone_rows = static_cast<double>(std::min(chunk, work.prompt_tokens));
  const double lone_chunks = std::ceil(static_cast<double>(work.prompt_tokens) / lone_rows);
  const double batch_tokens = static_cast<double>(batch * work.prompt_tokens);
  const double packed_rows = std::min(static_cast<double>(options_.max_step_tokens), batch_tokens);
  const double packed_plans = std::ceil(batch_tokens / packed_rows);
  const double mean_context = static_cast<double>(work.prompt_tokens + 1) / 2;

  StepShape decode;
  decode.rows = decode.sequences = decode.logit_rows = static_cast<double>(plan_rows);
  decode.context =
      static_cast<double>(work.prompt_tokens) + static_cast<double>(work.output_tokens) / 2;
  StepShape lone;
  lone.rows = static_cast<double>(work.prompt_tokens) / lone_chunks;
  lone.sequences = 1;
  lone.context = mean_context;
  lone.logit_rows = 0;
  StepShape packed = lone;
  packed.rows = batch_tokens / packed_plans;
  packed.sequences = std::max(1.0, packed.rows / static_cast<double>(work.prompt_tokens));
  packed.logit_rows = static_cast<double>(batch) / packed_plans;

  double tokens_per_s = 0;
  std::map<std::vector<int>, double> known;  // tokens per second of equal replicas
  for (int r = 0; r < busy; ++r) {
    const auto [at, fresh] = known.try_emplace(cost.Signature(r), 0.0);
    if (fresh) {
      const int full_pipeline = static_cast<int>(in_flight);
      const StepCost step = cost.Step(decode, r, 1, busy);
      // A sequence's next token waits for the plan's way through all stages or, where more plans
      // are out than that takes, for the slowest stage to have served them all.
      const double tpot = std::max(step.Latency(), static_cast<double>(in_flight) *
                                                       cost.Slot(decode, r, full_pipeline, busy));
      const StepCost alone = cost.Step(lone, r, 1, busy);
      StepShape last = lone;
      last.logit_rows = 1;
      const double ttft =
          (lone_chunks - 1) * alone.Latency() + cost.Step(last, r, 1, busy).Latency();
      const StepCost full = cost.Step(packed, r, 1, busy);
      const double prefill =
          in_flight >= pp && batch > 1
              ? (packed_plans - 1) * cost.Slot(packed, r, full_pipeline, busy) + full.Latency()
              : packed_plans * full.Latency() / static_cast<double>(in_flight);
      const double wave = prefill + static_cast<double>(work.output_tokens - 1) * tpot;
      at->second = static_cast<double>(batch * work.output_tokens) / wave;
      const double request = waves * (ttft + static_cast<double>(work.output_tokens - 1) * tpot);
      if (request > candidate.request_s) {
        candidate.request_s = request;
        candidate.ttft_s = ttft;
        candidate.tpot_s = tpot;
        candidate.token_parts = step.Sum();
        candidate.bubble_s = tpot - step.Latency();
        candidate.decode = step;
      }
    }
    tokens_per_s += at->second;
  }
  // Not every replica has as many sequences as the busiest.
  candidate.sequences = std::min(batch * busy, work.concurrency);
  candidate.tokens_per_s =
      tokens_per_s * static_cast<double>(candidate.sequences) / static_cast<double>(batch * busy);
  candidate.kv_bytes = 0;
  // Of the rank that has least room.
  for (int rank = 0; rank < layout.group_size(); ++rank) {
    const RankMemory needs = memory.rank(rank);
    if (needs.weight_bytes == candidate.memory.weight_bytes &&
        needs.kv_block_bytes == candidate.memory.kv_block_bytes &&
        needs.stripes == candidate.memory.stripes) {
      candidate.kv_bytes = batch * memory.BlocksPerSequence(rank, tokens_) * needs.kv_block_bytes;
      break;
    }
  }
  plan_.candidates.push_back(std::move(candidate));
}

void Planner::TryGroup(const Layout& group, bool split_tp) {
  const PlanOptions& o = options_;
  const absl::Status check =
      DecoderShards::Check(o.model.shape, group, o.reduction_leaves, o.sequence_stripes);
  if (!check.ok()) {
    last_refusal_ = check;
    return;
  }
  auto [stages, fresh] = stages_.try_emplace(group.pp);
  if (fresh) stages->second = DecoderShards::StageLayers(o.model.shape, group.pp);
  const DecoderShards shards(o.model.shape, group, o.reduction_leaves, o.sequence_stripes,
                             stages->second);
  const MemoryModel memory(o.model, o.traits, shards, o.max_step_tokens);
  const int most = o.cluster.devices() / group.group_size();
  for (int dp = 1; dp <= most; ++dp) {
    if (o.dp > 0 && dp != o.dp) continue;
    // Beyond what all requests could use, replicas only hold memory.
    if (o.dp == 0 && dp > o.workload.concurrency) break;
    if (o.dp == 0 && dp > 16 && most % dp != 0 && dp != most) continue;
    Layout layout = shards.layout();
    layout.dp = dp;
    const auto placement = Placement::Make(o.cluster, layout, split_tp);
    if (!placement.has_value()) break;
    // What doesn't fit with whole tp groups on each node doesn't with torn ones.
    if (split_tp && Placement::Make(o.cluster, layout, /*split_tp=*/false).has_value()) continue;
    ++plan_.tried;
    Fit fit = CheckMemory(memory, layout, *placement);
    fit.worst.tp_across_nodes = split_tp;
    if (!fit.fits) {
      ++plan_.too_large;
      if (!nearest_.has_value() || fit.missing < nearest_missing_) {
        nearest_ = fit.worst;
        nearest_missing_ = fit.missing;
      }
      // On machines of one kind more replicas don't fit either.
      if (!o.cluster.nodes[0].shared && o.cluster.nodes.size() == 1) break;
      continue;
    }
    Predict(memory, shards, *placement, std::move(fit.worst));
  }
}

void Planner::Enumerate(bool split_tp) {
  const PlanOptions& o = options_;
  const int devices = o.cluster.devices();
  int node_devices = 0;
  for (const NodeSpec& node : o.cluster.nodes) node_devices = std::max(node_devices, node.devices);
  const int most_tp = std::min(split_tp ? devices : node_devices, o.reduction_leaves);
  // Of nodes of several sizes, some may be too small for a tp group that others hold whole.
  for (int tp = split_tp ? 2 : 1; tp <= most_tp; ++tp) {
    if (o.tp > 0 && tp != o.tp) continue;
    for (int sp = 1; sp <= std::min(devices / tp, o.sequence_stripes); ++sp) {
      if (o.sp > 0 && sp != o.sp) continue;
      const int64_t most_pp = std::min<int64_t>(devices / (tp * sp), o.model.shape.num_layers);
      for (int pp = 1; pp <= most_pp; ++pp) {
        if (o.pp > 0 && pp != o.pp) continue;
        Layout group;
        group.pp = pp;
        group.sp = sp;
        group.tp = tp;
        if (o.model.shape.num_experts == 0) {
          group.ep = std::max(1, o.ep);
          TryGroup(group, split_tp);
          continue;
        }
        for (int ep = 1; ep <= sp * tp; ++ep) {
          if (sp * tp % ep != 0 || (o.ep > 0 && ep != o.ep)) continue;
          group.ep = ep;
          TryGroup(group, split_tp);
        }
      }
    }
  }
}

std::string Planner::Refusal() const {
  const Candidate& best = *nearest_;
  const int64_t has = best.budget_bytes;
  const int64_t needs = best.memory.fixed_bytes() + best.kv_bytes;
  const int devices = options_.cluster.devices();
  std::string out = absl::StrCat(
      options_.model.name, " does not fit this cluster of ", devices,
      devices == 1 ? " device" : " devices", ". The layout that comes nearest is ",
      best.layout.ToString(), " (", best.layout.world_size(),
      best.layout.world_size() == 1 ? " rank" : " ranks", "): its fullest rank needs ",
      Bytes(needs), " (weights ", Bytes(best.memory.weight_bytes), ", KV cache of one sequence of ",
      tokens_, " tokens ", Bytes(best.kv_bytes), ", workspace ", Bytes(best.memory.workspace_bytes),
      ") and may hold ", Bytes(has), ": ", Bytes(needs - has), " too much on that rank");
  double total = 0;
  for (const NodeSpec& node : options_.cluster.nodes) {
    total += static_cast<double>(node.memory_bytes) * (node.shared ? 1 : node.devices) *
             options_.cluster.memory_share;
  }
  absl::StrAppend(&out, ". The weights alone are ", Bytes(options_.model.ParameterBytes()),
                  ", all devices together may hold ", Bytes(static_cast<int64_t>(total)),
                  ". Use more or larger devices",
                  best.layout.tp >= options_.reduction_leaves && devices > best.layout.world_size()
                      ? ", or more --reduction-leaves"
                      : "",
                  ", or a smaller model");
  return out;
}

absl::StatusOr<LayoutPlan> Planner::Run() {
  if (absl::Status status = CheckOptions(); !status.ok()) return status;
  Enumerate(/*split_tp=*/false);
  // A tp group across nodes is the last resort.
  if (plan_.candidates.empty()) Enumerate(/*split_tp=*/true);
  if (plan_.candidates.empty()) {
    if (nearest_.has_value()) return absl::FailedPreconditionError(Refusal());
    if (!last_refusal_.ok()) return last_refusal_;
    return absl::InvalidArgumentError(
        absl::StrCat("no layout with the given axes has at most the cluster's ",
                     options_.cluster.devices(), " ranks"));
  }
  const bool latency = options_.objective == Objective::kLatency;
  const auto score = [latency](const Candidate& c) {
    return latency ? c.request_s : -c.tokens_per_s;
  };
  std::sort(plan_.candidates.begin(), plan_.candidates.end(),
            [&](const Candidate& a, const Candidate& b) {
              return std::pair(score(a), a.layout.world_size()) <
                     std::pair(score(b), b.layout.world_size());
            });
  // Among equals within half a per cent: the fewest ranks, then the fewest axes.
  const double best = score(plan_.candidates[0]);
  const auto axes = [](const Layout& l) {
    return (l.dp > 1) + (l.pp > 1) + (l.sp > 1) + (l.tp > 1);
  };
  size_t chosen = 0;
  for (size_t i = 1; i < plan_.candidates.size(); ++i) {
    const Candidate& c = plan_.candidates[i];
    if (score(c) > best + 0.005 * std::abs(best)) break;
    const Candidate& kept = plan_.candidates[chosen];
    const auto key = [&](const Candidate& k) {
      return std::pair(k.layout.world_size(), axes(k.layout));
    };
    if (key(c) < key(kept)) chosen = i;
  }
  std::rotate(plan_.candidates.begin(),
              plan_.candidates.begin() + static_cast<std::ptrdiff_t>(chosen),
              plan_.candidates.begin() + static_cast<std::ptrdiff_t>(chosen) + 1);

  const Candidate& first = plan_.candidates[0];
  const DecoderShards shards(options_.model.shape, first.layout, options_.reduction_leaves,
                             options_.sequence_stripes, stages_.at(first.layout.pp));
  const MemoryModel memory(options_.model, options_.traits, shards, options_.max_step_tokens);
  const auto placement = Placement::Make(options_.cluster, first.layout, first.tp_across_nodes);
  for (int r = 0; r < first.layout.group_size(); ++r) {
    RankPlan rank;
    rank.rank = r;
    rank.node = placement->node[r];
    rank.memory = memory.rank(r);
    const NodeSpec& node = options_.cluster.nodes[rank.node];
    rank.budget_bytes = static_cast<int64_t>(static_cast<double>(node.memory_bytes) *
                                             options_.cluster.memory_share);
    if (node.shared) rank.budget_bytes /= placement->ranks_on_node[rank.node];
    plan_.ranks.push_back(rank);
  }
  return std::move(plan_);
}

struct Part {
  const char* name;
  double chosen;
  double other;
};

}  // namespace

absl::StatusOr<LayoutPlan> PlanLayouts(const PlanOptions& options) {
  return Planner(options).Run();
}

std::string Compare(const Candidate& chosen, const Candidate& other, Objective objective) {
  const bool latency = objective == Objective::kLatency;
  const double loss = latency ? other.request_s / chosen.request_s - 1
                              : 1 - other.tokens_per_s / chosen.tokens_per_s;
  std::string out = latency ? absl::StrFormat("%+.1f%% time per request", loss * 100)
                            : absl::StrFormat("%.1f%% fewer tokens/s", loss * 100);
  // What its time per token, or its first token, is longer by.
  const Part parts[] = {
      {"matmuls", chosen.token_parts.matmul, other.token_parts.matmul},
      {"attention", chosen.token_parts.attention, other.token_parts.attention},
      {"collectives", chosen.token_parts.collectives, other.token_parts.collectives},
      {"small ops", chosen.token_parts.other, other.token_parts.other},
      {"waiting between stages", chosen.bubble_s, other.bubble_s},
  };
  const Part* worst = &parts[0];
  for (const Part& part : parts) {
    if (part.other - part.chosen > worst->other - worst->chosen) worst = &part;
  }
  std::vector<std::string> why;
  if (worst->other > worst->chosen * 1.02) {
    why.push_back(absl::StrCat(worst->name, " ", Milliseconds(worst->other), " a token, not ",
                               Milliseconds(worst->chosen)));
  }
  if (other.ttft_s > 1.05 * chosen.ttft_s) {
    why.push_back(absl::StrCat("first token after ", Milliseconds(other.ttft_s), ", not ",
                               Milliseconds(chosen.ttft_s)));
  }
  if (other.sequences < chosen.sequences) {
    why.push_back(absl::StrCat("KV memory or replicas for ", other.sequences, " sequences, not ",
                               chosen.sequences));
  }
  if (why.empty() && other.layout.world_size() != chosen.layout.world_size()) {
    why.push_back(
        absl::StrCat(other.layout.world_size(), " ranks, not ", chosen.layout.world_size()));
  }
  if (!why.empty()) absl::StrAppend(&out, ": ", absl::StrJoin(why, "; "));
  return out;
}

std::string Reason(const PlanOptions& options, const LayoutPlan& plan) {
  const Candidate& best = plan.candidates[0];
  const bool latency = options.objective == Objective::kLatency;
  // Fewer ranks are preferred where more would gain next to nothing.
  const bool is_best =
      std::none_of(plan.candidates.begin(), plan.candidates.end(), [&](const Candidate& other) {
        return latency ? other.request_s < best.request_s : other.tokens_per_s > best.tokens_per_s;
      });
  std::string out = absl::StrCat(
      best.layout.ToString(), is_best ? ": " : ": within 0.5% of ",
      latency ? "the least time per request (" : "the most tokens per second (",
      latency ? Milliseconds(best.request_s) : absl::StrFormat("%.0f", best.tokens_per_s), ") of ",
      plan.candidates.size(), " layouts that fit, ", plan.tried, " tried");
  const CostParts& parts = best.token_parts;
  const double total = std::max(parts.total(), 1e-12);
  absl::StrAppend(&out,
                  absl::StrFormat("; a token's time is %.0f%% matmuls, %.0f%% attention, "
                                  "%.0f%% collectives, %.0f%% small ops",
                                  100 * parts.matmul / total, 100 * parts.attention / total,
                                  100 * parts.collectives / total, 100 * parts.other / total));
  const int used = best.layout.world_size();
  const int devices = options.cluster.devices();
  if (used < devices) {
    absl::StrAppend(&out, "; ", devices - used, " of ", devices,
                    " devices stay free: more ranks would gain less than 0.5%");
  }
  if (best.tp_across_nodes) {
    absl::StrAppend(&out, options.tp > 0 ? "; tp goes across nodes as it is given"
                                         : "; tp goes across nodes because nothing fits otherwise");
  }
  return out;
}

}  // namespace phalanx::parallel
