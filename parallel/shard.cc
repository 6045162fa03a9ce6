#include "parallel/shard.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::parallel {
namespace {

// [floor(i * n / count), floor((i + 1) * n / count)).
Range EvenPart(int64_t n, int64_t i, int64_t count) { return {i * n / count, (i + 1) * n / count}; }

Layout Resolved(const DecoderShape& shape, Layout layout, int reduction_leaves) {
  if (layout.ep == 0) {
    layout.ep = DecoderShards::DefaultEp(layout, shape.num_experts, reduction_leaves);
  }
  return layout;
}

}  // namespace

int64_t DecoderShape::ActiveWeights(int64_t layer) const {
  const int64_t attention = hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads);
  if (!is_moe(layer)) return attention + 3 * hidden_size * intermediate_size;
  return attention + hidden_size * num_experts +
         3 * hidden_size *
             (experts_per_token * expert_intermediate_size + shared_intermediate_size);
}

std::vector<std::vector<int>> TreeCut::part_programs(int m) const {
  std::vector<std::vector<int>> programs;
  for (const Range& part : parts(m)) {
    programs.push_back(LeafProgram(part, static_cast<int>(part.begin - run(m).begin)));
  }
  return programs;
}

std::vector<int> TreeCut::parts_per_member() const {
  std::vector<int> out;
  out.reserve(members_);
  for (int m = 0; m < members_; ++m) out.push_back(static_cast<int>(parts(m).size()));
  return out;
}

std::vector<int> TreeCut::finish_program() const {
  std::vector<Range> all;
  for (int m = 0; m < members_; ++m) {
    for (const Range& part : parts(m)) all.push_back(part);
  }
  return TreeProgram({0, num_leaves_}, all);
}

std::vector<Range> DecoderShards::StageLayers(const DecoderShape& shape, int pp) {
  std::vector<double> costs;
  costs.reserve(shape.num_layers);
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    costs.push_back(static_cast<double>(shape.ActiveWeights(i)));
  }
  // The embedding is a row that is read, the head a matrix that is multiplied.
  return SplitStages(costs, static_cast<double>(shape.hidden_size),
                     static_cast<double>(shape.vocab_size * shape.hidden_size), pp);
}

DecoderShards::DecoderShards(const DecoderShape& shape, const Layout& layout, int reduction_leaves,
                             int sequence_stripes)
    : DecoderShards(shape, layout, reduction_leaves, sequence_stripes,
                    StageLayers(shape, layout.pp)) {}

DecoderShards::DecoderShards(const DecoderShape& shape, const Layout& layout, int reduction_leaves,
                             int sequence_stripes, std::vector<Range> stages)
    : shape_(shape),
      mesh_(Resolved(shape, layout, reduction_leaves)),
      tensor_cut_(layout.tp, reduction_leaves),
      expert_cut_(layout.sp * layout.tp / mesh_.layout().ep, reduction_leaves),
      stripe_cut_(layout.sp, sequence_stripes),
      heads_(shape.num_heads, 1, reduction_leaves),
      channels_(shape.intermediate_size, kChannelGranule, reduction_leaves),
      shared_channels_(shape.shared_intermediate_size, kChannelGranule, reduction_leaves),
      expert_channels_(shape.expert_intermediate_size, kChannelGranule, reduction_leaves),
      stages_(std::move(stages)) {
  assert(Check(shape, layout, reduction_leaves, sequence_stripes).ok());
  assert(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
}

absl::Status DecoderShards::CheckAxes(const Layout& layout, int reduction_leaves,
                                      int sequence_stripes) {
  const std::pair<const char*, int> axes[] = {
      {"dp", layout.dp}, {"pp", layout.pp}, {"sp", layout.sp}, {"tp", layout.tp}};
  for (const auto& [axis, size] : axes) {
    if (size < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout: ", axis, "=", size, " must be at least 1"));
    }
  }
  if (layout.tp > reduction_leaves) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout: tp=", layout.tp, " needs a profile of at least ", layout.tp,
        " reduction leaves, but this one has ", reduction_leaves, "; use tp=", reduction_leaves,
        " or less, or --reduction-leaves ", layout.tp,
        " (a profile of its own: its bits differ from those of ", reduction_leaves, " leaves)"));
  }
  if (layout.sp > sequence_stripes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout: sp=", layout.sp, " needs a profile of at least ", layout.sp,
        " sequence stripes, but this one has ", sequence_stripes, "; use sp=", sequence_stripes,
        " or less, or --sequence-stripes ", layout.sp,
        " (a profile of its own: its bits differ from those of ", sequence_stripes, " stripes)"));
  }
  const int group = layout.sp * layout.tp;
  if (layout.ep < 0 || (layout.ep > 0 && group % layout.ep != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: ep=", layout.ep, " must divide sp x tp = ", group,
                     ": ep groups of (sp x tp) / ep ranks share the experts"));
  }
  return absl::OkStatus();
}

int DecoderShards::DefaultEp(const Layout& layout, int64_t num_experts, int reduction_leaves) {
  const int group = layout.sp * layout.tp;
  if (num_experts <= 0) return 1;
  for (int ep = group; ep > 1; --ep) {
    if (group % ep == 0 && ep <= num_experts && group / ep <= reduction_leaves) return ep;
  }
  return 1;
}

