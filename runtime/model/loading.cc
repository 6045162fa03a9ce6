// Packs a rank's slice of the checkpoint and allocates all that a step needs.
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/checkpoint/families.h"
#include "runtime/checkpoint/rope_scaling.h"
#include "runtime/model/decoder_impl.h"
#include "runtime/model/shape.h"

namespace phalanx::model {

using checkpoint::Role;
using parallel::LeafPartition;
using parallel::Range;

namespace {

// KV memory that is backed later: requests that have waited for this rank go first.
constexpr std::chrono::milliseconds kBackingDelay(2000);
constexpr std::chrono::milliseconds kBackingPause(1);
// Little, for it is done under a lock of the whole process.
constexpr int64_t kBackedAtOnce = int64_t{2} << 20;

}  // namespace

Decoder::Impl::Impl(const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
                    kernels::Kernels& kernels, const ParallelGroups& groups)
    : config(checkpoint.config()),
      profile(options.profile),
      kernels(kernels),
      groups(groups),
      shards(ShapeOf(checkpoint.config()), groups.layout, options.profile.reduction_leaves,
             options.profile.sequence_stripes),
      shard(shards.shard(shards.mesh().rank(groups.at))),
      max_rows(options.max_rows),
      max_positions(options.max_positions),
      shard_rows(options.shard_rows) {
  const parallel::TreeCut& tensor = shards.tensor_cut();
  reduce = {tensor.parts_per_member(), tensor.finish_program()};
  stripe_program = parallel::LeafProgram({0, profile.sequence_stripes}, 0);
  if (groups.sp != nullptr) {
    own_stripe_program = shards.stripe_cut().part_programs(groups.at.s);
    stripe_parts = shards.stripe_cut().parts_per_member();
    merge_program = shards.stripe_cut().finish_program();
  }
  if (config.num_experts > 0) {
    const parallel::TreeCut& expert = shards.expert_cut();
    expert_reduce = {expert.parts_per_member(), expert.finish_program()};
    first_holder.resize(config.num_experts);
    for (int g = 0; g < groups.stage_size(); g += shards.etp()) {
      const Range held = shards.experts(g);
      std::fill(first_holder.begin() + held.begin, first_holder.begin() + held.end, g);
    }
  }
  const checkpoint::RopeFrequencies rope =
      checkpoint::ComputeRopeFrequencies(config.rope, config.head_dim);
  inv_freq.assign(rope.inv_freq.begin(), rope.inv_freq.end());
  attention_factor = rope.attention_factor;
  rope_indices.resize(max_rows);
  std::iota(rope_indices.begin(), rope_indices.end(), 0);
  // The input of `o`: the rank's leaves side by side, each padded to whole dot groups.
  int64_t leaf_column = 0;
  for (int64_t leaf = shard.leaves.begin; leaf < shard.leaves.end; ++leaf) {
    const Range heads = shards.head_leaves().leaf(static_cast<int>(leaf));
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      kv_head_of.push_back(static_cast<int32_t>(shards.kv_head(h) - shard.kv_heads.begin));
      out_column.push_back(static_cast<int32_t>(leaf_column + (h - heads.begin) * config.head_dim));
    }
    leaf_column += kernels::RoundUp(heads.size() * config.head_dim, kernels::kDotGroup);
  }
}

int64_t Decoder::Impl::max_slice_rows() const {
  const int64_t sharded = (max_rows + groups.layout.sp - 1) / groups.layout.sp;
  return std::max(sharded, std::min(max_rows, shard_rows));
}

Decoder::Impl::~Impl() {
  {
    std::lock_guard<std::mutex> lock(backing_mutex);
    stop_backing = true;
  }
  backing_changed.notify_all();
  if (kv_backer.joinable()) kv_backer.join();
}

