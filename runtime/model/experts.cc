// The mixture of experts (Shazeer et al., arXiv:1701.06538; rule R4 of the design).
//
//   route     router logits of a rank's own rows, top-k; everybody learns all rows' experts
//   dispatch  each normed row goes once to every rank that holds (a share of) one of its experts;
//             nothing to do where every rank has every row
//   run       rows grouped by expert, one grouped matmul for gate and up, one for down
//   combine   each slot's parts go to the rank that adds up the row, which finishes the sum over
//             the etp ranks of an expert by R2's tree and then adds experts in the router's order
//
// All counts follow from the routing table that every rank has, so none are exchanged. They have to
// be on the host, which waits for them in each layer. A rank that shares its experts with nobody
// does it all in one op, and nothing waits.
#include "kernels/experts.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/model/decoder_impl.h"

namespace phalanx::model {

using kernels::DType;
using kernels::TensorView;
using parallel::Range;

absl::Status Decoder::Impl::Experts(const Layer& layer) {
  if (has_stage_alone()) return ExpertsAlone(layer);
  if (absl::Status status = Route(layer); !status.ok()) return status;
  if (absl::Status status = DispatchTokens(); !status.ok()) return status;
  RunExperts(layer);
  if (config.shared_intermediate_size > 0) {
    absl::Status status = FeedForward(layer, shard.shared_channels.size(), shared_delta);
    if (!status.ok()) return status;
  }
  return CombineExperts(layer);
}

absl::Status Decoder::Impl::ExpertsAlone(const Layer& layer) {
  const int64_t count = rows.count;
  MultiplyByRouter(layer);
  if (config.shared_intermediate_size > 0) {
    absl::Status status = FeedForward(layer, shard.shared_channels.size(), shared_delta);
    if (!status.ok()) return status;
  }
  kernels::ExpertsArgs args;
  args.logits = F32(router_logits, count, config.num_experts);
  args.top_k = config.experts_per_token;
  args.normalise = config.normalise_experts;
  args.x = NormInput(normed, count);
  args.experts = layer.expert_set.get();
  args.room = RoomFor(layer, count * config.experts_per_token);
  args.program = expert_reduce.program;
  if (config.shared_intermediate_size > 0) args.shared = F32(shared_delta, count, hidden());
  if (layer.shared_gate != nullptr) args.shared_gate_logit = shared_gate_logits.as<float>();
  args.out = F32(delta, count, hidden());
  args.tokens = expert_counts.as<int64_t>();
  kernels.RunExperts(args);
  return absl::OkStatus();
}

void Decoder::Impl::MultiplyByRouter(const Layer& layer) {
  const int64_t own = rows.own.size();
  const TensorView x = NormInput(normed, own);
  const TensorView logits = F32(router_logits, own, config.num_experts);
  kernels.MatMul(x, *layer.router, {&logits, 1});
  if (layer.shared_gate == nullptr) return;
  const TensorView gate = F32(shared_gate_logits, own, 1);
  kernels.MatMul(x, *layer.shared_gate, {&gate, 1});
}

kernels::ExpertRoom Decoder::Impl::RoomFor(const Layer& layer, int64_t count) {
  slot_part_views.clear();
  for (const kernels::Buffer& part : slot_parts) {
    slot_part_views.push_back(F32(part, count, hidden()));
  }
  return {NormInput(grouped, count), F32(expert_gate_up, count, 2 * shard.expert_channels.size()),
          View(expert_activated, profile.activations(), count, layer.experts[0].down->k()),
          slot_part_views};
}

absl::Status Decoder::Impl::Route(const Layer& layer) {
  const int64_t k = config.experts_per_token;
  const int64_t own = rows.own.size();
  expert_ids.resize(rows.count * k);
  expert_weights.resize(rows.count * k);
  if (own > 0) {
    MultiplyByRouter(layer);
    kernels::RouterArgs route;
    route.logits = F32(router_logits, own, config.num_experts);
    route.top_k = k;
    route.normalise = config.normalise_experts;
    route.experts = absl::MakeSpan(expert_ids).subspan(rows.own.begin * k, own * k);
    route.weights = absl::MakeSpan(expert_weights).subspan(rows.own.begin * k, own * k);
    kernels.RouteTopK(route);
  }
  if (rows.sharded) {
    const std::vector<int32_t> mine(expert_ids.begin() + rows.own.begin * k,
                                    expert_ids.begin() + rows.own.end * k);
    absl::Status status = groups.host_stage->AllGather(
        mine.data(), expert_ids.data(), StageSizes(k * static_cast<int64_t>(sizeof(int32_t))));
    if (!status.ok()) return status;
  }

  kernels::SlotPlaces places =
      kernels::PlaceSlots(expert_ids, shard.experts.begin, shard.experts.size());
  slots.clear();
  for (int64_t i = 0; i < rows.count * k; ++i) {
    ++expert_tokens[expert_ids[i]];
    if (places.place[i] < 0) continue;
    slots.push_back({static_cast<int32_t>(i / k), places.place[i]});
  }
  expert_begin = std::move(places.begin);
  return absl::OkStatus();
}

absl::Status Decoder::Impl::DispatchTokens() {
  if (!rows.sharded) {
    tokens = NormInput(normed, rows.count);
    return absl::OkStatus();
  }
  const int64_t k = config.experts_per_token;
  const int size = groups.stage_size();
  const int64_t row_bytes = normed_row_bytes();
  const auto wanted = [&](int64_t row, Range experts) {
    const auto* ids = &expert_ids[row * k];
    return std::any_of(ids, ids + k,
                       [&](int32_t id) { return id >= experts.begin && id < experts.end; });
  };
  std::vector<int64_t> send(size, 0);
  std::vector<int64_t> receive(size, 0);
  std::vector<int32_t> sent;  // own rows, by receiver
  for (int g = 0; g < size; ++g) {
    const Range experts = shards.experts(g);
    for (int64_t row = rows.own.begin; row < rows.own.end; ++row) {
      if (!wanted(row, experts)) continue;
      sent.push_back(static_cast<int32_t>(row - rows.own.begin));
      send[g] += row_bytes;
    }
  }
  kernels.GatherTokens(NormInput(normed, rows.own.size()), sent,
                       NormInput(dispatch_send, static_cast<int64_t>(sent.size())));
  row_of_token.clear();
  for (const Slot& slot : slots) {
    if (row_of_token.empty() || row_of_token.back() != slot.row) row_of_token.push_back(slot.row);
  }
  for (int g = 0; g < size; ++g) {
    const Range owned = TokenRowsOf(g);
    const auto begin = std::lower_bound(row_of_token.begin(), row_of_token.end(), owned.begin);
    const auto end = std::lower_bound(begin, row_of_token.end(), owned.end);
    receive[g] = (end - begin) * row_bytes;
  }
  tokens = NormInput(dispatched, static_cast<int64_t>(row_of_token.size()));
  return groups.stage->AllToAll(dispatch_send.data(), send, dispatched.data(), receive);
}

void Decoder::Impl::RunExperts(const Layer& layer) {
  const int64_t count = static_cast<int64_t>(slots.size());
  if (count == 0) return;
  const int64_t channels = shard.expert_channels.size();
  if (channels == 0) {
    // Every leaf of this rank is empty: its sums are +0.
    for (const kernels::Buffer& part : slot_parts) {
      kernels.Zero(part.data(), count * hidden() * 4);
    }
    return;
  }
  // Rows of `tokens`, by place.
  std::vector<int32_t> from(count);
  int32_t token = -1;
  int32_t last_row = -1;
  for (const Slot& slot : slots) {
    if (slot.row != last_row) ++token;
    last_row = slot.row;
    from[slot.place] = rows.sharded ? token : slot.row;
  }
  kernels::RunPlacedSlots(kernels, tokens, from, expert_begin, *layer.expert_set,
                          RoomFor(layer, count));
}

absl::Status Decoder::Impl::CombineExperts(const Layer& layer) {
  const int64_t k = config.experts_per_token;
  const int size = groups.stage_size();
  const int etp = shards.etp();
  const int64_t n = hidden();
  const Range mine = rows.combine;
  int num_parts = 0;
  for (const int count : expert_reduce.parts_per_member) num_parts += count;
  std::vector<const float*> pointers(mine.size() * k * num_parts);

  const int own_parts = static_cast<int>(slot_parts.size());
  const int64_t count = static_cast<int64_t>(slots.size());
  std::vector<int32_t> places;
  for (const Slot& slot : slots) places.push_back(slot.place);
  for (int p = 0; p < own_parts; ++p) {
    kernels.GatherTokens(F32(slot_parts[p], count, n), places,
                         {combine_send.as<float>() + p * n, DType::kF32, count, n, own_parts * n});
  }
  std::vector<int64_t> send(size, 0);
  std::vector<int64_t> receive(size, 0);
  auto slot = slots.begin();
  for (int g = 0; g < size; ++g) {
    const Range owned = TokenRowsOf(g);
    for (; slot != slots.end() && slot->row < owned.end; ++slot) send[g] += own_parts * n * 4;
  }
  for (int64_t i = mine.begin * k; i < mine.end * k; ++i) {
    const int first = first_holder[expert_ids[i]];
    for (int j = 0; j < etp; ++j) {
      receive[first + j] += expert_reduce.parts_per_member[j] * n * 4;
    }
  }
  absl::Status status =
      groups.stage->AllToAll(combine_send.data(), send, combine_received.data(), receive);
  if (!status.ok()) return status;
  std::vector<const float*> next(size);
  const float* from = combine_received.as<float>();
  for (int g = 0; g < size; ++g) {
    next[g] = from;
    from += receive[g] / 4;
  }
  const float** pointer = pointers.data();
  for (int64_t i = mine.begin * k; i < mine.end * k; ++i) {
    const int first = first_holder[expert_ids[i]];
    for (int j = 0; j < etp; ++j) {
      for (int p = 0; p < expert_reduce.parts_per_member[j]; ++p) {
        *pointer++ = next[first + j];
        next[first + j] += n;
      }
    }
  }

  const bool gather = !rows.sharded;
  const kernels::Buffer& result = gather ? combined : delta;
  if (!mine.empty()) {
    const int64_t offset = mine.begin - rows.own.begin;
    kernels::CombineExpertsArgs combine;
    combine.rows = mine.size();
    combine.hidden = n;
    combine.top_k = k;
    combine.weights = &expert_weights[mine.begin * k];
    combine.parts = pointers;
    combine.num_parts = num_parts;
    combine.program = expert_reduce.program;
    if (config.shared_intermediate_size > 0) {
      combine.shared = F32(shared_delta, mine.size(), n);
      combine.shared.data = shared_delta.as<float>() + offset * n;
    }
    if (layer.shared_gate != nullptr) {
      combine.shared_gate_logit = shared_gate_logits.as<float>() + offset;
    }
    combine.out = F32(result, mine.size(), n);
    kernels.CombineExperts(combine);
  }
  if (!gather) return absl::OkStatus();
  return groups.stage->AllGather(combined.data(), delta.data(), StageSizes(n * 4));
}

}  // namespace phalanx::model
