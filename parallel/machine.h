// The machines of an allocation as the cost model sees them: nodes, devices, memory, rates, links.
// Values; either stated (a data sheet's figures in a configuration) or measured (a calibration).
#ifndef PHALANX_PARALLEL_MACHINE_H_
#define PHALANX_PARALLEL_MACHINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/curve.h"

namespace phalanx::parallel {

// Rates of one rank while `ranks` ranks of its node compute with `threads` threads each. Seconds
// unless said otherwise. Measured rates include what the ranks take from each other.
struct ComputeRates {
  int ranks = 1;
  int threads = 1;
  double read_bytes_per_s = 0;    // weights and KV cache, streamed
  double matrix_flops_per_s = 0;  // of a matmul with many rows; a multiply and an add count as two
  // Seconds per weight of a matmul, streamed from memory, by rows of x. Empty: the roofline of the
  // two rates above.
  Curve matmul_weight;
  Curve matmul_small_weight;  // of weights below DeviceTraits::small_weight_bytes; empty: the same
  double pack_element = 0;    // per element of a matmul's x
  double leaf_element = 0;    // per output column and further leaf of a sum, whatever the rows
  double op = 0;              // of starting any op
  double matmul_op = 0;       // of starting a matmul; 0: op
  // Seconds per multiply-add pair of attention (2 d per token of context, row and head), by rows of
  // one sequence. Empty: the roofline.
  Curve attention_pair;
  double attention_head = 0;  // per row and head, whatever the context
  double norm_element = 0;    // residual and norm, per element
  double silu_element = 0;    // per channel
  double rope_element = 0;    // rotary embedding and cache write, per element of q, k and v
  double copy_byte = 0;       // of gathering rows
  double logit_element = 0;   // of choosing a token, per logit
};

enum class Collective { kAllReduce, kReduceScatter, kAllGather, kAllToAll, kGather, kSend };
inline constexpr Collective kCollectives[] = {Collective::kAllReduce, Collective::kReduceScatter,
                                              Collective::kAllGather, Collective::kAllToAll,
                                              Collective::kGather,    Collective::kSend};
const char* Name(Collective op);  // "all_reduce", ...

// Measured times of one collective in a group of `members`, while `running` ranks of a node are in
// groups of their own doing the same. By bytes: of the finished sum for kAllReduce and
// kReduceScatter, of what one member sends in all for the others.
struct CollectiveTimes {
  Collective op = Collective::kAllReduce;
  int members = 2;
  int running = 2;
  bool across_nodes = false;
  Curve seconds;
};

// A way between two ranks.
struct Link {
  double latency_s = 0;
  double bytes_per_s = 0;  // one direction
};

struct NodeSpec {
  std::string name;
  int devices = 1;           // ranks that it takes: GPUs, or slots where ranks share the machine
  bool shared = false;       // ranks share cores, memory and its bandwidth: a CPU machine
  int cores = 1;             // where shared
  int64_t memory_bytes = 0;  // of one device; of the node where shared
  // Of one device, or of all cores of the node where shared.
  double read_bytes_per_s = 0;
  double matrix_flops_per_s = 0;
  double op_s = 0;
  Link link;     // between devices of the node, of each device
  Link network;  // to other nodes, of the whole node
  // Measured on nodes of this kind; may be empty.
  std::vector<ComputeRates> measured;

  // What a rank gets while `running` ranks compute here with `threads` threads each (threads only
  // counts where shared). The measurement of the same numbers, or else the nearest one scaled by
  // its cores, or else the stated rates.
  ComputeRates Rates(int running, int threads) const;
};

struct ClusterSpec {
  std::vector<NodeSpec> nodes;  // in rank order
  std::vector<CollectiveTimes> collectives;
  double handover_s = 0;      // from a plan's submission to its ranks' start, and back
  int threads = 0;            // of each rank, where nodes are shared; 0: cores / ranks
  double memory_share = 0.9;  // of each device's memory that ranks may hold

  int devices() const;
  // Threads of a rank where `ranks` share `node`.
  int ThreadsOn(const NodeSpec& node, int ranks) const;
};

// Where the members of one group are.
struct GroupPlace {
  int members = 1;
  int per_node = 1;                // at most, on one node
  int running = 1;                 // ranks that run on such a node at once, of all groups
  const NodeSpec* node = nullptr;  // the slowest's

  bool across_nodes() const { return per_node < members; }
};

// Seconds of one collective. `bytes` as in CollectiveTimes. `parts`: kAllReduce and kReduceScatter:
// parts of all members together (see TreeCut); else unused. Measured times of the same numbers, or
// of the nearest group; without any, latency and bandwidth of the links, for the algorithms of
// comm/: small sums in one exchange of all parts, larger ones as reduce-scatter and all-gather.
double CollectiveSeconds(const ClusterSpec& cluster, const GroupPlace& place, Collective op,
                         double bytes, int parts);

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_MACHINE_H_