absl::Status Decoder::Impl::Load(const checkpoint::Checkpoint& checkpoint,
                                 const DecoderOptions& options) {
  std::shared_ptr<WeightArena> arena;
  if (options.store != nullptr) {
    const std::vector<std::string> keys = WeightKeys(checkpoint, options, groups.layout);
    const int rank = shards.mesh().rank(groups.at);
    WeightStore::Found found = options.store->Find(keys, rank);
    if (found.arena != nullptr) {
      WeightLoader loader(checkpoint, &kernels, options.progress, found.arena.get());
      absl::Status status = LoadWeights(loader);
      if (status.ok() && !found.arena->exhausted()) {
        status = absl::InvalidArgumentError("kept weights hold more than this rank's slice");
      }
      if (status.ok()) {
        weight_bytes = loader.bytes();
        digests = found.arena->digests();
        weights_were_kept = true;
        agreed_content = found.agreed;
        return absl::OkStatus();
      }
      options.store->Warn(absl::StrCat(status.message(), "; packing them again"));
    }
    // F32 norms of a BF16 model and the pad of narrow matrices take more than they do in the files.
    auto created =
        WeightArena::Create(keys[rank], 16 * checkpoint.TotalBytes() + (int64_t{1} << 30));
    if (created.ok()) {
      arena = *std::move(created);
    } else {
      options.store->Warn(created.status().message());
    }
  }
  WeightLoader loader(checkpoint, &kernels, options.progress, arena.get());
  if (absl::Status status = LoadWeights(loader); !status.ok()) return status;
  weight_bytes = loader.bytes();
  digests = loader.TakeDigests();
  if (arena == nullptr) return absl::OkStatus();
  const absl::Status sealed = arena->Seal(digests, options.load_threads);
  if (sealed.ok()) {
    options.store->Keep(*arena);
  } else {
    options.store->Warn(sealed.message());
  }
  return absl::OkStatus();
}

std::vector<std::string> Decoder::WeightKeys(const checkpoint::Checkpoint& checkpoint,
                                             const DecoderOptions& options,
                                             const parallel::Layout& layout) {
  Profile profile = options.profile;
  profile.HoldWeightsOf(checkpoint.config()).IgnoreError();  // Load refuses what it can't hold
  std::string common = absl::StrCat("phalanx packed weights\n", options.packer, "\n",
                                    checkpoint.CheckpointDigest(), "\n", profile.ToString());
  for (const int64_t part : checkpoint.FileIdentities()) absl::StrAppend(&common, " ", part);
  const parallel::DecoderShards shards(ShapeOf(checkpoint.config()), layout,
                                       profile.reduction_leaves, profile.sequence_stripes);
  std::vector<std::string> keys;
  for (int rank = 0; rank < layout.group_size(); ++rank) {
    const parallel::RankShard shard = shards.shard(rank);
    const parallel::MeshCoordinates at = shards.mesh().coordinates(rank);
    const int etp = shards.etp();
    std::string slice = absl::StrCat(common, "\n", shard.first_stage, shard.last_stage, " tp ",
                                     at.t, "/", layout.tp);
    for (const Range& range : {shard.layers, shard.heads, shard.kv_heads, shard.channels,
                               shard.shared_channels, shard.vocab}) {
      absl::StrAppend(&slice, " ", range.begin, "-", range.end);
    }
    if (checkpoint.config().num_experts > 0) {
      absl::StrAppend(&slice, " experts ", shard.experts.begin, "-", shard.experts.end, " etp ",
                      (at.s * layout.tp + at.t) % etp, "/", etp, " ", shard.expert_channels.begin,
                      "-", shard.expert_channels.end);
    }
    keys.push_back(Digest128(slice));
  }
  return keys;
}

