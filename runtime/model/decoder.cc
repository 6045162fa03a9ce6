#include "runtime/model/decoder.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/rope.h"
#include "runtime/checkpoint/families.h"
#include "runtime/checkpoint/rope_scaling.h"
#include "runtime/model/weight_loader.h"

namespace phalanx::model {

using checkpoint::ModelConfig;
using kernels::DType;
using kernels::TensorView;
using parallel::Range;

namespace {

// Logits are made for this many rows at a time.
constexpr int64_t kLogitRows = 32;

struct Layer {
  kernels::Buffer attention_norm;  // [hidden] F32
  kernels::Buffer mlp_norm;        // [hidden]
  kernels::Buffer qkv_bias;        // [(heads + 2 kv_heads) * d] or empty
  kernels::Buffer q_norm;          // [d] or empty
  kernels::Buffer k_norm;
  kernels::Buffer o_bias;                          // [hidden] or empty
  kernels::Buffer gate_up_bias;                    // [2 channels] or empty
  kernels::Buffer down_bias;                       // [hidden] or empty
  std::unique_ptr<kernels::PackedWeight> qkv;      // [(heads + 2 kv_heads) * d, hidden]
  std::unique_ptr<kernels::PackedWeight> o;        // [hidden, heads * d]
  std::unique_ptr<kernels::PackedWeight> gate_up;  // [2 channels, hidden]
  std::unique_ptr<kernels::PackedWeight> down;     // [hidden, channels]
  kernels::Buffer kv;
};

}  // namespace

struct Decoder::Impl {
  Impl(const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
       kernels::Kernels& kernels, comm::Communicator& tp)
      : config(checkpoint.config()),
        profile(options.profile),
        kernels(kernels),
        tp(tp),
        shards(Shape(checkpoint.config()), tp.size(), options.profile.reduction_leaves),
        shard(shards.shard(tp.rank())),
        max_rows(options.max_rows),
        max_positions(options.max_positions) {}

  static parallel::DecoderShape Shape(const ModelConfig& c) {
    return {c.num_layers,   c.hidden_size, c.intermediate_size, c.num_heads,
            c.num_kv_heads, c.head_dim,    c.vocab_size};
  }

  absl::Status LoadWeights(const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options);
  absl::Status AllocateWorkspace();
  absl::Status BuildRope();

  int64_t num_heads() const { return shard.heads.size(); }
  int64_t num_kv_heads() const { return shard.kv_heads.size(); }
  kernels::KvShape kv_shape() const { return {profile.kv(), num_kv_heads(), config.head_dim}; }
  kernels::KvView kv_view(const Layer& layer) const {
    return {kv_shape(), layer.kv.data(), num_kv_blocks};
  }
  static TensorView View(const kernels::Buffer& buffer, DType dtype, int64_t rows, int64_t cols) {
    return {buffer.data(), dtype, rows, cols, cols};
  }
  // The output of a norm: rows padded to whole dot groups. The pad is +0 from the allocation on and
  // nothing writes it.
  int64_t padded_hidden() const { return kernels::RoundUp(config.hidden_size, kernels::kDotGroup); }
  TensorView NormOutput(const kernels::Buffer& buffer, int64_t rows) const {
    return {buffer.data(), profile.activations(), rows, config.hidden_size, padded_hidden()};
  }
  // The same as the input of a matmul, pad included.
  TensorView NormInput(const kernels::Buffer& buffer, int64_t rows) const {
    return View(buffer, profile.activations(), rows, padded_hidden());
  }

  // delta = the finished sum of x * W over all ranks' leaves.
  absl::Status RowParallel(TensorView x, const kernels::PackedWeight* weight, int64_t rows);
  absl::Status Embed(const Batch& batch);
  absl::Status Attend(const Layer& layer, int index, const Batch& batch);
  absl::Status FeedForward(const Layer& layer, int64_t rows);

