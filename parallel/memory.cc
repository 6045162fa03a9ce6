#include "parallel/memory.h"

#include <algorithm>

namespace phalanx::parallel {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr int64_t kF32Bytes = 4;

// Values of a layer's matrices, by LayerMatrix.
std::array<int64_t, kNumLayerMatrices> LayerValues(const DecoderShape& shape, int64_t layer) {
  const int64_t hidden = shape.hidden_size;
  std::array<int64_t, kNumLayerMatrices> out = {};
  out[kQkv] = hidden * shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads);
  out[kO] = hidden * shape.head_dim * shape.num_heads;
  const bool moe = shape.is_moe(layer);
  out[kDown] =
      hidden * (moe ? shape.num_experts * shape.expert_intermediate_size : shape.intermediate_size);
  out[kSharedDown] = moe ? hidden * shape.shared_intermediate_size : 0;
  out[kGateUp] = 2 * out[kDown];
  out[kSharedGateUp] = 2 * out[kSharedDown];
  return out;
}

}  // namespace

int64_t ModelSpec::Parameters() const {
  int64_t total = (tied_head ? 1 : 2) * shape.vocab_size * shape.hidden_size;
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    if (shape.is_moe(i)) total += shape.hidden_size * shape.num_experts;
    for (const int64_t values : LayerValues(shape, i)) total += values;
  }
  return total;
}

int64_t ModelSpec::ParameterBytes() const {
  int64_t total = Parameters() * element_bytes;
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    const std::array<int64_t, kNumLayerMatrices> values = LayerValues(shape, i);
    for (int m = 0; m < kNumLayerMatrices; ++m) {
      total +=
          values[m] / 32 * (group_bytes(static_cast<LayerMatrix>(m), fp8(i)) - 32 * element_bytes);
    }
  }
  return total;
}

MemoryModel::MemoryModel(const ModelSpec& spec, const DeviceTraits& traits,
                         const DecoderShards& shards, int64_t max_rows)
    : spec_(spec), traits_(traits), shards_(shards), max_rows_(max_rows) {
  const Layout& layout = shards.layout();
  for (int g = 0; g < layout.sp * layout.tp; ++g) members_.push_back(MakeMember(g));
  for (int p = 0; p < layout.pp; ++p) {
    const Range layers = shards.stage_layers(p);
    auto& kinds = stages_.emplace_back();
    for (int64_t i = layers.begin; i < layers.end; ++i) {
      ++kinds[{spec.shape.is_moe(i), spec.fp8(i)}];
    }
  }
}

int64_t MemoryModel::Packed(int64_t columns, int64_t padded_k) const {
  return RoundUp(columns, traits_.panel_columns) * padded_k * spec_.element_bytes;
}

int64_t MemoryModel::Groups(int64_t columns, int64_t padded_k) const {
  return RoundUp(columns, traits_.panel_columns) * (padded_k / 32);
}

int64_t MemoryModel::Bytes(const LayerWeights& weights, LayerMatrices fp8) const {
  int64_t out = weights.bytes;
  for (int m = 0; m < kNumLayerMatrices; ++m) {
    out += weights.groups[m] * spec_.group_bytes(static_cast<LayerMatrix>(m), fp8);
  }
  return out;
}

int64_t MemoryModel::PaddedK(const LeafPartition& cut, Range leaves, int64_t scale) const {
  int64_t k = 0;
  for (int64_t i = leaves.begin; i < leaves.end; ++i) {
    k += RoundUp(cut.leaf(static_cast<int>(i)).size() * scale, traits_.leaf_granule);
  }
  return k;
}

