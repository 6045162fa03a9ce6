#include "parallel/cost_model.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace phalanx::parallel {
namespace {

constexpr double kF32 = 4;

int Sum(const std::vector<int>& values) {
  int total = 0;
  for (const int value : values) total += value;
  return total;
}

double CeilShare(double rows, int members) { return std::ceil(rows / members); }

// Seconds of ops on one rank.
class Ops {
 public:
  // `fp8`: of the layer, where it is one.
  Ops(const ComputeRates& rates, const ModelSpec& spec, const DeviceTraits& traits,
      LayerMatrices fp8 = 0)
      : rates_(rates), spec_(spec), traits_(traits), fp8_(fp8) {}

  // `leaves`: of k on this rank; 1 where k is whole. `pack_rows` may be less than rows.
  double MatMul(double n, double k, double rows, double leaves) const {
    if (n <= 0 || k <= 0 || rows <= 0) return 0;
    return MatMulOp() + Weights(n, k, rows, leaves, static_cast<double>(spec_.element_bytes));
  }
  // By a layer's matrix.
  double MatMul(LayerMatrix matrix, double n, double k, double rows, double leaves) const {
    return Grouped(matrix, 1, n, k, rows, leaves);
  }
  // By several of one shape with `rows` rows each, in one call.
  double Grouped(LayerMatrix matrix, double count, double n, double k, double rows,
                 double leaves) const {
    if (count <= 0 || n <= 0 || k <= 0 || rows <= 0) return 0;
    const double weight_bytes = static_cast<double>(spec_.group_bytes(matrix, fp8_)) / 32;
    return MatMulOp() + count * Weights(n, k, rows, leaves, weight_bytes);
  }
  double op() const { return rates_.op; }
  const ComputeRates& rates() const { return rates_; }

 private:
  double MatMulOp() const { return rates_.matmul_op > 0 ? rates_.matmul_op : rates_.op; }
  // Curves are measured on plain weights; without them reading `weight_bytes` each counts.
  double Weights(double n, double k, double rows, double leaves, double weight_bytes) const {
    const double weights = n * k;
    if (rates_.matmul_weight.empty()) {
      const double bytes = weight_bytes * weights;
      return std::max(bytes / rates_.read_bytes_per_s,
                      2 * weights * rows / rates_.matrix_flops_per_s);
    }
    const bool small =
        !rates_.matmul_small_weight.empty() && weights * static_cast<double>(spec_.element_bytes) <
                                                   static_cast<double>(traits_.small_weight_bytes);
    const Curve& curve = small ? rates_.matmul_small_weight : rates_.matmul_weight;
    return weights * curve.At(rows) + rates_.pack_element * rows * k +
           rates_.leaf_element * n * (leaves - 1);
  }

  const ComputeRates& rates_;
  const ModelSpec& spec_;
  const DeviceTraits& traits_;
  const LayerMatrices fp8_;
};

}  // namespace

CostParts& CostParts::operator+=(const CostParts& more) {
  matmul += more.matmul;
  attention += more.attention;
  other += more.other;
  collectives += more.collectives;
  return *this;
}

CostParts operator*(double factor, CostParts parts) {
  parts.matmul *= factor;
  parts.attention *= factor;
  parts.other *= factor;
  parts.collectives *= factor;
  return parts;
}

CostParts StepCost::Sum() const {
  CostParts total;
  for (const CostParts& stage : stages) total += stage;
  return total;
}

double StepCost::Slot() const {
  double slowest = 0;
  for (const CostParts& stage : stages) slowest = std::max(slowest, stage.total());
  return slowest;
}

std::optional<Placement> Placement::Make(const ClusterSpec& cluster, const Layout& layout,
                                         bool split_tp) {
  const int unit = split_tp ? 1 : layout.tp;
  const int total = layout.world_size();
  Placement out;
  out.node.reserve(total);
  out.ranks_on_node.assign(cluster.nodes.size(), 0);
  for (size_t i = 0; i < cluster.nodes.size(); ++i) {
    const int room = cluster.nodes[i].devices / unit * unit;
    for (int r = 0; r < room && static_cast<int>(out.node.size()) < total; ++r) {
      out.node.push_back(static_cast<int>(i));
      ++out.ranks_on_node[i];
    }
  }
  if (static_cast<int>(out.node.size()) < total) return std::nullopt;
  return out;
}

