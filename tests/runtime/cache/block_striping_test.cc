#include "runtime/cache/block_striping.h"

#include <vector>

#include "gtest/gtest.h"

namespace phalanx::cache {
namespace {

TEST(BlockStriping, ABlockLiesOnTheRankThatOwnsItsStripe) {
  const BlockStriping three(3, 8);  // stripes 0-1, 2-4, 5-7
  const std::vector<int> expected = {0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1};
  for (size_t b = 0; b < expected.size(); ++b) {
    EXPECT_EQ(three.RankOf(static_cast<int64_t>(b)), expected[b]) << "block " << b;
  }
  EXPECT_EQ(BlockStriping(1, 8).RankOf(13), 0);
  EXPECT_EQ(BlockStriping(8, 8).RankOf(13), 5);
}

TEST(BlockStriping, CountsAndLimitsAreWhatCountingOneByOneGives) {
  for (const int stripes : {1, 3, 8, 9}) {
    for (int ranks = 1; ranks <= stripes; ++ranks) {
      const BlockStriping striping(ranks, stripes);
      std::vector<int64_t> held(ranks, 0);
      for (int64_t n = 0; n < 40; ++n) {
        for (int r = 0; r < ranks; ++r) ASSERT_EQ(striping.BlocksOn(r, n), held[r]) << n;
        const int rank = striping.RankOf(n);
        // Block n finds this many on its rank: with so many per rank, n blocks are the most.
        const BlockStriping::Limit limit = striping.LimitOf(held[rank]);
        ASSERT_LE(limit.num_blocks, n);
        if (limit.num_blocks == n) {
          ASSERT_EQ(limit.rank, rank);
        }
        ++held[rank];
      }
      for (int64_t room = 0; room < 12; ++room) {
        const BlockStriping::Limit limit = striping.LimitOf(room);
        for (int r = 0; r < ranks; ++r) {
          ASSERT_LE(striping.BlocksOn(r, limit.num_blocks), room);
        }
        ASSERT_EQ(striping.BlocksOn(limit.rank, limit.num_blocks + 1), room + 1);
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::cache
