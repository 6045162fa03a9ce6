#include "kernels/experts.h"

#include <memory>
#include <utility>

#include "kernels/check.h"

namespace phalanx::kernels {
SlotPlaces PlaceSlots(absl::Span<const int32_t> ids, int64_t first, int64_t count) {
  SlotPlaces out;
  out.begin.assign(count + 1, 0);
  out.place.assign(ids.size(), -1);
  const auto is_placed = [&](int32_t id) { return id >= first && id < first + count; };
  for (const int32_t id : ids) {
    if (is_placed(id)) ++out.begin[id - first + 1];
  }
  for (int64_t e = 0; e < count; ++e) out.begin[e + 1] += out.begin[e];
  std::vector<int64_t> next(out.begin.begin(), out.begin.end() - 1);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (is_placed(ids[i])) out.place[i] = static_cast<int32_t>(next[ids[i] - first]++);
  }
  return out;
}

void RunPlacedSlots(Kernels& kernels, TensorView x, absl::Span<const int32_t> rows,
                    absl::Span<const int64_t> begin, const ExpertSet& experts,
                    const ExpertRoom& room) {
  const auto count = static_cast<int64_t>(rows.size());
  const absl::Span<const ExpertWeights> weights = experts.weights();
  std::vector<ExpertRows> groups;
  const auto group = [&](const PackedWeight* ExpertWeights::*weight) {
    groups.clear();
    for (size_t e = 0; e < weights.size(); ++e) {
      if (begin[e + 1] > begin[e]) {
        groups.push_back({weights[e].*weight, begin[e], begin[e + 1] - begin[e]});
      }
    }
  };
  const TensorView own = FirstRows(room.x, count);
  const TensorView gate_up = FirstRows(room.gate_up, count);
  const TensorView activated = FirstRows(room.activated, count);
  kernels.GatherTokens(x, rows, own);
  group(&ExpertWeights::gate_up);
  kernels.GroupedMatMul(own, groups, {&gate_up, 1});
  kernels.SiluMul(gate_up, nullptr, gate_up.cols / 2, activated);
  group(&ExpertWeights::down);
  std::vector<TensorView> parts;
  for (const TensorView& part : room.parts) parts.push_back(FirstRows(part, count));
  kernels.GroupedMatMul(activated, groups, parts);
}

absl::StatusOr<std::unique_ptr<ExpertSet>> Kernels::MakeExpertSet(
    std::vector<ExpertWeights> weights) {
  return std::make_unique<ExpertSet>(std::move(weights));
}

void Kernels::RunExperts(const ExpertsArgs& args) {
  const int64_t m = args.logits.rows;
  const int64_t num_experts = args.logits.cols;
  const int64_t slots = m * args.top_k;
  PHALANX_CHECK(static_cast<int64_t>(args.experts->weights().size()) == num_experts)
      << args.experts->weights().size() << " experts for logits of " << num_experts;
  if (slots == 0) return;
  std::vector<int32_t> ids(slots);
  std::vector<float> weights(slots);
  RouteTopK(
      {args.logits, args.top_k, args.normalise, absl::MakeSpan(ids), absl::MakeSpan(weights)});
  const SlotPlaces places = PlaceSlots(ids, 0, num_experts);
  std::vector<int32_t> rows(slots);  // by place
  for (int64_t i = 0; i < slots; ++i) {
    rows[places.place[i]] = static_cast<int32_t>(i / args.top_k);
  }
  RunPlacedSlots(*this, args.x, rows, places.begin, *args.experts, args.room);

  std::vector<const float*> parts;
  parts.reserve(slots * args.room.parts.size());
  for (int64_t i = 0; i < slots; ++i) {
    for (const TensorView& part : args.room.parts) {
      parts.push_back(part.f32() + places.place[i] * part.stride);
    }
  }
  CombineExpertsArgs combine;
  combine.rows = m;
  combine.hidden = args.out.cols;
  combine.top_k = args.top_k;
  combine.weights = weights.data();
  combine.parts = parts;
  combine.num_parts = static_cast<int>(args.room.parts.size());
  combine.program = args.program;
  combine.shared = args.shared;
  combine.shared_gate_logit = args.shared_gate_logit;
  combine.out = args.out;
  CombineExperts(combine);

  const int64_t bytes = num_experts * static_cast<int64_t>(sizeof(int64_t));
  std::vector<int64_t> tokens(num_experts);
  CopyOut(tokens.data(), args.tokens, bytes);
  for (int64_t e = 0; e < num_experts; ++e) tokens[e] += places.begin[e + 1] - places.begin[e];
  CopyIn(args.tokens, tokens.data(), bytes);
}

}  // namespace phalanx::kernels