struct CostModel::StagePlace {
  ComputeRates rates;
  GroupPlace tp;
  GroupPlace sp;
  GroupPlace stage;
  GroupPlace next;  // this stage's rank and the next one's
};

CostModel::CostModel(const ModelSpec& spec, const DeviceTraits& traits, const ClusterSpec& cluster,
                     const DecoderShards& shards, const Placement& placement)
    : spec_(spec), traits_(traits), cluster_(cluster), shards_(shards), placement_(placement) {
  const DecoderShape& shape = spec.shape;
  const Layout& layout = shards.layout();
  for (int t = 0; t < layout.tp; ++t) {
    const Range run = shards.tensor_cut().run(t);
    const Range heads = shards.head_leaves().elements(run);
    if (heads.size() > heads_) {
      heads_ = static_cast<double>(heads.size());
      kv_heads_ =
          static_cast<double>(shards.kv_head(heads.end - 1) + 1 - shards.kv_head(heads.begin));
    }
    channels_ =
        std::max(channels_, static_cast<double>(shards.channel_leaves().elements(run).size()));
    shared_channels_ = std::max(shared_channels_,
                                static_cast<double>(shards.shared_leaves().elements(run).size()));
    leaves_ = std::max(leaves_, static_cast<double>(run.size()));
  }
  for (int g = 0; g < layout.sp * layout.tp; ++g) {
    vocab_ = std::max(vocab_, static_cast<double>(shards.vocab(g).size()));
    if (shape.num_experts == 0) continue;
    const Range run = shards.expert_cut().run(g % shards.etp());
    experts_ = std::max(experts_, static_cast<double>(shards.experts(g).size()));
    expert_channels_ = std::max(expert_channels_,
                                static_cast<double>(shards.expert_leaves().elements(run).size()));
    expert_leaves_ = std::max(expert_leaves_, static_cast<double>(run.size()));
  }
  tensor_parts_ = Sum(shards.tensor_cut().parts_per_member());
  if (shape.num_experts > 0) expert_parts_ = Sum(shards.expert_cut().parts_per_member());
  const std::vector<int> stripe_parts = shards.stripe_cut().parts_per_member();
  double stripes = 0;
  for (int s = 0; s < layout.sp; ++s) {
    stripes = std::max(stripes, static_cast<double>(shards.stripe_cut().run(s).size()));
    own_stripe_parts_ = std::max(own_stripe_parts_, stripe_parts[s]);
  }
  stripe_parts_ = Sum(stripe_parts);
  stripe_share_ = stripes / shards.stripe_cut().num_leaves();
  for (int64_t i = 1; i < shape.num_layers; ++i) {
    one_kind_ = one_kind_ && shape.is_moe(i) == shape.is_moe(0) &&
                spec.window(i) == spec.window(0) && spec.fp8(i) == spec.fp8(0);
  }
}

std::vector<int> CostModel::Signature(int replica) const {
  const std::vector<NodeSpec>& nodes = cluster_.nodes;
  const int size = shards_.mesh().size();
  const int tp = shards_.layout().tp;
  // Nodes of one kind that hold whole replicas, or replicas that hold whole nodes.
  bool alike = true;
  for (const NodeSpec& node : nodes) {
    alike = alike && node.name == nodes[0].name && node.devices == nodes[0].devices;
  }
  const int room = nodes[0].devices / tp * tp;
  if (alike && room > 0 && (room % size == 0 || size % room == 0)) return {};

  std::vector<int> out;
  const int first = placement_.node[replica * size];
  for (int r = 0; r < size; ++r) {
    const int node = placement_.node[replica * size + r];
    out.push_back(node - first);
    if (r > 0 && node == placement_.node[replica * size + r - 1]) continue;
    int kind = 0;  // the first node of that name
    while (nodes[kind].name != nodes[node].name) ++kind;
    out.push_back(kind);
  }
  return out;
}