  const ModelConfig& config;
  Profile profile;
  kernels::Kernels& kernels;
  comm::Communicator& tp;
  const parallel::DecoderShards shards;
  const parallel::TensorShard shard;
  const int64_t max_rows;
  const int64_t max_positions;

  comm::ReducePlan reduce;          // finishes a row-parallel sum
  std::vector<int> stripe_program;  // merges the stripes of attention
  std::vector<int32_t> kv_head_of;  // [num_heads] local KV head
  std::vector<int32_t> out_column;  // [num_heads] column in the input of `o`
  int64_t weight_bytes = 0;
  int64_t num_kv_blocks = 0;

  TensorView embedding;  // [local vocabulary, hidden], in the checkpoint's mapping
  std::vector<Layer> layers;
  kernels::Buffer final_norm;
  std::unique_ptr<kernels::PackedWeight> head;  // [local vocabulary, hidden]; null if empty
  kernels::Buffer cos;                          // [max_positions, d / 2]
  kernels::Buffer sin;

  int64_t forward_rows = 0;            // rows of the last Forward
  kernels::Buffer residual;            // [max_rows, hidden] F32
  kernels::Buffer normed;              // [max_rows, hidden] activation dtype
  kernels::Buffer qkv_out;             // [max_rows, (heads + 2 kv_heads) * d] F32
  kernels::Buffer queries;             // [max_rows, heads * padded d]
  kernels::Buffer attended;            // [max_rows, o.k]
  kernels::Buffer gate_up_out;         // [max_rows, 2 channels] F32
  kernels::Buffer activated;           // [max_rows, down.k]
  std::vector<kernels::Buffer> parts;  // [max_rows, hidden] F32 each: this rank's subtrees
  kernels::Buffer delta;               // [max_rows, hidden] F32
  kernels::Buffer gathered_rows;       // [kLogitRows, hidden] F32
  kernels::Buffer head_input;          // [kLogitRows, padded hidden]
  kernels::Buffer local_logits;        // [kLogitRows, local vocabulary] F32
  std::vector<float> all_logits;       // rank 0, tp > 1: [ranks][kLogitRows, their vocabulary]
  std::vector<float> full_row;         // rank 0, tp > 1: [vocab_size]
};

absl::Status Decoder::Impl::LoadWeights(const checkpoint::Checkpoint& checkpoint,
                                        const DecoderOptions& options) {
  using checkpoint::Role;
  WeightLoader loader(checkpoint, kernels, options.progress);
  const Range heads = shard.heads;
  const Range kv = shard.kv_heads;
  const Range channels = shard.channels;
  const int64_t d = config.head_dim;
  const Range q_rows = {heads.begin * d, heads.end * d};
  const Range kv_rows = {kv.begin * d, kv.end * d};
  const KSlice all = WholeK(config.hidden_size);
  const KSlice head_leaves = ShardedK(shards.head_leaves(), shard.leaves, d, shards.num_leaves());
  const KSlice channel_leaves =
      ShardedK(shards.channel_leaves(), shard.leaves, 1, shards.num_leaves());

  loader.Expect(config.num_layers * (2 * q_rows.size() + 2 * kv_rows.size() + 3 * channels.size()) *
                    config.hidden_size +
                shard.vocab.size() * config.hidden_size);
  layers.resize(config.num_layers);
  for (int i = 0; i < config.num_layers; ++i) {
    Layer& layer = layers[i];
    loader.Vector({{Role::kAttnNorm, i}}, layer.attention_norm);
    loader.Vector({{Role::kMlpNorm, i}}, layer.mlp_norm);
    if (!heads.empty()) {
      loader.Matrix({{Role::kQ, i, q_rows}, {Role::kK, i, kv_rows}, {Role::kV, i, kv_rows}}, all,
                    layer.qkv);
      loader.Matrix({{Role::kO, i}}, head_leaves, layer.o);
      if (config.qkv_bias) {
        loader.Vector(
            {{Role::kQBias, i, q_rows}, {Role::kKBias, i, kv_rows}, {Role::kVBias, i, kv_rows}},
            layer.qkv_bias);
      }
      if (config.qk_norm) {
        loader.Vector({{Role::kQNorm, i}}, layer.q_norm);
        loader.Vector({{Role::kKNorm, i}}, layer.k_norm);
      }
    }
    if (config.o_bias) loader.Vector({{Role::kOBias, i}}, layer.o_bias);
    if (!channels.empty()) {
      loader.Matrix({{Role::kGate, i, channels}, {Role::kUp, i, channels}}, all, layer.gate_up);
      loader.Matrix({{Role::kDown, i}}, channel_leaves, layer.down);
      if (config.mlp_bias) {
        loader.Vector({{Role::kGateBias, i, channels}, {Role::kUpBias, i, channels}},
                      layer.gate_up_bias);
      }
    }
    if (config.mlp_bias) loader.Vector({{Role::kDownBias, i}}, layer.down_bias);
  }
  loader.Vector({{Role::kFinalNorm, 0}}, final_norm);
  loader.Table(Role::kEmbedding, shard.vocab, embedding);
  if (!shard.vocab.empty()) {
    const Role role = config.tie_word_embeddings ? Role::kEmbedding : Role::kLmHead;
    loader.Matrix({{role, 0, shard.vocab}}, all, head);
  }
  weight_bytes = loader.bytes();
  return loader.status();
}

absl::Status Decoder::Impl::BuildRope() {
  const checkpoint::RopeFrequencies rope =
      checkpoint::ComputeRopeFrequencies(config.rope, config.head_dim);
  const kernels::RopeTables tables =
      kernels::BuildRopeTables(rope.inv_freq, max_positions, rope.attention_factor);
  for (auto [buffer, host] : {std::pair(&cos, &tables.cos), std::pair(&sin, &tables.sin)}) {
    const int64_t bytes = static_cast<int64_t>(host->size() * sizeof(float));
    absl::StatusOr<kernels::Buffer> allocated = kernels.Allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    *buffer = *std::move(allocated);
    kernels.CopyIn(buffer->data(), host->data(), bytes);
  }
  return absl::OkStatus();
}

absl::Status Decoder::Impl::AllocateWorkspace() {
  const int64_t hidden = config.hidden_size;
  const int64_t d = config.head_dim;
  const int64_t padded_d = kernels::RoundUp(d, kernels::kDotGroup);
  const int64_t act = SizeOf(profile.activations());
  absl::Status status;
  const auto allocate = [&](kernels::Buffer& buffer, int64_t bytes) {
    if (!status.ok() || bytes == 0) return;
    absl::StatusOr<kernels::Buffer> allocated = kernels.Allocate(bytes);
    if (allocated.ok()) {
      buffer = *std::move(allocated);
    } else {
      status = allocated.status();
    }
  };
  allocate(residual, max_rows * hidden * 4);
  allocate(normed, max_rows * padded_hidden() * act);
  allocate(delta, max_rows * hidden * 4);
  parts.resize(shards.parts(tp.rank()).size());
  if (tp.size() > 1) {
    for (kernels::Buffer& part : parts) allocate(part, max_rows * hidden * 4);
  }
  if (num_heads() > 0) {
    allocate(qkv_out, max_rows * (num_heads() + 2 * num_kv_heads()) * d * 4);
    allocate(queries, max_rows * num_heads() * padded_d * act);
    allocate(attended, max_rows * layers[0].o->k() * act);
  }
  if (!shard.channels.empty()) {
    allocate(gate_up_out, max_rows * 2 * shard.channels.size() * 4);
    allocate(activated, max_rows * layers[0].down->k() * act);
  }
  allocate(gathered_rows, kLogitRows * hidden * 4);
  allocate(head_input, kLogitRows * padded_hidden() * act);
  allocate(local_logits, kLogitRows * shard.vocab.size() * 4);
  if (tp.size() > 1 && tp.rank() == 0) {
    all_logits.resize(kLogitRows * config.vocab_size);
    full_row.resize(config.vocab_size);
  }
  return status;
}

absl::Status Decoder::Impl::RowParallel(TensorView x, const kernels::PackedWeight* weight,
                                        int64_t rows) {
  const int64_t hidden = config.hidden_size;
  if (tp.size() == 1) {
    const TensorView out = View(delta, DType::kF32, rows, hidden);
    kernels.MatMul(x, *weight, {&out, 1});
    return absl::OkStatus();
  }
  std::vector<TensorView> outs;
  std::vector<const float*> sends;
  for (const kernels::Buffer& part : parts) {
    outs.push_back(View(part, DType::kF32, rows, hidden));
    sends.push_back(part.as<float>());
  }
  if (weight != nullptr) {
    kernels.MatMul(x, *weight, outs);
  } else {
    // Every leaf of this rank is empty: its sums are +0.
    for (const kernels::Buffer& part : parts) std::memset(part.data(), 0, rows * hidden * 4);
  }
  kernels.Synchronize();
  return tp.AllReduce(reduce, sends, delta.as<float>(), rows * hidden);
}

absl::Status Decoder::Impl::Embed(const Batch& batch) {
  const TensorView x = View(residual, DType::kF32, batch.rows(), config.hidden_size);
  kernels.GatherRows(embedding, batch.ids, shard.vocab.begin, x);
  if (tp.size() == 1) return absl::OkStatus();
  kernels.Synchronize();
  return tp.AllReduceOr(residual.as<uint32_t>(), batch.rows() * config.hidden_size);
}

absl::Status Decoder::Impl::Attend(const Layer& layer, int index, const Batch& batch) {
  const int64_t m = batch.rows();
  const int64_t d = config.head_dim;
  const int64_t padded_d = kernels::RoundUp(d, kernels::kDotGroup);
  const DType act = profile.activations();
  if (num_heads() == 0) return RowParallel({}, nullptr, m);

  const TensorView qkv = View(qkv_out, DType::kF32, m, (num_heads() + 2 * num_kv_heads()) * d);
  kernels.MatMul(NormInput(normed, m), *layer.qkv, {&qkv, 1});

  kernels::QkvArgs write;
  write.qkv = qkv;
  write.bias = layer.qkv_bias.as<float>();
  write.q_norm = layer.q_norm.as<float>();
  write.k_norm = layer.k_norm.as<float>();
  write.norm_eps = config.rms_norm_eps;
  write.num_heads = num_heads();
  write.cos = cos.as<float>();
  write.sin = sin.as<float>();
  write.rotary_dim = d;
  write.positions = batch.positions;
  write.slots = batch.slots;
  write.cache = kv_view(layer);
  write.q = View(queries, act, m, num_heads() * padded_d);
  kernels.QkvToCache(write);

  kernels::AttentionArgs attend;
  attend.q = write.q;
  attend.num_heads = num_heads();
  attend.kv_head_of = kv_head_of;
  attend.scale = config.attention_scale();
  attend.window = config.window(index);
  attend.cache = write.cache;
  attend.sequences = batch.sequences;
  attend.num_stripes = profile.sequence_stripes;
  attend.stripe_begin = 0;
  attend.stripe_end = profile.sequence_stripes;
  attend.stripe_program = stripe_program;
  attend.out_column = out_column;
  attend.out = View(attended, act, m, layer.o->k());
  kernels.Attention(attend);
  return RowParallel(attend.out, layer.o.get(), m);
}

absl::Status Decoder::Impl::FeedForward(const Layer& layer, int64_t rows) {
  const int64_t n = shard.channels.size();
  if (n == 0) return RowParallel({}, nullptr, rows);
  const DType act = profile.activations();
  const TensorView gate_up = View(gate_up_out, DType::kF32, rows, 2 * n);
  kernels.MatMul(NormInput(normed, rows), *layer.gate_up, {&gate_up, 1});
  const TensorView out = View(activated, act, rows, layer.down->k());
  kernels.SiluMul(gate_up, layer.gate_up_bias.as<float>(), n, out);
  return RowParallel(out, layer.down.get(), rows);
}

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const checkpoint::Checkpoint& checkpoint,
                                                       const DecoderOptions& options,
                                                       kernels::Kernels& kernels,
                                                       comm::Communicator& tp) {
  const ModelConfig& config = checkpoint.config();
  const absl::Status check =
      parallel::DecoderShards::Check(tp.size(), options.profile.reduction_leaves);
  if (!check.ok()) return check;
  DecoderOptions filled = options;
  filled.profile.weights = config.weight_dtype;
  if (filled.max_positions <= 0) filled.max_positions = config.max_position_embeddings;
  auto impl = std::make_unique<Impl>(checkpoint, filled, kernels, tp);

  impl->reduce = {impl->shards.parts_per_member(), impl->shards.finish_program()};
  impl->stripe_program = parallel::LeafProgram({0, filled.profile.sequence_stripes}, 0);
  // The input of `o`: the rank's leaves side by side, each padded to whole dot groups.
  int64_t leaf_column = 0;
  for (int64_t leaf = impl->shard.leaves.begin; leaf < impl->shard.leaves.end; ++leaf) {
    const Range heads = impl->shards.head_leaves().leaf(static_cast<int>(leaf));
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      impl->kv_head_of.push_back(
          static_cast<int32_t>(impl->shards.kv_head(h) - impl->shard.kv_heads.begin));
      impl->out_column.push_back(
          static_cast<int32_t>(leaf_column + (h - heads.begin) * config.head_dim));
    }
    leaf_column += kernels::RoundUp(heads.size() * config.head_dim, kernels::kDotGroup);
  }

  absl::Status status = impl->LoadWeights(checkpoint, filled);
  if (status.ok()) status = impl->AllocateWorkspace();
  if (status.ok()) status = impl->BuildRope();
  if (!status.ok()) return status;
  return std::unique_ptr<Decoder>(new Decoder(std::move(impl)));
}

