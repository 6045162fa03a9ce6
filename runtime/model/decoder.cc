// The step, and the decoder's face.
#include "runtime/model/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/rope.h"
#include "runtime/model/decoder_impl.h"
#include "runtime/model/shape.h"

namespace phalanx::model {

using checkpoint::ModelConfig;
using kernels::TensorView;
using parallel::Range;

namespace {

// Of messages between stages; the residual stream's have tag 0.
constexpr int kExpertTokensTag = 1;

// Whether the rows are r, r + 1, ...
bool FollowEachOther(absl::Span<const int32_t> rows) {
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i] != rows[i - 1] + 1) return false;
  }
  return true;
}

}  // namespace

StepRows Decoder::Impl::PlaceRows(int64_t count) const {
  const parallel::Layout& layout = groups.layout;
  StepRows out;
  out.count = count;
  out.sharded = groups.stage != nullptr && count >= shard_rows;
  out.combine = parallel::TokenRows(count, groups.at.s, layout.sp, groups.at.t, layout.tp);
  out.slice = out.sharded ? parallel::SequenceRows(count, groups.at.s, layout.sp) : Range{0, count};
  out.own = out.sharded ? out.combine : Range{0, count};
  return out;
}

absl::Status Decoder::Impl::Embed(const Batch& batch) {
  const kernels::Buffer& buffer = rows.sharded ? embedded : residual;
  const TensorView table = View(embedding, profile.weights, shard.vocab.size(), hidden());
  kernels.GatherRows(table, batch.ids, shard.vocab.begin, batch.chosen,
                     F32(buffer, rows.count, hidden()));
  if (groups.stage == nullptr) return absl::OkStatus();
  absl::Status status = groups.stage->AllReduceOr(buffer.as<uint32_t>(), rows.count * hidden());
  if (!status.ok() || !rows.sharded) return status;
  kernels.CopyRows(RowsFrom(F32(embedded, rows.count, hidden()), rows.own.begin),
                   F32(residual, rows.own.size(), hidden()));
  return status;
}

void Decoder::Impl::MakeRope(const Batch& batch) {
  if (num_heads() == 0) return;
  const size_t floats = rows.count * inv_freq.size();
  host_rope.resize(2 * floats);
  kernels::RopeRows(inv_freq, batch.positions, attention_factor, host_rope.data(),
                    host_rope.data() + floats);
  kernels.CopyIn(rope.data(), host_rope.data(), 2 * floats * sizeof(float));
}

absl::Status Decoder::Impl::ReceiveFromPreviousStage() {
  const int peer = groups.at.p - 1;
  const int64_t bytes = rows.own.size() * hidden() * static_cast<int64_t>(sizeof(float));
  if (bytes > 0) {
    absl::Status status = groups.pp->Recv(residual.data(), bytes, peer, /*tag=*/0);
    if (!status.ok()) return status;
  }
  if (config.num_experts == 0) return absl::OkStatus();
  if (has_stage_alone()) {
    return groups.pp->Recv(expert_counts.data(), expert_tokens_bytes(), peer, kExpertTokensTag);
  }
  return groups.host_pp->Recv(expert_tokens.data(), expert_tokens_bytes(), peer, kExpertTokensTag);
}

absl::Status Decoder::Impl::SendToNextStage() {
  const int peer = groups.at.p + 1;
  const int64_t bytes = rows.own.size() * hidden() * static_cast<int64_t>(sizeof(float));
  if (bytes > 0) {
    absl::Status status = groups.pp->Send(residual.data(), bytes, peer, /*tag=*/0);
    if (!status.ok()) return status;
  }
  if (config.num_experts == 0) return absl::OkStatus();
  if (has_stage_alone()) {
    return groups.pp->Send(expert_counts.data(), expert_tokens_bytes(), peer, kExpertTokensTag);
  }
  return groups.host_pp->Send(expert_tokens.data(), expert_tokens_bytes(), peer, kExpertTokensTag);
}