MemoryModel::Member MemoryModel::MakeMember(int g) const {
  const DecoderShape& shape = spec_.shape;
  const Layout& layout = shards_.layout();
  const Range leaves = shards_.tensor_cut().run(g % layout.tp);
  const Range heads = shards_.head_leaves().elements(leaves);
  const int64_t kv_heads =
      heads.empty() ? 0 : shards_.kv_head(heads.end - 1) + 1 - shards_.kv_head(heads.begin);
  const int64_t channels = shards_.channel_leaves().elements(leaves).size();
  const int64_t d = shape.head_dim;
  const int64_t hidden = shape.hidden_size;
  const int64_t padded_hidden = RoundUp(hidden, traits_.leaf_granule);
  const int64_t vector = hidden * kF32Bytes;

  Member out;
  const int64_t qkv_columns = (heads.size() + 2 * kv_heads) * d;
  const int64_t o_k = PaddedK(shards_.head_leaves(), leaves, d);
  LayerWeights attention;
  attention.bytes = 2 * vector;  // the two norms
  if (!heads.empty()) {
    attention.groups[kQkv] = Groups(qkv_columns, padded_hidden);
    attention.groups[kO] = Groups(hidden, o_k);
    if (spec_.qkv_bias) attention.bytes += qkv_columns * kF32Bytes;
    if (spec_.qk_norm) attention.bytes += 2 * d * kF32Bytes;
  }
  if (spec_.o_bias) attention.bytes += vector;

  const int64_t down_k = PaddedK(shards_.channel_leaves(), leaves, 1);
  out.dense_layer = attention;
  out.dense_layer.groups[kGateUp] = Groups(2 * channels, padded_hidden);
  out.dense_layer.groups[kDown] = Groups(hidden, down_k);
  if (spec_.mlp_bias) out.dense_layer.bytes += 2 * channels * kF32Bytes + vector;

  int64_t expert_channels = 0;
  int64_t expert_k = 0;
  if (shape.num_experts > 0) {
    const Range expert_leaves = shards_.expert_cut().run(g % shards_.etp());
    expert_channels = shards_.expert_leaves().elements(expert_leaves).size();
    const int64_t experts = shards_.experts(g).size();
    expert_k = PaddedK(shards_.expert_leaves(), expert_leaves, 1);
    out.moe_layer = attention;
    out.moe_layer.bytes += Packed(shape.num_experts, padded_hidden);
    out.moe_layer.groups[kGateUp] = experts * Groups(2 * expert_channels, padded_hidden);
    out.moe_layer.groups[kDown] = experts * Groups(hidden, expert_k);
    if (shape.shared_intermediate_size > 0) {
      const int64_t width = shards_.shared_leaves().elements(leaves).size();
      out.moe_layer.groups[kSharedGateUp] = Groups(2 * width, padded_hidden);
      out.moe_layer.groups[kSharedDown] =
          Groups(hidden, PaddedK(shards_.shared_leaves(), leaves, 1));
      if (spec_.shared_expert_gate) out.moe_layer.bytes += Packed(1, padded_hidden);
    }
  }

  const int64_t vocab = shards_.vocab(g).size();
  out.head = (vocab == 0 ? 0 : Packed(vocab, padded_hidden)) + vector;
  out.embedding = vocab * hidden * spec_.element_bytes;
  const int64_t kv_token = spec_.kv_element_bytes() * (RoundUp(d, traits_.key_granule) +
                                                       RoundUp(d, traits_.value_granule)) +
                           spec_.kv_scale_bytes();
  out.kv_block_layer = kv_heads * RoundUp(traits_.block_tokens * kv_token, traits_.kv_head_bytes);

  // The decoder's buffers: runtime/model/loading.cc.
  const int64_t group = int64_t{layout.sp} * layout.tp;
  const int64_t act = spec_.activation_bytes;
  const int64_t slice =
      std::max((max_rows_ + layout.sp - 1) / layout.sp, std::min(max_rows_, traits_.shard_rows));
  const int64_t normed = padded_hidden * act;
  int64_t work = slice * (2 * vector + normed);  // residual, delta, normed
  if (layout.tp > 1) {
    work +=
        slice *
        (normed + static_cast<int64_t>(shards_.tensor_cut().parts(g % layout.tp).size()) * vector);
  }
  if (!heads.empty()) {
    work += max_rows_ *
            (qkv_columns * kF32Bytes + heads.size() * RoundUp(d, traits_.leaf_granule) * act);
    work += max_rows_ * d * kF32Bytes;  // rotary tables of the step
    work += slice * o_k * act;
    if (layout.sp > 1) {
      const int s = g / layout.tp;
      const int64_t partial = heads.size() * (2 + d) * kF32Bytes;
      int64_t parts = 0;
      for (const int count : shards_.stripe_cut().parts_per_member()) parts += count;
      const int64_t own = static_cast<int64_t>(shards_.stripe_cut().parts(s).size());
      work += slice * qkv_columns * kF32Bytes + max_rows_ * own * partial +
              2 * slice * parts * partial +
              traits_.partial_rows * shards_.stripe_cut().run(s).size() * partial;
    }
  }
  int64_t widest_k = std::max(padded_hidden, std::max(o_k, down_k));
  if (shape.num_experts > 0) {
    const int64_t k = shape.experts_per_token;
    const int64_t slots = max_rows_ * std::min(k, shards_.experts(g).size());
    const int own_parts = static_cast<int>(shards_.expert_cut().parts(g % shards_.etp()).size());
    work +=
        slice * shape.num_experts * kF32Bytes +
        slots * (normed + 2 * expert_channels * kF32Bytes + expert_k * act + own_parts * vector);
    if (shape.shared_intermediate_size > 0) work += slice * vector;
    if (group > 1) {
      const int64_t own = (slice + layout.tp - 1) / layout.tp;
      int64_t parts = 0;
      for (const int count : shards_.expert_cut().parts_per_member()) parts += count;
      work += own * std::min<int64_t>(k, layout.ep) * shards_.etp() * normed + max_rows_ * normed +
              slots * own_parts * vector + own * k * parts * vector + own * vector;
    }
    widest_k = std::max(widest_k, expert_k);
  }
  // The matmuls' packed left operand.
  work += std::min(max_rows_, traits_.matmul_rows) * widest_k * kF32Bytes;
  out.workspace = work + traits_.scratch_bytes;
  out.dense_workspace = slice * (2 * channels * kF32Bytes + down_k * act);
  const int64_t shared_k = PaddedK(shards_.shared_leaves(), leaves, 1);
  out.moe_workspace =
      slice * (2 * shards_.shared_leaves().elements(leaves).size() * kF32Bytes + shared_k * act);
  if (group > 1) out.first_workspace = max_rows_ * vector;
  const int64_t logit_rows = std::min(max_rows_, traits_.logit_rows);
  out.last_workspace = logit_rows * (vector + normed + vocab * kF32Bytes);
  if (group > 1 && g == 0) out.last_workspace += 2 * logit_rows * shape.vocab_size * kF32Bytes;
  return out;
}