const Profile& Decoder::profile() const { return impl_->profile; }
const ModelConfig& Decoder::config() const { return impl_->config; }
int64_t Decoder::max_positions() const { return impl_->max_positions; }
int64_t Decoder::weight_bytes() const { return impl_->weight_bytes; }
int64_t Decoder::kv_blocks() const { return impl_->num_kv_blocks; }

int64_t Decoder::kv_block_bytes() const {
  if (impl_->num_heads() == 0) return 0;
  return impl_->config.num_layers * impl_->kernels.KvBlockBytes(impl_->kv_shape());
}

absl::Status Decoder::AllocateKv(int64_t num_blocks) {
  impl_->num_kv_blocks = num_blocks;
  if (impl_->num_heads() == 0) return absl::OkStatus();
  const int64_t bytes = num_blocks * impl_->kernels.KvBlockBytes(impl_->kv_shape());
  for (Layer& layer : impl_->layers) {
    absl::StatusOr<kernels::Buffer> kv = impl_->kernels.Allocate(bytes);
    if (!kv.ok()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "KV cache of ", num_blocks, " blocks: ", kv.status().message(), "; lower --kv-memory"));
    }
    layer.kv = *std::move(kv);
  }
  return absl::OkStatus();
}

void Decoder::CopyBlocks(absl::Span<const scheduler::BlockCopy> copies) {
  if (copies.empty() || impl_->num_heads() == 0) return;
  std::vector<std::pair<int32_t, int32_t>> pairs;
  for (const scheduler::BlockCopy& copy : copies) {
    pairs.emplace_back(copy.source, copy.destination);
  }
  for (const Layer& layer : impl_->layers) impl_->kernels.CopyBlocks(impl_->kv_view(layer), pairs);
}