absl::Status Decoder::Impl::LoadWeights(WeightLoader& loader) {
  const int64_t d = config.head_dim;
  const Range q_rows = {shard.heads.begin * d, shard.heads.end * d};
  const Range kv_rows = {shard.kv_heads.begin * d, shard.kv_heads.end * d};
  const Range expert_rows = shard.expert_channels;
  const KSlice all = WholeK(config.hidden_size);
  const KSlice head_leaves = ShardedK(shards.head_leaves(), shards.tensor_cut(), groups.at.t, d);
  const KSlice channels = ShardedK(shards.channel_leaves(), shards.tensor_cut(), groups.at.t, 1);
  const KSlice shared = ShardedK(shards.shared_leaves(), shards.tensor_cut(), groups.at.t, 1);
  const KSlice expert_channels =
      ShardedK(shards.expert_leaves(), shards.expert_cut(), groups.stage_rank() % shards.etp(), 1);

  // Where digests are cut, so that ranks of any layout can compare theirs.
  const LeafPartition q_cut(config.q_size(), d, shards.num_leaves());
  const LeafPartition kv_cut(config.kv_size(), d, static_cast<int>(config.num_kv_heads));
  const LeafPartition vocab_cut(
      config.vocab_size, parallel::kChannelGranule,
      static_cast<int>((config.vocab_size + parallel::kChannelGranule - 1) /
                       parallel::kChannelGranule));
  const LeafPartition* channel_cut = &shards.channel_leaves();
  const LeafPartition* shared_cut = &shards.shared_leaves();
  const LeafPartition* expert_cut = &shards.expert_leaves();

  const int64_t attention = 2 * q_rows.size() + 2 * kv_rows.size();
  int64_t expected = shard.last_stage ? shard.vocab.size() : 0;
  for (int64_t i = shard.layers.begin; i < shard.layers.end; ++i) {
    expected += attention;
    if (config.is_moe(i)) {
      expected += config.num_experts + 3 * shard.shared_channels.size() +
                  3 * shard.experts.size() * expert_rows.size();
    } else {
      expected += 3 * shard.channels.size();
    }
  }
  loader.Expect(expected * config.hidden_size);

  const auto product = [&](const std::vector<RowSlice>& slices, const KSlice& k,
                           std::unique_ptr<kernels::PackedWeight>& out) {
    loader.Product(slices, k, profile.weight_format, out);
  };
  layers.resize(shard.layers.size());
  for (int64_t i = shard.layers.begin; i < shard.layers.end; ++i) {
    Layer& layer = layers[i - shard.layers.begin];
    loader.Vector({{Role::kAttnNorm, i}}, layer.attention_norm);
    loader.Vector({{Role::kMlpNorm, i}}, layer.mlp_norm);
    if (!shard.heads.empty()) {
      product({{Role::kQ, i, q_rows, &q_cut},
               {Role::kK, i, kv_rows, &kv_cut},
               {Role::kV, i, kv_rows, &kv_cut}},
              all, layer.qkv);
      product({{Role::kO, i}}, head_leaves, layer.o);
      if (config.qkv_bias) {
        loader.Vector({{Role::kQBias, i, q_rows, &q_cut},
                       {Role::kKBias, i, kv_rows, &kv_cut},
                       {Role::kVBias, i, kv_rows, &kv_cut}},
                      layer.qkv_bias);
      }
      if (config.qk_norm) {
        loader.Vector({{Role::kQNorm, i}}, layer.q_norm);
        loader.Vector({{Role::kKNorm, i}}, layer.k_norm);
      }
    }
    if (config.o_bias) loader.Vector({{Role::kOBias, i}}, layer.o_bias);
    if (config.is_moe(i)) {
      loader.Matrix({{Role::kRouter, i}}, all, layer.router);
      layer.experts.resize(shard.experts.size());
      for (int64_t e = shard.experts.begin; e < shard.experts.end && !expert_rows.empty(); ++e) {
        Expert& expert = layer.experts[e - shard.experts.begin];
        product({{Role::kExpertGate, i, expert_rows, expert_cut, e},
                 {Role::kExpertUp, i, expert_rows, expert_cut, e}},
                all, expert.gate_up);
        product({{Role::kExpertDown, i, std::nullopt, nullptr, e}}, expert_channels, expert.down);
      }
      if (!shard.shared_channels.empty()) {
        product({{Role::kSharedGate, i, shard.shared_channels, shared_cut},
                 {Role::kSharedUp, i, shard.shared_channels, shared_cut}},
                all, layer.gate_up);
        product({{Role::kSharedDown, i}}, shared, layer.down);
      }
      if (config.shared_expert_gate) {
        loader.Matrix({{Role::kSharedRouter, i}}, all, layer.shared_gate);
      }
      continue;
    }
    if (!shard.channels.empty()) {
      product({{Role::kGate, i, shard.channels, channel_cut},
               {Role::kUp, i, shard.channels, channel_cut}},
              all, layer.gate_up);
      product({{Role::kDown, i}}, channels, layer.down);
      if (config.mlp_bias) {
        loader.Vector({{Role::kGateBias, i, shard.channels, channel_cut},
                       {Role::kUpBias, i, shard.channels, channel_cut}},
                      layer.gate_up_bias);
      }
    }
    if (config.mlp_bias) loader.Vector({{Role::kDownBias, i}}, layer.down_bias);
  }
  if (shard.first_stage) loader.Table({Role::kEmbedding, 0, shard.vocab, &vocab_cut}, embedding);
  if (shard.last_stage) {
    loader.Vector({{Role::kFinalNorm, 0}}, final_norm);
    if (!shard.vocab.empty()) {
      const Role role = config.tie_word_embeddings ? Role::kEmbedding : Role::kLmHead;
      loader.Matrix({{role, 0, shard.vocab, &vocab_cut}}, all, head);
    }
  }
  return loader.status();
}

