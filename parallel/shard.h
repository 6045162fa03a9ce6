// Which slice of a decoder one rank holds, for every axis of the mesh: arithmetic on values, used
// by the loader, the checker and the planner alike.
//
//   pp  contiguous layers, split by cost; the first stage also holds the embedding, the last the
//       final norm and the head
//   tp  query heads (and every KV head that they read), intermediate channels: cut by leaves (R2)
//   sp  KV blocks by stripes (R3); weights are replicated over it
//   ep  experts: the sp x tp ranks of a stage, in order, form ep groups of etp = (sp * tp) / ep
//       ranks; a group holds a contiguous run of experts, whose channels its ranks cut by leaves
//   vocabulary rows of embedding and head: cut over all sp x tp ranks of the stage
//
// dp is not part of this: each replica is a mesh of its own.
#ifndef PHALANX_PARALLEL_SHARD_H_
#define PHALANX_PARALLEL_SHARD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/leaves.h"
#include "parallel/mesh.h"

namespace phalanx::parallel {

// The sizes of a decoder that sharding and planning depend on.
struct DecoderShape {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of layers without experts
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  // Mixture of experts; 0 experts: every layer is dense.
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t expert_intermediate_size = 0;
  int64_t shared_intermediate_size = 0;  // of the shared expert; 0: none
  std::vector<bool> moe_layers = {};     // [num_layers]; empty: all where there are experts

  bool is_moe(int64_t layer) const {
    return num_experts > 0 && (moe_layers.empty() || moe_layers[layer]);
  }
  // Weights that one token's row is multiplied by in a layer: what stages are balanced by.
  int64_t ActiveWeights(int64_t layer) const;
};

// Channels and vocabulary rows are cut in granules of this many.
inline constexpr int64_t kChannelGranule = 32;

// How `members` ranks share a reduction tree of `num_leaves` leaves: member m owns the run
// LeafRun(m), sends the whole subtrees parts(m), and finish_program() adds all members' parts.
class TreeCut {
 public:
  // Precondition: 1 <= members <= num_leaves.
  TreeCut(int members, int num_leaves) : members_(members), num_leaves_(num_leaves) {}

  int members() const { return members_; }
  int num_leaves() const { return num_leaves_; }
  Range run(int m) const { return LeafRun(m, members_, num_leaves_); }
  std::vector<Range> parts(int m) const { return WholeSubtrees(run(m), num_leaves_); }
  // For each part of member m, the postfix program over its leaves counted from the run's first.
  std::vector<std::vector<int>> part_programs(int m) const;
  std::vector<int> parts_per_member() const;
  // Over all members' parts side by side, in member order.
  std::vector<int> finish_program() const;

 private:
  int members_;
  int num_leaves_;
};

// One rank's slice. Every range is in the checkpoint's own indices and may be empty where the
// dimension has fewer granules than ranks.
struct RankShard {
  bool first_stage = true;
  bool last_stage = true;
  Range layers;           // of its stage
  Range leaves;           // tp's run of leaves of the reduction tree
  Range heads;            // query heads
  Range kv_heads;         // every KV head that the query heads read
  Range channels;         // intermediate channels of dense layers
  Range shared_channels;  // of the shared expert
  Range stripes;          // KV stripes
  Range vocab;            // rows of the embedding (first stage) and of the head (last stage)
  Range experts;
  Range expert_leaves;    // etp's run of leaves
  Range expert_channels;  // of each of those experts
};

class DecoderShards {
 public:
  // `layout`: ep may be 0, which is resolved. `reduction_leaves`: L, `sequence_stripes`: V of the
  // profile. Precondition: Check() is OK.
  DecoderShards(const DecoderShape& shape, const Layout& layout, int reduction_leaves,
                int sequence_stripes);
  // The same with stages that StageLayers() gave: for who makes many of one pp.
  DecoderShards(const DecoderShape& shape, const Layout& layout, int reduction_leaves,
                int sequence_stripes, std::vector<Range> stages);
  // Layers of each of `pp` stages, balanced by ActiveWeights() with embedding and head counted.
  // Precondition: 1 <= pp <= shape.num_layers.
  static std::vector<Range> StageLayers(const DecoderShape& shape, int pp);

  // INVALID_ARGUMENT naming the axis, what it was and what is allowed: tp > L (naming the L
  // needed), sp > V, pp > layers, ep that doesn't divide sp x tp or exceeds the experts, etp > L,
  // ep > 1 without experts.
  static absl::Status Check(const DecoderShape& shape, const Layout& layout, int reduction_leaves,
                            int sequence_stripes);
  // The part of Check that needs no model: sizes at least 1, tp <= L, sp <= V, ep divides sp x tp.
  static absl::Status CheckAxes(const Layout& layout, int reduction_leaves, int sequence_stripes);
  // The ep of a layout that leaves it out: the largest divisor of sp x tp that is at most
  // `num_experts` (etp <= L kept); 1 without experts.
  static int DefaultEp(const Layout& layout, int64_t num_experts, int reduction_leaves);

  // With ep resolved.
  const Layout& layout() const { return mesh_.layout(); }
  const Mesh& mesh() const { return mesh_; }
  int num_leaves() const { return tensor_cut_.num_leaves(); }
  int etp() const { return expert_cut_.members(); }
  const LeafPartition& head_leaves() const { return heads_; }
  const LeafPartition& channel_leaves() const { return channels_; }
  const LeafPartition& shared_leaves() const { return shared_channels_; }
  const LeafPartition& expert_leaves() const { return expert_channels_; }
  // Sums over heads and channels; over an expert's channels; merges over KV stripes.
  const TreeCut& tensor_cut() const { return tensor_cut_; }
  const TreeCut& expert_cut() const { return expert_cut_; }
  const TreeCut& stripe_cut() const { return stripe_cut_; }

  // Layers of stage p.
  Range stage_layers(int p) const { return stages_[p]; }
  // Vocabulary rows of member g of a stage's sp x tp ranks (g = s * tp + t).
  Range vocab(int g) const;
  // Experts of member g of a stage's sp x tp ranks.
  Range experts(int g) const;
  RankShard shard(int rank) const;
  // The KV head that query head `head` reads.
  int64_t kv_head(int64_t head) const { return head / (shape_.num_heads / shape_.num_kv_heads); }

 private:
  DecoderShape shape_;
  Mesh mesh_;
  TreeCut tensor_cut_;
  TreeCut expert_cut_;
  TreeCut stripe_cut_;
  LeafPartition heads_;
  LeafPartition channels_;
  LeafPartition shared_channels_;
  LeafPartition expert_channels_;
  std::vector<Range> stages_;
};

// Splits layers into `pp` contiguous stages of at least one layer: the largest stage cost is as
// small as can be, and among such splits the sum of squared costs is, so that uneven stages come
// out where that balances. `first` and `last`: added to the first and to the last stage.
// Precondition: 1 <= pp <= layer_costs.size().
std::vector<Range> SplitStages(const std::vector<double>& layer_costs, double first, double last,
                               int pp);

// Rows of a step that belong to sp rank s, and inside them those of tp rank t: contiguous, within
// one of each other, possibly empty. What a sharded residual stream is cut by, and who adds up a
// token's experts.
Range SequenceRows(int64_t rows, int s, int sp);
Range TokenRows(int64_t rows, int s, int sp, int t, int tp);

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_SHARD_H_
