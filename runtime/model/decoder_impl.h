// What is inside a Decoder; shared by decoder.cc (the step), loading.cc, attention.cc and
// experts.cc alone.
#ifndef PHALANX_RUNTIME_MODEL_DECODER_IMPL_H_
#define PHALANX_RUNTIME_MODEL_DECODER_IMPL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "kernels/kernels.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/decoder.h"
#include "runtime/model/weight_loader.h"

namespace phalanx::model {

// One expert's share on this rank.
struct Expert {
  std::unique_ptr<kernels::PackedWeight> gate_up;  // [2 expert channels, hidden]
  std::unique_ptr<kernels::PackedWeight> down;     // [hidden, expert channels]
};

// Pointers and buffers that a rank or a model has no use for are null or empty.
struct Layer {
  kernels::Buffer attention_norm;  // [hidden] F32
  kernels::Buffer mlp_norm;        // [hidden]
  kernels::Buffer qkv_bias;        // [(heads + 2 kv_heads) * d]
  kernels::Buffer q_norm;          // [d]
  kernels::Buffer k_norm;
  kernels::Buffer o_bias;                          // [hidden]
  kernels::Buffer gate_up_bias;                    // [2 channels]
  kernels::Buffer down_bias;                       // [hidden]
  std::unique_ptr<kernels::PackedWeight> qkv;      // [(heads + 2 kv_heads) * d, hidden]
  std::unique_ptr<kernels::PackedWeight> o;        // [hidden, heads * d]
  std::unique_ptr<kernels::PackedWeight> gate_up;  // [2 channels, hidden]; the shared expert's in a
                                                   // layer of experts
  std::unique_ptr<kernels::PackedWeight> down;     // [hidden, channels]; likewise
  std::unique_ptr<kernels::PackedWeight> router;   // [num_experts, hidden]: this layer has experts
  std::unique_ptr<kernels::PackedWeight> shared_gate;  // [1, hidden]
  std::vector<Expert> experts;                         // the rank's own
  std::unique_ptr<kernels::ExpertSet> expert_set;      // those, where it has a share of them
  kernels::Buffer kv;
};

// Where the rows of the step in hand are on this rank.
struct StepRows {
  int64_t count = 0;        // rows of the step
  bool sharded = false;     // the residual stream is cut by token
  parallel::Range slice;    // rows that this rank's tp group computes
  parallel::Range own;      // rows whose residual this rank holds
  parallel::Range combine;  // rows whose experts this rank adds up
};

class Decoder::Impl {
 public:
  Impl(const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
       kernels::Kernels& kernels, const ParallelGroups& groups);
  ~Impl();

  // loading.cc
  // Maps what the store holds, or packs and lets the store keep it.
  absl::Status Load(const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options);
  absl::Status LoadWeights(WeightLoader& loader);
  absl::Status AllocateWorkspace();
  absl::Status AllocateKv(int64_t num_blocks, bool later);

  // decoder.cc
  absl::Status Forward(const Batch& batch, const StageHooks& hooks);
  absl::Status Logits(absl::Span<const int32_t> rows, const LogitsConsumer& consume);

  // Sizes.
  int64_t num_heads() const { return shard.heads.size(); }
  int64_t num_kv_heads() const { return shard.kv_heads.size(); }
  kernels::KvShape kv_shape() const {
    return {profile.weights, num_kv_heads(), config.head_dim, profile.kv};
  }
  kernels::KvView kv_view(const Layer& layer) const {
    return {kv_shape(), layer.kv.data(), num_kv_blocks};
  }
  int64_t hidden() const { return config.hidden_size; }
  // Rows that Logits makes at a time: a step has no more than it was sized for.
  int64_t logit_rows() const { return std::min(max_rows, LogitRows(kernels)); }
  // The output of a norm: rows padded to whole dot groups. The pad is +0 from the allocation on and
  // nothing writes it.
  int64_t padded_hidden() const { return kernels::RoundUp(hidden(), kernels::kDotGroup); }
  int64_t expert_tokens_bytes() const {
    return config.num_experts * static_cast<int64_t>(sizeof(int64_t));
  }
  int64_t normed_row_bytes() const { return padded_hidden() * SizeOf(profile.activations()); }
  // Rows that this rank's tp group computes at most.
  int64_t max_slice_rows() const;