absl::Status Decoder::Impl::AllocateWorkspace() {
  const int64_t d = config.head_dim;
  const int64_t padded_d = kernels::RoundUp(d, kernels::kDotGroup);
  const int64_t act = SizeOf(profile.activations());
  const int64_t slice = max_slice_rows();
  const bool alone = has_stage_alone();
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
  allocate(residual, slice * hidden() * 4);
  allocate(normed, slice * normed_row_bytes());
  allocate(delta, slice * hidden() * 4);
  if (groups.tp != nullptr) {
    allocate(gathered, slice * normed_row_bytes());
    parts.resize(reduce.parts_per_member[groups.at.t]);
    for (kernels::Buffer& part : parts) allocate(part, slice * hidden() * 4);
  }
  if (!alone && shard.first_stage) allocate(embedded, max_rows * hidden() * 4);
  if (num_heads() > 0) {
    const int64_t qkv = (num_heads() + 2 * num_kv_heads()) * d * 4;
    allocate(qkv_out, max_rows * qkv);
    allocate(rope, max_rows * d * 4);
    allocate(queries, max_rows * num_heads() * padded_d * act);
    allocate(attended, slice * layers[0].o->k() * act);
    if (groups.sp != nullptr) {
      const int64_t partial = num_heads() * (2 + d) * 4;
      int64_t total_parts = 0;
      for (const int count : stripe_parts) total_parts += count;
      allocate(qkv_slice, slice * qkv);
      allocate(stripe_partials, kPartialRows * shard.stripes.size() * partial);
      allocate(part_partials, max_rows * stripe_parts[groups.at.s] * partial);
      allocate(received_partials, slice * total_parts * partial);
      allocate(merged_partials, slice * total_parts * partial);
    }
  }
  // Dense layers and shared experts take turns.
  int64_t channels = 0;
  int64_t down_k = 0;
  int64_t expert_down_k = 0;
  for (const Layer& layer : layers) {
    if (layer.down != nullptr) {
      channels = std::max(channels, layer.gate_up->n() / 2);
      down_k = std::max(down_k, layer.down->k());
    }
    for (const Expert& expert : layer.experts) {
      if (expert.down != nullptr) expert_down_k = expert.down->k();
    }
  }
  allocate(gate_up_out, slice * 2 * channels * 4);
  allocate(activated, slice * down_k * act);
  if (config.num_experts > 0) {
    const int64_t k = config.experts_per_token;
    const int64_t num_slots = max_rows * std::min(k, shard.experts.size());
    allocate(router_logits, slice * config.num_experts * 4);
    allocate(grouped, num_slots * normed_row_bytes());
    allocate(expert_gate_up, num_slots * 2 * shard.expert_channels.size() * 4);
    allocate(expert_activated, num_slots * expert_down_k * act);
    const int own_parts = expert_reduce.parts_per_member[groups.stage_rank() % shards.etp()];
    slot_parts.resize(own_parts);
    for (kernels::Buffer& part : slot_parts) allocate(part, num_slots * hidden() * 4);
    if (alone) allocate(expert_counts, expert_tokens_bytes());
    for (Layer& layer : layers) {
      if (!status.ok() || layer.experts.empty() || layer.experts[0].down == nullptr) continue;
      std::vector<kernels::ExpertWeights> weights;
      for (const Expert& expert : layer.experts) {
        weights.push_back({expert.gate_up.get(), expert.down.get()});
      }
      auto set = kernels.MakeExpertSet(std::move(weights));
      if (set.ok()) {
        layer.expert_set = *std::move(set);
      } else {
        status = set.status();
      }
    }
    if (config.shared_expert_gate) allocate(shared_gate_logits, slice * 4);
    if (config.shared_intermediate_size > 0) allocate(shared_delta, slice * hidden() * 4);
    if (!alone) {
      const int64_t own = (slice + groups.layout.tp - 1) / groups.layout.tp;
      const int64_t ep = shards.layout().ep;
      int64_t parts_of_all = 0;
      for (const int count : expert_reduce.parts_per_member) parts_of_all += count;
      allocate(dispatch_send, own * std::min(k, ep) * shards.etp() * normed_row_bytes());
      allocate(dispatched, max_rows * normed_row_bytes());
      allocate(combine_send, num_slots * own_parts * hidden() * 4);
      allocate(combine_received, own * k * parts_of_all * hidden() * 4);
      allocate(combined, own * hidden() * 4);
    }
  }
  if (shard.last_stage) {
    allocate(gathered_rows, logit_rows() * hidden() * 4);
    allocate(head_input, logit_rows() * normed_row_bytes());
    allocate(local_logits, logit_rows() * shard.vocab.size() * 4);
    if (!alone && groups.stage_rank() == 0) {
      allocate(gathered_logits, logit_rows() * config.vocab_size * 4);
      allocate(full_logits, logit_rows() * config.vocab_size * 4);
    }
  }
  return status;
}