std::vector<std::pair<CostModel::LayerClass, int>> CostModel::LayerKinds(int stage) const {
  const Range layers = shards_.stage_layers(stage);
  const auto kind = [this](int64_t i) {
    return LayerClass{spec_.shape.is_moe(i), spec_.window(i), spec_.fp8(i)};
  };
  if (one_kind_) return {{kind(0), static_cast<int>(layers.size())}};
  std::map<LayerClass, int> counts;
  for (int64_t i = layers.begin; i < layers.end; ++i) ++counts[kind(i)];
  return {counts.begin(), counts.end()};
}

CostModel::StagePlace CostModel::Place(int replica, int stage, double running_share) const {
  const Layout& layout = shards_.layout();
  const int group = layout.sp * layout.tp;
  const int base = (replica * layout.pp + stage) * group;
  const auto node_of = [&](int g) { return placement_.node[base + g]; };
  const auto running = [&](int node) {
    return std::max(1,
                    static_cast<int>(std::lround(placement_.ranks_on_node[node] * running_share)));
  };

  StagePlace out;
  // The slowest node that the stage is on.
  const NodeSpec* slowest = nullptr;
  int busiest = 1;
  for (int g = 0; g < group; ++g) {
    if (g > 0 && node_of(g) == node_of(g - 1)) continue;
    const NodeSpec& node = cluster_.nodes[node_of(g)];
    const int here = running(node_of(g));
    const int threads = cluster_.ThreadsOn(node, placement_.ranks_on_node[node_of(g)]);
    const ComputeRates rates = node.Rates(here, threads);
    if (slowest == nullptr || rates.read_bytes_per_s < out.rates.read_bytes_per_s) {
      out.rates = rates;
      slowest = &node;
      busiest = here;
      // Ranks that don't all have a core sleep while they wait, even where few of them run.
      const int ranks = placement_.ranks_on_node[node_of(g)];
      if (node.shared && ranks * threads > node.cores) busiest = ranks;
    }
  }
  const auto place = [&](const std::vector<int>& members) {
    GroupPlace found;
    found.members = static_cast<int>(members.size());
    found.node = slowest;
    found.running = busiest;
    std::map<int, int> counts;
    found.per_node = 0;
    for (const int g : members) found.per_node = std::max(found.per_node, ++counts[node_of(g)]);
    return found;
  };
  // The worst group of each axis.
  const auto worst = [&](GroupPlace& kept, const GroupPlace& found) {
    if (kept.node == nullptr || found.per_node < kept.per_node) kept = found;
  };
  std::vector<int> members;
  for (int s = 0; s < layout.sp; ++s) {
    members.clear();
    for (int t = 0; t < layout.tp; ++t) members.push_back(s * layout.tp + t);
    worst(out.tp, place(members));
  }
  for (int t = 0; t < layout.tp; ++t) {
    members.clear();
    for (int s = 0; s < layout.sp; ++s) members.push_back(s * layout.tp + t);
    worst(out.sp, place(members));
  }
  members.clear();
  for (int g = 0; g < group; ++g) members.push_back(g);
  out.stage = place(members);
  out.next = out.stage;
  out.next.members = 2;
  out.next.per_node = 2;
  if (stage + 1 < layout.pp) {
    for (int g = 0; g < group; ++g) {
      if (placement_.node[base + group + g] != node_of(g)) out.next.per_node = 1;
    }
  }
  return out;
}

CostParts CostModel::Embedding(const StagePlace& place, const StepShape& step) const {
  CostParts out;
  const double hidden = static_cast<double>(spec_.shape.hidden_size);
  out.other += place.rates.op + place.rates.copy_byte * step.rows * hidden * kF32;
  out.collectives += CollectiveSeconds(cluster_, place.stage, Collective::kAllReduce,
                                       step.rows * hidden * kF32, place.stage.members);
  return out;
}