absl::Status Decoder::Impl::GatherNormed(TensorView* out) {
  if (!rows.sharded || groups.tp == nullptr) {
    *out = NormInput(normed, rows.slice.size());
    return absl::OkStatus();
  }
  *out = NormInput(gathered, rows.slice.size());
  if (rows.slice.empty()) return absl::OkStatus();
  return groups.tp->AllGather(normed.data(), gathered.data(), TensorSizes(normed_row_bytes()));
}

absl::Status Decoder::Impl::RowParallel(TensorView x, const kernels::PackedWeight* weight,
                                        const kernels::Buffer& delta) {
  const int64_t n = hidden();
  const int64_t count = rows.slice.size();
  if (count == 0) return absl::OkStatus();
  if (groups.tp == nullptr) {
    const TensorView out = F32(delta, count, n);
    kernels.MatMul(x, *weight, {&out, 1});
    return absl::OkStatus();
  }
  std::vector<TensorView> outs;
  std::vector<const float*> sends;
  for (const kernels::Buffer& part : parts) {
    outs.push_back(F32(part, count, n));
    sends.push_back(part.as<float>());
  }
  if (weight != nullptr) {
    kernels.MatMul(x, *weight, outs);
  } else {
    // Every leaf of this rank is empty: its sums are +0.
    for (const kernels::Buffer& part : parts) kernels.Zero(part.data(), count * n * 4);
  }
  if (!rows.sharded) return groups.tp->AllReduce(reduce, sends, delta.as<float>(), count * n);
  return groups.tp->ReduceScatter(reduce, sends, delta.as<float>(), TensorSizes(n));
}

absl::Status Decoder::Impl::FeedForward(const Layer& layer, int64_t channels,
                                        const kernels::Buffer& delta) {
  TensorView x;
  if (absl::Status status = GatherNormed(&x); !status.ok()) return status;
  if (channels == 0) return RowParallel({}, nullptr, delta);
  if (x.rows == 0) return absl::OkStatus();
  const TensorView gate_up = F32(gate_up_out, x.rows, 2 * channels);
  const TensorView out = View(activated, profile.activations(), x.rows, layer.down->k());
  kernels.MatMulSiluMul(x, *layer.gate_up, gate_up, layer.gate_up_bias.as<float>(), channels, out);
  return RowParallel(out, layer.down.get(), delta);
}

absl::Status Decoder::Impl::Forward(const Batch& batch, const StageHooks& hooks) {
  if (batch.rows() < 1 || batch.rows() > max_rows) {
    return absl::InternalError(absl::StrCat(
        "a step of ", batch.rows(), " rows, but this worker was sized for 1 to ", max_rows));
  }
  rows = PlaceRows(batch.rows());
  expert_tokens.assign(config.num_experts, 0);
  if (config.num_experts > 0 && has_stage_alone() && shard.first_stage) {
    kernels.Zero(expert_counts.data(), expert_tokens_bytes());
  }
  if (!shard.first_stage) {
    if (absl::Status status = ReceiveFromPreviousStage(); !status.ok()) return status;
  }
  if (hooks.input_ready) hooks.input_ready();
  absl::Status status;
  if (shard.first_stage) status = Embed(batch);
  if (!status.ok()) return status;
  MakeRope(batch);

  const float eps = config.rms_norm_eps;
  const int64_t own = rows.own.size();
  const TensorView x = F32(residual, own, hidden());
  const TensorView norm_out = NormOutput(normed, own);
  const TensorView sum = F32(delta, own, hidden());
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const int64_t index = shard.layers.begin + static_cast<int64_t>(i);
    ++layers_computed;
    if (i == 0 && own > 0) kernels.RmsNorm(x, layer.attention_norm.as<float>(), eps, norm_out);
    if (status = Attend(layer, index, batch); !status.ok()) return status;
    if (own > 0) {
      kernels.AddResidualRmsNorm(x, sum, layer.o_bias.as<float>(), layer.mlp_norm.as<float>(), eps,
                                 norm_out);
    }
    status =
        layer.router != nullptr ? Experts(layer) : FeedForward(layer, shard.channels.size(), delta);
    if (!status.ok()) return status;
    if (own == 0) continue;
    if (i + 1 < layers.size()) {
      kernels.AddResidualRmsNorm(x, sum, layer.down_bias.as<float>(),
                                 layers[i + 1].attention_norm.as<float>(), eps, norm_out);
    } else {
      kernels.AddResidual(x, sum, layer.down_bias.as<float>());
    }
  }
  if (hooks.output_ready) {
    kernels.Synchronize();
    hooks.output_ready();
  }
  return shard.last_stage ? absl::OkStatus() : SendToNextStage();
}