absl::Status Decoder::Impl::AllocateKv(int64_t num_blocks, bool later) {
  num_kv_blocks = num_blocks;
  if (num_heads() == 0) return absl::OkStatus();
  for (Layer& layer : layers) layer.kv = {};
  const int64_t bytes = num_blocks * kernels.KvBlockBytes(kv_shape());
  const auto explained = [num_blocks](const absl::Status& status) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "KV cache of ", num_blocks, " blocks: ", status.message(), "; lower --kv-memory"));
  };
  for (Layer& layer : layers) {
    absl::StatusOr<kernels::Buffer> kv = kernels.Allocate(bytes);
    if (!kv.ok()) return explained(kv.status());
    layer.kv = *std::move(kv);
    if (later) continue;
    // Memory that isn't there must show before a request comes.
    if (absl::Status status = kernels.Back(layer.kv.data(), bytes); !status.ok()) {
      return explained(status);
    }
  }
  if (!later) return absl::OkStatus();
  kv_backer = std::thread([this, bytes] {
    // Steps go first. Not SCHED_IDLE: whoever waits for a lock that this thread holds would wait
    // too long.
    (void)setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 19);
    // False: stopped meanwhile.
    const auto pause = [this](std::chrono::milliseconds duration) {
      std::unique_lock<std::mutex> lock(backing_mutex);
      return !backing_changed.wait_for(lock, duration, [this] { return stop_backing; });
    };
    if (!pause(kBackingDelay)) return;
    for (int64_t begin = 0; begin < bytes; begin += kBackedAtOnce) {
      for (const Layer& layer : layers) {
        if (!pause(kBackingPause)) return;
        (void)kernels.Back(layer.kv.as<char>() + begin, std::min(kBackedAtOnce, bytes - begin));
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace phalanx::model