CostParts CostModel::Head(const StagePlace& place, const StepShape& step) const {
  CostParts out;
  if (step.logit_rows <= 0) return out;
  const Ops ops(place.rates, spec_, traits_);
  const double hidden = static_cast<double>(spec_.shape.hidden_size);
  const double vocab = static_cast<double>(spec_.shape.vocab_size);
  const double rounds = std::ceil(step.logit_rows / static_cast<double>(traits_.logit_rows));
  const double rows = step.logit_rows / rounds;
  CostParts round;
  round.other += 2 * ops.op() + place.rates.norm_element * rows * hidden;
  round.matmul += ops.MatMul(vocab_, hidden, rows, 1);
  if (place.stage.members > 1) {
    if (step.rows >= static_cast<double>(traits_.shard_rows)) {
      round.collectives += CollectiveSeconds(cluster_, place.stage, Collective::kAllReduce,
                                             rows * hidden * kF32, place.stage.members);
    }
    round.collectives +=
        CollectiveSeconds(cluster_, place.stage, Collective::kGather, rows * vocab_ * kF32, 0);
    round.other += place.rates.copy_byte * rows * vocab * kF32;
  }
  round.other += place.rates.logit_element * rows * vocab;
  out += rounds * round;
  return out;
}

void CostModel::Experts(const StagePlace& place, double rows, bool sharded, LayerMatrices fp8,
                        CostParts& out) const {
  const DecoderShape& shape = spec_.shape;
  const Layout& layout = shards_.layout();
  const Ops ops(place.rates, spec_, traits_, fp8);
  const double hidden = static_cast<double>(shape.hidden_size);
  const double all = static_cast<double>(shape.num_experts);
  const double k = static_cast<double>(shape.experts_per_token);
  const int group = layout.sp * layout.tp;
  const double slice = sharded ? CeilShare(rows, layout.sp) : rows;
  const double own = sharded ? CeilShare(slice, layout.tp) : rows;
  const double combine = CeilShare(CeilShare(rows, layout.sp), layout.tp);

  // Routing.
  out.matmul += ops.MatMul(all, hidden, own, 1);
  out.other += ops.op() + place.rates.logit_element * own * all;
  if (spec_.shared_expert_gate) out.matmul += ops.MatMul(1, hidden, own, 1);
  if (sharded && group > 1) {
    out.collectives +=
        CollectiveSeconds(cluster_, place.stage, Collective::kAllGather, own * k * kF32, 0);
  }

  // Draws that fall on the busiest of the ep groups: mean and, with several groups, what the
  // largest of as many binomials has on top (Gumbel's estimate).
  const double groups = layout.ep;
  const double mean = rows * k * experts_ / all;
  double most = mean;
  if (groups > 1) {
    most += std::sqrt(2 * std::log(groups) * mean * (1 - experts_ / all));
    most = std::min(most, rows * std::min(k, experts_));
  }
  // Experts that get any of those rows.
  const double drawn = rows * (most / mean);
  const double touched =
      std::clamp(experts_ * (1 - std::pow(1 - k / all, drawn)), std::min(1.0, most), experts_);
  const double rows_each = most / touched;

  if (sharded && group > 1) {
    // A row travels once to each rank that holds one of its experts.
    const double ranks = groups * (1 - std::pow(1 - 1 / groups, k)) * shards_.etp();
    const double bytes = own * ranks * hidden * static_cast<double>(spec_.activation_bytes);
    out.other += place.rates.copy_byte * bytes;
    out.collectives += CollectiveSeconds(cluster_, place.stage, Collective::kAllToAll, bytes, 0);
  }
  out.other += 2 * ops.op() + place.rates.silu_element * most * expert_channels_ +
               place.rates.copy_byte * most * hidden * static_cast<double>(spec_.activation_bytes);
  out.matmul += ops.Grouped(kGateUp, touched, 2 * expert_channels_, hidden, rows_each, 1);
  out.matmul += ops.Grouped(kDown, touched, hidden, expert_channels_, rows_each, expert_leaves_);

  if (shape.shared_intermediate_size > 0) {
    out.matmul += ops.MatMul(kSharedGateUp, 2 * shared_channels_, hidden, slice, 1);
    out.other += ops.op() + place.rates.silu_element * slice * shared_channels_;
    out.matmul += ops.MatMul(kSharedDown, hidden, shared_channels_, slice, leaves_);
    if (layout.tp > 1) {
      if (sharded) {
        out.collectives +=
            CollectiveSeconds(cluster_, place.tp, Collective::kAllGather,
                              own * hidden * static_cast<double>(spec_.activation_bytes), 0);
      }
      out.collectives += CollectiveSeconds(
          cluster_, place.tp, sharded ? Collective::kReduceScatter : Collective::kAllReduce,
          slice * hidden * kF32, tensor_parts_);
    }
  }

  // Each slot's parts to the row's owner, who adds them up.
  const double parts = group > 1 ? expert_parts_ : 1;
  if (group > 1) {
    const double bytes = most * parts / shards_.etp() * hidden * kF32;
    out.other += place.rates.copy_byte * bytes;
    out.collectives += CollectiveSeconds(cluster_, place.stage, Collective::kAllToAll, bytes, 0);
  }
  out.other += ops.op() + place.rates.copy_byte * combine * k * parts * hidden * kF32;
  if (!sharded && group > 1) {
    out.collectives += CollectiveSeconds(cluster_, place.stage, Collective::kAllGather,
                                         combine * hidden * kF32, 0);
  }
}