RankMemory MemoryModel::rank(int rank) const {
  const Layout& layout = shards_.layout();
  const MeshCoordinates at = shards_.mesh().coordinates(rank);
  const Member& member = members_[at.s * layout.tp + at.t];
  const int64_t layers = shards_.stage_layers(at.p).size();
  RankMemory out;
  int64_t layer_workspace = 0;
  for (const auto& [kind, count] : stages_[at.p]) {
    out.weight_bytes += count * Bytes(kind.moe ? member.moe_layer : member.dense_layer, kind.fp8);
    layer_workspace =
        std::max(layer_workspace, kind.moe ? member.moe_workspace : member.dense_workspace);
  }
  out.workspace_bytes = member.workspace + layer_workspace;
  if (at.p == 0) {
    out.embedding_bytes = member.embedding;
    out.weight_bytes += member.embedding;
    out.workspace_bytes += member.first_workspace;
  }
  if (at.p + 1 == layout.pp) {
    out.weight_bytes += member.head;
    out.workspace_bytes += member.last_workspace;
  }
  out.kv_block_bytes = layers * member.kv_block_layer;
  out.stripes = static_cast<int>(shards_.stripe_cut().run(at.s).size());
  return out;
}

int64_t MemoryModel::BlocksPerSequence(int rank, int64_t tokens) const {
  const Range run = shards_.stripe_cut().run(shards_.mesh().coordinates(rank).s);
  const int64_t stripes = shards_.stripe_cut().num_leaves();
  const int64_t blocks = (tokens + traits_.block_tokens - 1) / traits_.block_tokens;
  // Whole rounds over the stripes, then the first of the next round.
  const int64_t rest = blocks % stripes;
  return blocks / stripes * run.size() + std::clamp<int64_t>(rest - run.begin, 0, run.size());
}

}  // namespace phalanx::parallel
