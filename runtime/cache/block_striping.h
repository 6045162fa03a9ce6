// Which sequence-parallel rank holds which KV block of a sequence: rule R3 of the design, "a
// sequence has fixed stripes". The block with absolute index b (tokens [b * block_tokens,
// (b + 1) * block_tokens)) belongs to stripe b mod V; rank s of sp owns the contiguous run of
// stripes parallel::LeafRun(s, sp, V). The index alone decides, so a block that two sequences share
// as a prefix lies on the rank that either of them expects.
#ifndef PHALANX_RUNTIME_CACHE_BLOCK_STRIPING_H_
#define PHALANX_RUNTIME_CACHE_BLOCK_STRIPING_H_

#include <cstdint>
#include <vector>

namespace phalanx::cache {

class BlockStriping {
 public:
  // `ranks`: sp; `stripes`: V. Precondition: 1 <= ranks <= stripes.
  BlockStriping(int ranks, int stripes);

  int ranks() const { return static_cast<int>(first_stripe_.size()) - 1; }
  int stripes() const { return static_cast<int>(rank_of_stripe_.size()); }

  // The rank that holds absolute block `index` (>= 0).
  int RankOf(int64_t index) const { return rank_of_stripe_[index % stripes()]; }
  // How many of the absolute blocks [0, num_blocks) `rank` holds.
  int64_t BlocksOn(int rank, int64_t num_blocks) const;
  // The first rank whose memory ends when a sequence grows block by block and every rank holds
  // `blocks_per_rank` blocks, and the number of blocks that the sequence can have in all.
  struct Limit {
    int rank = 0;
    int64_t num_blocks = 0;
  };
  Limit LimitOf(int64_t blocks_per_rank) const;

 private:
  std::vector<int> rank_of_stripe_;    // [stripes]
  std::vector<int64_t> first_stripe_;  // [ranks + 1]: rank r owns [first[r], first[r + 1])
};

}  // namespace phalanx::cache

#endif  // PHALANX_RUNTIME_CACHE_BLOCK_STRIPING_H_