absl::Status Decoder::Impl::Logits(absl::Span<const int32_t> wanted,
                                   const LogitsConsumer& consume) {
  if (!shard.last_stage) return absl::OkStatus();
  const int64_t n = hidden();
  const int64_t local = shard.vocab.size();
  std::vector<int32_t> own_rows;
  for (size_t begin = 0; begin < wanted.size(); begin += logit_rows()) {
    const int64_t count = std::min<int64_t>(logit_rows(), wanted.size() - begin);
    own_rows.clear();
    for (const int32_t row : wanted.subspan(begin, count)) {
      const bool own = row >= rows.own.begin && row < rows.own.end;
      own_rows.push_back(own ? row - static_cast<int32_t>(rows.own.begin) : -1);
    }
    const TensorView own = F32(residual, rows.own.size(), n);
    TensorView last = F32(gathered_rows, count, n);
    if (!rows.sharded && FollowEachOther(own_rows)) {
      // Of a step that only decodes these are all rows, where they stand.
      last = RowsFrom(own, own_rows[0]);
      last.rows = count;
    } else {
      kernels.GatherTokens(own, own_rows, last);
    }
    if (rows.sharded) {
      absl::Status status = groups.stage->AllReduceOr(gathered_rows.as<uint32_t>(), count * n);
      if (!status.ok()) return status;
    }
    kernels.RmsNorm(last, final_norm.as<float>(), config.rms_norm_eps,
                    NormOutput(head_input, count));
    const TensorView logits = F32(local_logits, count, local);
    if (local > 0) kernels.MatMul(NormInput(head_input, count), *head, {&logits, 1});
    if (groups.stage == nullptr) {
      consume(static_cast<int64_t>(begin), logits);
      continue;
    }
    std::vector<int64_t> bytes;
    bytes.reserve(groups.stage_size());
    for (int g = 0; g < groups.stage_size(); ++g) {
      bytes.push_back(count * shards.vocab(g).size() * static_cast<int64_t>(sizeof(float)));
    }
    absl::Status status =
        groups.stage->Gather(local_logits.data(), gathered_logits.data(), bytes, /*root=*/0);
    if (!status.ok()) return status;
    if (groups.stage_rank() != 0) continue;
    const TensorView whole = F32(full_logits, count, config.vocab_size);
    float* from = gathered_logits.as<float>();  // by rank: [count, vocabulary of the rank]
    for (int g = 0; g < groups.stage_size(); ++g) {
      const Range vocab = shards.vocab(g);
      TensorView columns = whole;
      columns.data = whole.f32() + vocab.begin;
      columns.cols = vocab.size();
      kernels.CopyRows({from, kernels::DType::kF32, count, vocab.size(), vocab.size()}, columns);
      from += count * vocab.size();
    }
    consume(static_cast<int64_t>(begin), whole);
  }
  return absl::OkStatus();
}

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const checkpoint::Checkpoint& checkpoint,
                                                       const DecoderOptions& options,
                                                       kernels::Kernels& kernels,
                                                       const ParallelGroups& groups) {
  const ModelConfig& config = checkpoint.config();
  const absl::Status check = parallel::DecoderShards::Check(ShapeOf(config), groups.layout,
                                                            options.profile.reduction_leaves,
                                                            options.profile.sequence_stripes);
  if (!check.ok()) return check;
  const int64_t widest = kernels.max_head_dim(config.weight_dtype);
  if (config.head_dim > widest) {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.directory(), "/config.json: head_dim is ", config.head_dim,
                     ", but on ", kernels.Describe(), " attention takes heads of at most ", widest,
                     " for weights of this type; use --device cpu"));
  }
  DecoderOptions filled = options;
  if (absl::Status held = filled.profile.HoldWeightsOf(config); !held.ok()) return held;
  if (filled.max_positions <= 0) filled.max_positions = config.max_position_embeddings;
  auto impl = std::make_unique<Impl>(checkpoint, filled, kernels, groups);
  absl::Status status = impl->Load(checkpoint, filled);
  if (status.ok()) status = impl->AllocateWorkspace();
  if (!status.ok()) return status;
  return std::unique_ptr<Decoder>(new Decoder(std::move(impl)));
}