  static kernels::TensorView View(const kernels::Buffer& buffer, kernels::DType dtype, int64_t rows,
                                  int64_t cols) {
    return {buffer.data(), dtype, rows, cols, cols};
  }
  kernels::TensorView F32(const kernels::Buffer& buffer, int64_t rows, int64_t cols) const {
    return View(buffer, kernels::DType::kF32, rows, cols);
  }
  // `view` from row `begin` on.
  static kernels::TensorView RowsFrom(kernels::TensorView view, int64_t begin) {
    view.data = static_cast<char*>(view.data) + begin * view.stride * SizeOf(view.dtype);
    view.rows -= begin;
    return view;
  }
  // A norm's output, without the pad.
  kernels::TensorView NormOutput(const kernels::Buffer& buffer, int64_t rows) const {
    return {buffer.data(), profile.activations(), rows, hidden(), padded_hidden()};
  }
  // The same as the input of a matmul, pad included.
  kernels::TensorView NormInput(const kernels::Buffer& buffer, int64_t rows) const {
    return View(buffer, profile.activations(), rows, padded_hidden());
  }
  // Rows of the step that stage rank g owns where rows are cut by token.
  parallel::Range TokenRowsOf(int g) const {
    const int tp = groups.layout.tp;
    return parallel::TokenRows(rows.count, g / tp, groups.layout.sp, g % tp, tp);
  }
  // What those rows come to at `unit` a row, for each rank of the stage, or of this rank's tp
  // group.
  std::vector<int64_t> StageSizes(int64_t unit) const {
    return OwnedSizes(0, groups.stage_size(), unit);
  }
  std::vector<int64_t> TensorSizes(int64_t unit) const {
    return OwnedSizes(groups.at.s * groups.layout.tp, groups.layout.tp, unit);
  }
  std::vector<int64_t> OwnedSizes(int first, int count, int64_t unit) const {
    std::vector<int64_t> sizes(count);
    for (int i = 0; i < count; ++i) sizes[i] = TokenRowsOf(first + i).size() * unit;
    return sizes;
  }

  // decoder.cc
  StepRows PlaceRows(int64_t count) const;
  absl::Status Embed(const Batch& batch);
  void MakeRope(const Batch& batch);
  absl::Status ReceiveFromPreviousStage();
  absl::Status SendToNextStage();
  // out = the normed rows of the slice, gathered over tp where they are sharded.
  absl::Status GatherNormed(kernels::TensorView* out);
  // delta = the finished sum of x * weight over all leaves, x [slice rows, ...]; of the rank's own
  // rows. `weight` null: this rank has no leaf that isn't empty.
  absl::Status RowParallel(kernels::TensorView x, const kernels::PackedWeight* weight,
                           const kernels::Buffer& delta);
  absl::Status FeedForward(const Layer& layer, int64_t channels, const kernels::Buffer& delta);

  // attention.cc
  absl::Status Attend(const Layer& layer, int64_t index, const Batch& batch);
  absl::Status AttendAcrossStripes(kernels::AttentionArgs args);

  // experts.cc
  // This rank computes its stage's layers by itself, so its experts need no communicator.
  bool has_stage_alone() const { return groups.stage == nullptr; }
  absl::Status Experts(const Layer& layer);
  absl::Status ExpertsAlone(const Layer& layer);
  // Logits of the own rows: the router's, and of the shared expert's gate.
  void MultiplyByRouter(const Layer& layer);
  // Where `count` slots are worked on; good until the next call.
  kernels::ExpertRoom RoomFor(const Layer& layer, int64_t count);
  absl::Status Route(const Layer& layer);
  absl::Status DispatchTokens();
  void RunExperts(const Layer& layer);
  absl::Status CombineExperts(const Layer& layer);

  const checkpoint::ModelConfig& config;
  Profile profile;
  kernels::Kernels& kernels;
  const ParallelGroups groups;
  const parallel::DecoderShards shards;
  const parallel::RankShard shard;
  const int64_t max_rows;
  const int64_t max_positions;
  const int64_t shard_rows;

  comm::ReducePlan reduce;                           // finishes a row-parallel sum
  std::vector<int> stripe_program;                   // merges all stripes
  std::vector<std::vector<int>> own_stripe_program;  // sp > 1: merges own stripes' whole subtrees
  std::vector<int> stripe_parts;                     // sp > 1: [sp] whole subtrees of each
  std::vector<int> merge_program;                    // sp > 1: merges all ranks' subtrees
  std::vector<int32_t> kv_head_of;                   // [num_heads] local KV head
  std::vector<int32_t> out_column;                   // [num_heads] column in the input of `o`
  std::atomic<uint64_t> layers_computed{0};
  int64_t weight_bytes = 0;
  bool weights_were_kept = false;
  uint64_t agreed_content = 0;
  std::vector<SliceDigest> digests;
  int64_t num_kv_blocks = 0;
  std::thread kv_backer;
  std::mutex backing_mutex;
  std::condition_variable backing_changed;
  bool stop_backing = false;  // guarded by backing_mutex