CostParts CostModel::Layer(const StagePlace& place, const StepShape& step,
                           const LayerClass& kind) const {
  const DecoderShape& shape = spec_.shape;
  const Layout& layout = shards_.layout();
  const Ops ops(place.rates, spec_, traits_, kind.fp8);
  const ComputeRates& rates = place.rates;
  const double act = static_cast<double>(spec_.activation_bytes);
  const double hidden = static_cast<double>(shape.hidden_size);
  const double d = static_cast<double>(shape.head_dim);
  const double m = step.rows;
  const bool sharded = layout.sp * layout.tp > 1 && m >= static_cast<double>(traits_.shard_rows);
  const double slice = sharded ? CeilShare(m, layout.sp) : m;
  const double own = sharded ? CeilShare(slice, layout.tp) : m;
  const double width = (heads_ + 2 * kv_heads_) * d;

  CostParts out;
  const auto gather_normed = [&] {
    if (!sharded || layout.tp == 1) return;
    out.collectives +=
        CollectiveSeconds(cluster_, place.tp, Collective::kAllGather, own * hidden * act, 0);
  };
  const auto row_parallel = [&](LayerMatrix matrix, double k) {
    out.matmul += ops.MatMul(matrix, hidden, k, slice, leaves_);
    if (layout.tp == 1) return;
    out.collectives += CollectiveSeconds(
        cluster_, place.tp, sharded ? Collective::kReduceScatter : Collective::kAllReduce,
        slice * hidden * kF32, tensor_parts_);
  };

  // Two norms with the residual's addition.
  out.other += 2 * (ops.op() + rates.norm_element * own * hidden);

  gather_normed();
  out.matmul += ops.MatMul(kQkv, width, hidden, slice, 1);
  if (sharded && layout.sp > 1) {
    out.collectives +=
        CollectiveSeconds(cluster_, place.sp, Collective::kAllGather, slice * width * kF32, 0);
  }
  out.other += ops.op() + rates.rope_element * m * width;

  double context = step.context;
  if (kind.window > 0) context = std::min(context, static_cast<double>(kind.window));
  context *= stripe_share_;
  const double pairs = m * heads_ * context * 2 * d;
  const double kv_bytes = step.sequences * context * kv_heads_ *
                          (2 * d * static_cast<double>(spec_.kv_element_bytes()) +
                           static_cast<double>(spec_.kv_scale_bytes()));
  const double per_pair = rates.attention_pair.At(m / std::max(1.0, step.sequences));
  out.attention += ops.op() + std::max(pairs * per_pair, kv_bytes / rates.read_bytes_per_s) +
                   rates.attention_head * m * heads_;
  if (layout.sp > 1) {
    const double partial = heads_ * (2 + d) * kF32;
    // Subtrees are merged before they travel, and all of them after.
    out.attention +=
        2 * ops.op() + rates.attention_head * slice * heads_ +
        rates.copy_byte * partial * (m * own_stripe_parts_ + 2 * slice * stripe_parts_);
    out.collectives += CollectiveSeconds(cluster_, place.sp,
                                         sharded ? Collective::kAllToAll : Collective::kAllGather,
                                         m * own_stripe_parts_ * partial, 0);
  }
  row_parallel(kO, heads_ * d);

  if (kind.moe) {
    Experts(place, m, sharded, kind.fp8, out);
    return out;
  }
  gather_normed();
  out.matmul += ops.MatMul(kGateUp, 2 * channels_, hidden, slice, 1);
  out.other += ops.op() + rates.silu_element * slice * channels_;
  row_parallel(kDown, channels_);
  return out;
}