absl::Status Decoder::Forward(const Batch& batch) {
  Impl& m = *impl_;
  const int64_t rows = batch.rows();
  if (rows < 1 || rows > m.max_rows) {
    return absl::InternalError(
        absl::StrCat("a step of ", rows, " rows, but this worker was sized for 1 to ", m.max_rows));
  }
  m.forward_rows = rows;
  if (absl::Status status = m.Embed(batch); !status.ok()) return status;

  const int64_t hidden = m.config.hidden_size;
  const float eps = m.config.rms_norm_eps;
  const TensorView x = Impl::View(m.residual, DType::kF32, rows, hidden);
  const TensorView normed = m.NormOutput(m.normed, rows);
  const TensorView delta = Impl::View(m.delta, DType::kF32, rows, hidden);
  for (int i = 0; i < m.config.num_layers; ++i) {
    const Layer& layer = m.layers[i];
    if (i == 0) m.kernels.RmsNorm(x, layer.attention_norm.as<float>(), eps, normed);
    if (absl::Status status = m.Attend(layer, i, batch); !status.ok()) return status;
    m.kernels.AddResidualRmsNorm(x, delta, layer.o_bias.as<float>(), layer.mlp_norm.as<float>(),
                                 eps, normed);
    if (absl::Status status = m.FeedForward(layer, rows); !status.ok()) return status;
    if (i + 1 < m.config.num_layers) {
      m.kernels.AddResidualRmsNorm(x, delta, layer.down_bias.as<float>(),
                                   m.layers[i + 1].attention_norm.as<float>(), eps, normed);
    } else {
      m.kernels.AddResidual(x, delta, layer.down_bias.as<float>());
    }
  }
  m.kernels.Synchronize();
  return absl::OkStatus();
}