absl::StatusOr<std::vector<SliceDigest>> Decoder::DigestSlices(
    const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
    kernels::Kernels& kernels, const parallel::Layout& layout, int rank) {
  ParallelGroups groups;
  groups.layout = layout;
  groups.at = parallel::Mesh(layout).coordinates(rank);
  Impl impl(checkpoint, options, kernels, groups);
  WeightLoader loader(checkpoint, /*kernels=*/nullptr, {});
  if (absl::Status status = impl.LoadWeights(loader); !status.ok()) return status;
  return loader.TakeDigests();
}

std::vector<SliceDigest> Decoder::TakeDigests() { return std::move(impl_->digests); }
const Profile& Decoder::profile() const { return impl_->profile; }
const ModelConfig& Decoder::config() const { return impl_->config; }
int64_t Decoder::max_positions() const { return impl_->max_positions; }
uint64_t Decoder::layers_computed() const { return impl_->layers_computed; }
int64_t Decoder::weight_bytes() const { return impl_->weight_bytes; }
bool Decoder::weights_were_kept() const { return impl_->weights_were_kept; }
uint64_t Decoder::agreed_content() const { return impl_->agreed_content; }
int64_t Decoder::kv_blocks() const { return impl_->num_kv_blocks; }
Range Decoder::stripes() const { return impl_->shard.stripes; }
void Decoder::CopyOutExpertTokens(int64_t* host) const {
  if (impl_->config.num_experts == 0) return;
  if (impl_->has_stage_alone()) {
    impl_->kernels.CopyOutLater(host, impl_->expert_counts.data(), impl_->expert_tokens_bytes());
  } else {
    std::copy(impl_->expert_tokens.begin(), impl_->expert_tokens.end(), host);
  }
}

int64_t Decoder::kv_block_bytes() const {
  if (impl_->num_heads() == 0) return 0;
  return impl_->shard.layers.size() * impl_->kernels.KvBlockBytes(impl_->kv_shape());
}

absl::Status Decoder::AllocateKv(int64_t num_blocks, bool later) {
  return impl_->AllocateKv(num_blocks, later);
}

void Decoder::CopyBlocks(absl::Span<const scheduler::BlockCopy> copies) {
  if (copies.empty() || impl_->num_heads() == 0) return;
  std::vector<std::pair<int32_t, int32_t>> pairs;
  for (const scheduler::BlockCopy& copy : copies) {
    pairs.emplace_back(copy.source, copy.destination);
  }
  for (const Layer& layer : impl_->layers) impl_->kernels.CopyBlocks(impl_->kv_view(layer), pairs);
}

absl::Status Decoder::Forward(const Batch& batch, const StageHooks& hooks) {
  return impl_->Forward(batch, hooks);
}

absl::Status Decoder::Logits(absl::Span<const int32_t> rows, const LogitsConsumer& consume) {
  return impl_->Logits(rows, consume);
}

}  // namespace phalanx::model