double CostModel::Slot(const StepShape& step, int replica, int in_flight, int busy_replicas) const {
  const StepCost together = Step(step, replica, in_flight, busy_replicas);
  const Layout& layout = shards_.layout();
  const int node_index = placement_.node[static_cast<size_t>(replica) * layout.group_size()];
  const NodeSpec& node = cluster_.nodes[node_index];
  const int ranks = placement_.ranks_on_node[node_index];
  if (!node.shared || in_flight < 2 || ranks * cluster_.ThreadsOn(node, ranks) <= node.cores) {
    return together.Slot();
  }
  // Stages that take turns on cores leave none idle while one of them lags: a slot is the mean
  // stage, but no shorter than the slowest by itself.
  const double mean = together.Sum().total() / static_cast<double>(together.stages.size());
  return std::max(mean, Step(step, replica, 1, busy_replicas).Slot());
}

StepCost CostModel::Step(const StepShape& step, int replica, int in_flight,
                         int busy_replicas) const {
  const Layout& layout = shards_.layout();
  const double running_share = std::min(1.0, static_cast<double>(in_flight) / layout.pp) *
                               std::min(1.0, static_cast<double>(busy_replicas) / layout.dp);
  StepCost cost;
  cost.handover = cluster_.handover_s;
  const int group = layout.sp * layout.tp;
  StagePlace place;
  std::vector<int> place_key;  // of `place`: stages that lie alike cost alike
  std::vector<int> key;
  std::map<LayerClass, CostParts> known;
  for (int p = 0; p < layout.pp; ++p) {
    const int base = (replica * layout.pp + p) * group;
    const int first = placement_.node[base];
    const NodeSpec& node = cluster_.nodes[first];
    key.clear();
    const bool inside = placement_.node[base + group - 1] == first;
    for (int g = 0; g < group && !inside; ++g) key.push_back(placement_.node[base + g] - first);
    // Where the next stage begins and ends.
    const bool last = p + 1 == layout.pp;
    key.push_back(last ? 0 : placement_.node[base + group] - first);
    key.push_back(last ? 0 : placement_.node[base + 2 * group - 1] - first);
    key.push_back(placement_.ranks_on_node[first]);
    if (p == 0 || key != place_key || !inside || node.name != place.stage.node->name) {
      place = Place(replica, p, running_share);
      place_key = key;
      known.clear();
    }
    CostParts stage;
    if (p == 0) stage += Embedding(place, step);
    for (const auto& [kind, count] : LayerKinds(p)) {
      const auto [at, fresh] = known.try_emplace(kind);
      if (fresh) at->second = Layer(place, step, kind);
      stage += count * at->second;
    }
    if (p + 1 == layout.pp) {
      stage += Head(place, step);
    } else {
      const bool sharded =
          layout.sp * layout.tp > 1 && step.rows >= static_cast<double>(traits_.shard_rows);
      const double rows = sharded ? CeilShare(step.rows, layout.sp * layout.tp) : step.rows;
      stage.collectives +=
          CollectiveSeconds(cluster_, place.next, Collective::kSend,
                            rows * static_cast<double>(spec_.shape.hidden_size) * kF32, 0);
    }
    cost.stages.push_back(stage);
  }
  return cost;
}

}  // namespace phalanx::parallel