absl::Status Decoder::Logits(
    absl::Span<const int32_t> rows,
    const std::function<void(int64_t i, absl::Span<const float>)>& consume) {
  Impl& m = *impl_;
  const int64_t hidden = m.config.hidden_size;
  const int64_t vocab = m.config.vocab_size;
  const int64_t local = m.shard.vocab.size();
  const size_t row_bytes = hidden * sizeof(float);
  for (size_t begin = 0; begin < rows.size(); begin += kLogitRows) {
    const int64_t count = std::min<int64_t>(kLogitRows, rows.size() - begin);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(m.gathered_rows.as<float>() + i * hidden,
                  m.residual.as<float>() + rows[begin + i] * hidden, row_bytes);
    }
    const TensorView picked = Impl::View(m.gathered_rows, DType::kF32, count, hidden);
    m.kernels.RmsNorm(picked, m.final_norm.as<float>(), m.config.rms_norm_eps,
                      m.NormOutput(m.head_input, count));
    const TensorView logits = Impl::View(m.local_logits, DType::kF32, count, local);
    if (local > 0) m.kernels.MatMul(m.NormInput(m.head_input, count), *m.head, {&logits, 1});
    m.kernels.Synchronize();
    if (m.tp.size() == 1) {
      for (int64_t i = 0; i < count; ++i) {
        consume(begin + i, absl::MakeSpan(m.local_logits.as<float>() + i * local, local));
      }
      continue;
    }
    std::vector<int64_t> bytes;
    std::vector<Range> vocabs;
    for (int t = 0; t < m.tp.size(); ++t) {
      vocabs.push_back(m.shards.shard(t).vocab);
      bytes.push_back(count * vocabs.back().size() * static_cast<int64_t>(sizeof(float)));
    }
    absl::Status status =
        m.tp.Gather(m.local_logits.data(), m.all_logits.data(), bytes, /*root=*/0);
    if (!status.ok()) return status;
    if (m.tp.rank() != 0) continue;
    for (int64_t i = 0; i < count; ++i) {
      const float* rank_logits = m.all_logits.data();  // [count, vocabulary of the rank]
      for (const Range& range : vocabs) {
        std::copy_n(rank_logits + i * range.size(), range.size(), m.full_row.begin() + range.begin);
        rank_logits += count * range.size();
      }
      consume(begin + i, absl::MakeConstSpan(m.full_row.data(), vocab));
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx::model