absl::Status DecoderShards::Check(const DecoderShape& shape, const Layout& layout,
                                  int reduction_leaves, int sequence_stripes) {
  absl::Status axes = CheckAxes(layout, reduction_leaves, sequence_stripes);
  if (!axes.ok()) return axes;
  if (layout.pp > shape.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: pp=", layout.pp, " stages need at least as many layers, but the ",
                     "model has ", shape.num_layers, "; use pp=", shape.num_layers, " or less"));
  }
  if (layout.ep > 1 && shape.num_experts == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: ep=", layout.ep, ", but the model has no experts; leave ep out"));
  }
  if (shape.num_experts == 0) return absl::OkStatus();
  if (layout.ep > shape.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("layout: ep=", layout.ep, " exceeds the ",
                                                   shape.num_experts, " experts of the model"));
  }
  const int ep = layout.ep > 0 ? layout.ep : DefaultEp(layout, shape.num_experts, reduction_leaves);
  const int etp = layout.sp * layout.tp / ep;
  if (etp > reduction_leaves) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: ep=", ep, " leaves (sp x tp) / ep = ", etp,
                     " ranks to share an expert, more than the profile's ", reduction_leaves,
                     " reduction leaves; use a larger ep, or --reduction-leaves ", etp));
  }
  return absl::OkStatus();
}

Range DecoderShards::vocab(int g) const {
  const int64_t granules = (shape_.vocab_size + kChannelGranule - 1) / kChannelGranule;
  const Range part = EvenPart(granules, g, int64_t{layout().sp} * layout().tp);
  return {std::min(part.begin * kChannelGranule, shape_.vocab_size),
          std::min(part.end * kChannelGranule, shape_.vocab_size)};
}

Range DecoderShards::experts(int g) const {
  return EvenPart(shape_.num_experts, g / etp(), layout().ep);
}

RankShard DecoderShards::shard(int rank) const {
  const MeshCoordinates at = mesh_.coordinates(rank);
  const int g = at.s * layout().tp + at.t;
  RankShard shard;
  shard.first_stage = at.p == 0;
  shard.last_stage = at.p + 1 == layout().pp;
  shard.layers = stages_[at.p];
  shard.leaves = tensor_cut_.run(at.t);
  shard.heads = heads_.elements(shard.leaves);
  if (!shard.heads.empty()) {
    shard.kv_heads = {kv_head(shard.heads.begin), kv_head(shard.heads.end - 1) + 1};
  }
  shard.channels = channels_.elements(shard.leaves);
  shard.shared_channels = shared_channels_.elements(shard.leaves);
  shard.stripes = stripe_cut_.run(at.s);
  shard.vocab = vocab(g);
  shard.experts = experts(g);
  shard.expert_leaves = expert_cut_.run(g % etp());
  shard.expert_channels = expert_channels_.elements(shard.expert_leaves);
  return shard;
}

std::vector<Range> SplitStages(const std::vector<double>& layer_costs, double first, double last,
                               int pp) {
  const int n = static_cast<int>(layer_costs.size());
  assert(pp >= 1 && pp <= n);
  std::vector<double> sums(n + 1, 0.0);
  for (int i = 0; i < n; ++i) sums[i + 1] = sums[i] + layer_costs[i];
  const auto cost = [&](int stage, int begin, int end) {
    return sums[end] - sums[begin] + (stage == 0 ? first : 0.0) + (stage + 1 == pp ? last : 0.0);
  };
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // best[p][i]: the least value of the first p + 1 stages that end before layer i.
  const auto solve = [&](const auto& combine, std::vector<std::vector<int>>* from) {
    std::vector<std::vector<double>> best(pp, std::vector<double>(n + 1, kNever));
    for (int p = 0; p < pp; ++p) {
      for (int end = p + 1; end <= n - (pp - 1 - p); ++end) {
        const int least = p == 0 ? 0 : p;
        const int most = p == 0 ? 0 : end - 1;
        for (int begin = least; begin <= most; ++begin) {
          const double before = p == 0 ? 0.0 : best[p - 1][begin];
          const double value = combine(before, cost(p, begin, end));
          if (value < best[p][end]) {
            best[p][end] = value;
            if (from != nullptr) (*from)[p][end] = begin;
          }
        }
      }
    }
    return best[pp - 1][n];
  };
  const double largest =
      solve([](double before, double stage) { return std::max(before, stage); }, nullptr);
  std::vector<std::vector<int>> from(pp, std::vector<int>(n + 1, 0));
  solve([&](double before,
            double stage) { return stage > largest ? kNever : before + stage * stage; },
        &from);
  std::vector<Range> stages(pp);
  int end = n;
  for (int p = pp - 1; p >= 0; --p) {
    stages[p] = {from[p][end], end};
    end = from[p][end];
  }
  return stages;
}

Range SequenceRows(int64_t rows, int s, int sp) { return EvenPart(rows, s, sp); }

Range TokenRows(int64_t rows, int s, int sp, int t, int tp) {
  const Range slice = SequenceRows(rows, s, sp);
  const Range part = EvenPart(slice.size(), t, tp);
  return {slice.begin + part.begin, slice.begin + part.end};
}

}  // namespace phalanx::parallel
