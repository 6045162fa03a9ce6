// Which slice of a decoder one rank holds: arithmetic on values, used by the loader, the checker
// and the planner alike.
#ifndef PHALANX_PARALLEL_SHARD_H_
#define PHALANX_PARALLEL_SHARD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "parallel/leaves.h"
#include "parallel/mesh.h"

namespace phalanx::parallel {

// The sizes of a decoder that sharding depends on.
struct DecoderShape {
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
};

// Channels and vocabulary rows are cut in granules of this many.
inline constexpr int64_t kChannelGranule = 32;

// One tensor-parallel rank's slice. Every range is in the checkpoint's own indices and may be empty
// where the dimension has fewer granules than leaves.
struct TensorShard {
  Range leaves;    // run of leaves of the reduction tree
  Range heads;     // query heads
  Range kv_heads;  // every KV head that the query heads read
  Range channels;  // intermediate channels
  Range vocab;     // rows of embedding and head
};

class DecoderShards {
 public:
  // `reduction_leaves`: L of the profile. Precondition: Check() is OK.
  DecoderShards(const DecoderShape& shape, int tp, int reduction_leaves);

  // INVALID_ARGUMENT where `tp` ranks can't share `reduction_leaves` leaves, naming the L needed.
  static absl::Status Check(int tp, int reduction_leaves);

  int tp() const { return tp_; }
  int num_leaves() const { return num_leaves_; }
  const LeafPartition& head_leaves() const { return heads_; }
  const LeafPartition& channel_leaves() const { return channels_; }
  const LeafPartition& vocab_leaves() const { return vocab_; }
  TensorShard shard(int t) const;
  // The KV head that query head `head` reads.
  int64_t kv_head(int64_t head) const { return head / (shape_.num_heads / shape_.num_kv_heads); }

  // The subtrees that member t sends, and the program that finishes the tree over all members'.
  std::vector<Range> parts(int t) const {
    return WholeSubtrees(LeafRun(t, tp_, num_leaves_), num_leaves_);
  }
  std::vector<int> parts_per_member() const;
  std::vector<int> finish_program() const;

 private:
  DecoderShape shape_;
  int tp_;
  int num_leaves_;
  LeafPartition heads_;
  LeafPartition channels_;
  LeafPartition vocab_;
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_SHARD_H_
