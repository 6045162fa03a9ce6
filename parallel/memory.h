// How many bytes a rank of a layout holds, from shapes alone.
#ifndef PHALANX_PARALLEL_MEMORY_H_
#define PHALANX_PARALLEL_MEMORY_H_

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "parallel/model_spec.h"
#include "parallel/shard.h"

namespace phalanx::parallel {

struct RankMemory {
  int64_t weight_bytes = 0;     // packed weights, norms, biases, embedding: as a rank reports them
  int64_t embedding_bytes = 0;  // of those, its rows of the embedding
  int64_t workspace_bytes = 0;  // what the largest step needs
  int64_t kv_block_bytes = 0;   // one KV block over all layers of its stage
  int stripes = 0;              // KV stripes that it holds, of the profile's

  int64_t fixed_bytes() const { return weight_bytes + workspace_bytes; }
};

// The ranks of one layout. Cheap to make: costs as much as one rank's layers once per member of
// sp x tp.
class MemoryModel {
 public:
  // `max_rows`: rows of the largest step. All references must outlive the model.
  MemoryModel(const ModelSpec& spec, const DeviceTraits& traits, const DecoderShards& shards,
              int64_t max_rows);

  // Precondition: 0 <= rank < the layout's group size.
  RankMemory rank(int rank) const;
  // KV blocks that rank `rank` needs for one sequence of `tokens` tokens: its share of the stripes.
  int64_t BlocksPerSequence(int rank, int64_t tokens) const;

 private:
  struct LayerWeights {
    int64_t bytes = 0;  // of what is no LayerMatrix
    // Groups of 32 values of each, after padding.
    std::array<int64_t, kNumLayerMatrices> groups = {};
  };
  struct LayerClass {
    bool moe = false;
    LayerMatrices fp8 = 0;
    // clang-tidy 14 takes the operator for a null pointer.
    friend auto operator<=>(const LayerClass&, const LayerClass&) = default;  // NOLINT(*-nullptr)
  };
  struct Member {  // of a stage's sp x tp ranks
    LayerWeights dense_layer;
    LayerWeights moe_layer;
    int64_t head = 0;
    int64_t embedding = 0;
    int64_t kv_block_layer = 0;
    int64_t workspace = 0;        // of every stage
    int64_t dense_workspace = 0;  // where a stage has dense layers
    int64_t moe_workspace = 0;    // or layers of experts: the larger one
    int64_t first_workspace = 0;
    int64_t last_workspace = 0;
  };
  Member MakeMember(int g) const;
  // A packed [columns, k] weight whose k is padded: its groups of 32 values, and its bytes in the
  // checkpoint's type.
  int64_t Groups(int64_t columns, int64_t padded_k) const;
  int64_t Packed(int64_t columns, int64_t padded_k) const;
  int64_t Bytes(const LayerWeights& weights, LayerMatrices fp8) const;
  // The sum of `leaves` after padding.
  int64_t PaddedK(const LeafPartition& cut, Range leaves, int64_t scale) const;

  const ModelSpec& spec_;
  const DeviceTraits& traits_;
  const DecoderShards& shards_;
  const int64_t max_rows_;
  std::vector<Member> members_;                        // [sp x tp]
  std::vector<std::map<LayerClass, int64_t>> stages_;  // layers of each stage by kind
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_MEMORY_H_