  kernels::Buffer embedding;  // first stage: [vocabulary rows, hidden] in the weights' dtype
  std::vector<Layer> layers;  // of this stage
  kernels::Buffer final_norm;
  std::unique_ptr<kernels::PackedWeight> head;  // last stage: [vocabulary rows, hidden]

  // Rotary tables of the step: a row for each of its rows, made anew, for a table of every position
  // of a long context would weigh as much as a layer.
  std::vector<float> inv_freq;  // [d / 2]
  float attention_factor = 1;
  std::vector<float> host_rope;       // cosines, then sines, so that one copy brings both
  std::vector<int32_t> rope_indices;  // 0, 1, ...
  kernels::Buffer rope;               // [2][rows of the step, d / 2]

  StepRows rows;                       // of the last Forward
  kernels::Buffer residual;            // [own rows, hidden] F32
  kernels::Buffer normed;              // [own rows, padded hidden] activation dtype
  kernels::Buffer gathered;            // [slice rows, padded hidden]
  kernels::Buffer embedded;            // [rows, hidden] F32: where ranks select embeddings together
  kernels::Buffer qkv_slice;           // [slice rows, (heads + 2 kv_heads) * d] F32
  kernels::Buffer qkv_out;             // [rows, (heads + 2 kv_heads) * d] F32
  kernels::Buffer queries;             // [rows, heads * padded d]
  kernels::Buffer stripe_partials;     // [kPartialRows][heads][own stripes][2 + d] F32
  kernels::Buffer part_partials;       // [rows][heads][own subtrees][2 + d]
  kernels::Buffer received_partials;   // by sp rank: [slice rows][heads][its subtrees][2 + d]
  kernels::Buffer merged_partials;     // [slice rows][heads][all subtrees][2 + d]
  kernels::Buffer attended;            // [slice rows, o.k]
  kernels::Buffer gate_up_out;         // [slice rows, 2 channels] F32
  kernels::Buffer activated;           // [slice rows, down.k]
  std::vector<kernels::Buffer> parts;  // [slice rows, hidden] F32 each: this rank's subtrees
  kernels::Buffer delta;               // [own rows, hidden] F32
  kernels::Buffer gathered_rows;       // [logit_rows(), hidden] F32
  kernels::Buffer head_input;          // [logit_rows(), padded hidden]
  kernels::Buffer local_logits;        // [logit_rows(), local vocabulary] F32
  // The stage's first rank's, where it has several.
  kernels::Buffer gathered_logits;  // by rank: [rows, its vocabulary] F32
  kernels::Buffer full_logits;      // [logit_rows(), vocab_size] F32

  // Experts. A slot is one of a row's experts_per_token choices; a rank's slots are those whose
  // expert it holds (a share of).
  struct Slot {
    int32_t row;    // of the step
    int32_t place;  // row in the grouped inputs: slots by expert
  };
  std::vector<int> first_holder;   // [num_experts] stage rank of the first that shares the expert
  comm::ReducePlan expert_reduce;  // over the etp ranks that share an expert
  // Of this step, [num_experts]: int64_t on the device where a rank has its stage alone, else on
  // the host.
  kernels::Buffer expert_counts;
  std::vector<int64_t> expert_tokens;
  std::vector<int32_t> expert_ids;          // [rows, k] of the step
  std::vector<float> expert_weights;        // [rows, k]; of the rows that this rank knows
  std::vector<int32_t> row_of_token;        // rows of `tokens`, rising, where they were dispatched
  std::vector<Slot> slots;                  // by row, then k
  std::vector<int64_t> expert_begin;        // [own experts + 1] first place of each
  kernels::TensorView tokens;               // the normed rows that hold this rank's slots
  kernels::Buffer router_logits;            // [own rows, num_experts] F32
  kernels::Buffer shared_gate_logits;       // [own rows] F32
  kernels::Buffer shared_delta;             // [own rows, hidden] F32
  kernels::Buffer dispatch_send;            // rows for each rank, by rank
  kernels::Buffer dispatched;               // [tokens, padded hidden]
  kernels::Buffer grouped;                  // [slots, padded hidden] by expert
  kernels::Buffer expert_gate_up;           // [slots, 2 expert channels] F32
  kernels::Buffer expert_activated;         // [slots, down.k]
  std::vector<kernels::Buffer> slot_parts;  // [slots, hidden] F32 each
  std::vector<kernels::TensorView> slot_part_views;
  kernels::Buffer combine_send;      // [slots][parts][hidden] F32, by row, then k
  kernels::Buffer combine_received;  // by rank: its slots of this rank's rows
  kernels::Buffer combined;          // [combine rows, hidden] F32
};

// Rows whose stripes are attended before their subtrees are merged: bounds the memory of partials.
inline constexpr int64_t kPartialRows = 64;

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_DECODER_IMPL_H_
