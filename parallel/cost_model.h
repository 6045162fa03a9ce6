// How long one step takes on a layout: a sum over ops, each the larger of its bytes over the read
// rate and its operations over the matrix rate (the roofline of Williams et al., CACM 52(4), 2009,
// or a measured curve in its place), and over collectives by size. It describes what runtime/model
// does, in the order in which it does it; nothing in it is fitted to whole steps.
#ifndef PHALANX_PARALLEL_COST_MODEL_H_
#define PHALANX_PARALLEL_COST_MODEL_H_

#include <compare>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/machine.h"
#include "parallel/model_spec.h"
#include "parallel/shard.h"

namespace phalanx::parallel {

// The plan that a step computes.
struct StepShape {
  double rows = 1;        // tokens, at least 1
  double sequences = 1;   // that they belong to, evenly
  double context = 1;     // tokens that a row sees, itself included, on average
  double logit_rows = 1;  // rows whose logits are made and a token chosen for
};

// Seconds by what they are spent on.
struct CostParts {
  double matmul = 0;
  double attention = 0;
  double other = 0;        // norms, activations, rotary, copies, choosing tokens
  double collectives = 0;  // sums, gathers, exchanges and hand-over between stages

  double total() const { return matmul + attention + other + collectives; }
  CostParts& operator+=(const CostParts& more);
  friend CostParts operator*(double factor, CostParts parts);
};

// One plan through all stages.
struct StepCost {
  std::vector<CostParts> stages;  // the slowest rank's; the hand-over counts with who sends
  double handover = 0;            // from the scheduler to the ranks and back

  CostParts Sum() const;
  double Latency() const { return Sum().total() + handover; }
  // The slowest stage's time: what a full pipeline takes from plan to plan where every stage has
  // cores or a device of its own.
  double Slot() const;
};

// Which node each rank of each replica is on. Ranks of a tp group are kept together, so a node
// takes as many of them as fit whole.
struct Placement {
  std::vector<int> node;           // [dp * group_size]; an index into ClusterSpec::nodes
  std::vector<int> ranks_on_node;  // [nodes]

  // Absent: the cluster has too few devices for it. With `split_tp` a tp group may lie across
  // nodes.
  static std::optional<Placement> Make(const ClusterSpec& cluster, const Layout& layout,
                                       bool split_tp);
};

class CostModel {
 public:
  // All references must outlive the model. `shards` of the same layout as `placement`.
  CostModel(const ModelSpec& spec, const DeviceTraits& traits, const ClusterSpec& cluster,
            const DecoderShards& shards, const Placement& placement);

  // One plan on replica `replica`, while `in_flight` plans are in its pipeline and
  // `busy_replicas` replicas run.
  StepCost Step(const StepShape& step, int replica, int in_flight, int busy_replicas) const;
  // Seconds from plan to plan while `in_flight` of them keep the pipeline full.
  double Slot(const StepShape& step, int replica, int in_flight, int busy_replicas) const;
  // Replicas with equal values of this have equal costs; empty: all have.
  std::vector<int> Signature(int replica) const;

 private:
  struct StagePlace;
  struct LayerClass {
    bool moe = false;
    int64_t window = 0;
    LayerMatrices fp8 = 0;
    // clang-tidy 14 takes the operator for a null pointer.
    friend auto operator<=>(const LayerClass&, const LayerClass&) = default;  // NOLINT(*-nullptr)
  };
  StagePlace Place(int replica, int stage, double running_share) const;
  // Layers of a stage by kind.
  std::vector<std::pair<LayerClass, int>> LayerKinds(int stage) const;
  CostParts Layer(const StagePlace& place, const StepShape& step, const LayerClass& kind) const;
  CostParts Embedding(const StagePlace& place, const StepShape& step) const;
  CostParts Head(const StagePlace& place, const StepShape& step) const;
  void Experts(const StagePlace& place, double rows, bool sharded, LayerMatrices fp8,
               CostParts& out) const;

  const ModelSpec& spec_;
  const DeviceTraits& traits_;
  const ClusterSpec& cluster_;
  const DecoderShards& shards_;
  const Placement& placement_;
  // Shares of the rank that has most.
  bool one_kind_ = true;  // all layers are alike
  double heads_ = 0;
  double kv_heads_ = 0;
  double channels_ = 0;
  double shared_channels_ = 0;
  double expert_channels_ = 0;
  double experts_ = 0;
  double vocab_ = 0;
  double stripe_share_ = 1;
  double leaves_ = 0;  // of a row-parallel weight
  double expert_leaves_ = 0;
  int tensor_parts_ = 1;  // of all members together
  int expert_parts_ = 1;
  int stripe_parts_ = 1;
  int own_stripe_parts_ = 1;  // of the member with most
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_COST_MODEL_H_
