// Chooses a layout: every dp x pp x sp x tp x ep that a cluster has ranks for, less those that the
// model, the profile or the memory doesn't allow, ordered by what the cost model predicts for a
// stated workload.
#ifndef PHALANX_PARALLEL_PLANNER_H_
#define PHALANX_PARALLEL_PLANNER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/cost_model.h"
#include "parallel/machine.h"
#include "parallel/memory.h"
#include "parallel/mesh.h"
#include "parallel/model_spec.h"

namespace phalanx::parallel {

enum class Objective {
  kLatency,     // the least time from a request's start to its last token
  kThroughput,  // the most output tokens per second
};

// Requests of one size, `concurrency` of them under way at any time.
struct Workload {
  int64_t prompt_tokens = 1024;
  int64_t output_tokens = 256;
  int64_t concurrency = 16;
};

struct PlanOptions {
  ModelSpec model;
  DeviceTraits traits;
  ClusterSpec cluster;
  Workload workload;
  Objective objective = Objective::kLatency;
  int reduction_leaves = 8;       // L of the profile: tp is at most this
  int sequence_stripes = 8;       // V: sp is at most this
  int64_t max_step_tokens = 512;  // rows of a step
  int64_t prefill_chunk = 0;      // prompt tokens of one request in a step; 0: max_step_tokens
  int64_t max_sequences = 64;     // that run at once per replica and plan
  int64_t max_positions = 0;      // context that ranks are sized for; 0: the model's
  // Axes that are settled beforehand; 0: open. ep may be settled only where it divides sp x tp.
  int dp = 0;
  int pp = 0;
  int sp = 0;
  int tp = 0;
  int ep = 0;
};

// What a layout is predicted to do.
struct Candidate {
  Layout layout;  // ep resolved
  bool tp_across_nodes = false;

  // Of the rank that has least room: what it holds and what it may.
  RankMemory memory;
  int64_t budget_bytes = 0;
  int64_t kv_bytes = 0;   // of the workload's sequences on that rank
  int64_t kv_tokens = 0;  // context tokens that a replica's KV memory holds
  int64_t free_bytes() const { return budget_bytes - memory.fixed_bytes() - kv_bytes; }

  int64_t sequences = 0;    // that run at once, all replicas together
  double ttft_s = 0;        // a lone prompt's time to first token
  double tpot_s = 0;        // from one token of a sequence to its next with `sequences` running
  double request_s = 0;     // a request, with its turn's wait where not all fit at once
  double tokens_per_s = 0;  // output tokens, all replicas together
  CostParts token_parts;    // tpot_s by what it is spent on, over the stages
  double bubble_s = 0;      // and the part of it in which a stage waits for another
  StepCost decode;          // one plan of the decode
};

struct RankPlan {
  int rank = 0;
  int node = 0;  // of ClusterSpec::nodes
  RankMemory memory;
  int64_t budget_bytes = 0;
};

struct LayoutPlan {
  std::vector<Candidate> candidates;  // best first; never empty
  std::vector<RankPlan> ranks;        // of the first candidate's first replica
  int64_t tried = 0;                  // layouts that the cluster has ranks for
  int64_t too_large = 0;              // of those, the ones that don't fit its memory
};

// FAILED_PRECONDITION where nothing fits, saying by how much the best misses; INVALID_ARGUMENT for
// a workload or settled axes that can't be.
absl::StatusOr<LayoutPlan> PlanLayouts(const PlanOptions& options);

// What `chosen` has over `other`, in words, e.g. "+18% time per token: collectives 3.1 ms, not
// 1.2 ms".
std::string Compare(const Candidate& chosen, const Candidate& other, Objective objective);
// Why the first candidate is it, in a sentence.
std::string Reason(const PlanOptions& options, const LayoutPlan& plan);

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_PLANNER_H_
