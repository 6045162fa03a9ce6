#include "parallel/shard.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx::parallel {
namespace {

DecoderShape Llama1B() { return {16, 2048, 8192, 32, 8, 64, 128256}; }

DecoderShape Moe(int64_t experts, int64_t intermediate) {
  DecoderShape shape{9, 96, 200, 6, 3, 16, 307};
  shape.num_experts = experts;
  shape.experts_per_token = 2;
  shape.expert_intermediate_size = intermediate;
  shape.shared_intermediate_size = 96;
  return shape;
}

std::vector<DecoderShape> Shapes() {
  return {
      Llama1B(), {2, 96, 200, 6, 3, 16, 307}, {2, 128, 384, 4, 4, 32, 50}, Moe(6, 96), Moe(8, 40)};
}

TEST(DecoderShards, SlicesTileEveryDimensionForEveryTp) {
  for (const DecoderShape& shape : Shapes()) {
    for (int tp = 1; tp <= 8; ++tp) {
      const DecoderShards shards(shape, {.tp = tp}, 8, 8);
      int64_t heads = 0;
      int64_t channels = 0;
      int64_t vocab = 0;
      for (int t = 0; t < tp; ++t) {
        const RankShard s = shards.shard(t);
        EXPECT_EQ(s.heads.begin, heads);
        EXPECT_EQ(s.channels.begin, channels);
        EXPECT_EQ(s.vocab.begin, vocab);
        heads = s.heads.end;
        channels = s.channels.end;
        vocab = s.vocab.end;
        for (int64_t h = s.heads.begin; h < s.heads.end; ++h) {
          EXPECT_GE(shards.kv_head(h), s.kv_heads.begin);
          EXPECT_LT(shards.kv_head(h), s.kv_heads.end);
        }
      }
      EXPECT_EQ(heads, shape.num_heads);
      EXPECT_EQ(channels, shape.intermediate_size);
      EXPECT_EQ(vocab, shape.vocab_size);
    }
  }
}

// Every (expert, channel) pair, layer and stripe is held; by exactly the ranks that the layout
// replicates it over.
TEST(DecoderShards, EveryLayoutHoldsEverythingAsOftenAsItReplicatesIt) {
  for (const DecoderShape& shape : Shapes()) {
    for (int pp : {1, 2}) {
      for (int sp : {1, 2, 3, 8}) {
        for (int tp : {1, 2, 3, 4}) {
          for (int ep = 1; ep <= sp * tp; ++ep) {
            const Layout layout{.pp = pp, .sp = sp, .tp = tp, .ep = ep};
            if (!DecoderShards::Check(shape, layout, 8, 8).ok()) continue;
            const DecoderShards shards(shape, layout, 8, 8);
            std::vector<int> vocab(shape.vocab_size, 0);
            std::vector<int> layers(shape.num_layers, 0);
            std::vector<int> stripes(8, 0);
            std::vector<int> expert_channels(shape.num_experts * shape.expert_intermediate_size, 0);
            for (int rank = 0; rank < layout.group_size(); ++rank) {
              const RankShard s = shards.shard(rank);
              EXPECT_EQ(s.first_stage, s.layers.begin == 0);
              EXPECT_EQ(s.last_stage, s.layers.end == shape.num_layers);
              for (int64_t i = s.layers.begin; i < s.layers.end; ++i) ++layers[i];
              for (int64_t i = s.stripes.begin; i < s.stripes.end; ++i) ++stripes[i];
              for (int64_t i = s.vocab.begin; i < s.vocab.end; ++i) ++vocab[i];
              for (int64_t e = s.experts.begin; e < s.experts.end; ++e) {
                for (int64_t c = s.expert_channels.begin; c < s.expert_channels.end; ++c) {
                  ++expert_channels[e * shape.expert_intermediate_size + c];
                }
              }
            }
            const auto all = [](const std::vector<int>& counts, int expected) {
              return std::all_of(counts.begin(), counts.end(),
                                 [expected](int count) { return count == expected; });
            };
            EXPECT_TRUE(all(vocab, pp)) << layout.ToString();
            EXPECT_TRUE(all(layers, sp * tp)) << layout.ToString();
            EXPECT_TRUE(all(stripes, pp * tp)) << layout.ToString();
            EXPECT_TRUE(all(expert_channels, pp)) << layout.ToString();
          }
        }
      }
    }
  }
}

TEST(DecoderShards, AnEpThatIsLeftOutIsTheLargestThatFits) {
  EXPECT_EQ(DecoderShards::DefaultEp({.sp = 2, .tp = 4}, 8, 8), 8);
  EXPECT_EQ(DecoderShards::DefaultEp({.sp = 2, .tp = 4}, 6, 8), 4);
  EXPECT_EQ(DecoderShards::DefaultEp({.tp = 6}, 4, 8), 3);
  EXPECT_EQ(DecoderShards::DefaultEp({.tp = 7}, 4, 8), 1);
  EXPECT_EQ(DecoderShards::DefaultEp({.tp = 4}, 0, 8), 1);
}

TEST(DecoderShards, RefusesWhatDoesNotFitNamingTheAxis) {
  const auto refused = [](const DecoderShape& shape, const Layout& layout,
                          const std::string& words) {
    const absl::Status status = DecoderShards::Check(shape, layout, 8, 8);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << layout.ToString();
    EXPECT_NE(std::string(status.message()).find(words), std::string::npos) << status;
  };
  EXPECT_TRUE(DecoderShards::Check(Llama1B(), {.tp = 8}, 8, 8).ok());
  refused(Llama1B(), {.tp = 12}, "at least 12 reduction leaves");
  refused(Llama1B(), {.sp = 9}, "at least 9 sequence stripes");
  refused(Llama1B(), {.pp = 17}, "the model has 16");
  refused(Llama1B(), {.tp = 2, .ep = 2}, "no experts");
  refused(Llama1B(), {.pp = 0}, "pp=0");
  refused(Moe(6, 96), {.tp = 4, .ep = 3}, "must divide sp x tp = 4");
  refused(Moe(6, 96), {.sp = 2, .tp = 4, .ep = 8}, "exceeds the 6 experts");
  refused(Moe(6, 96), {.sp = 3, .tp = 4, .ep = 1}, "12 ranks to share an expert");
}

TEST(SplitStages, BalancesTheHeadAgainstLayers) {
  // A head worth three layers: the last stage holds three layers fewer.
  const std::vector<Range> stages = SplitStages(std::vector<double>(13, 1.0), 0.0, 3.0, 2);
  EXPECT_EQ(stages, (std::vector<Range>{{0, 8}, {8, 13}}));
  EXPECT_EQ(SplitStages({1, 1, 1, 5}, 0, 0, 3), (std::vector<Range>{{0, 1}, {1, 3}, {3, 4}}));
  EXPECT_EQ(SplitStages({1, 1, 1}, 100, 100, 3), (std::vector<Range>{{0, 1}, {1, 2}, {2, 3}}));
  EXPECT_EQ(SplitStages({2, 2}, 0, 0, 1), (std::vector<Range>{{0, 2}}));
}

TEST(SplitStages, NoOtherSplitHasASmallerLargestStage) {
  const std::vector<double> costs = {3, 1, 4, 1, 5, 9, 2, 6};
  const auto largest = [&](int a, int b) {
    double stage[3] = {2, 0, 7};
    for (int i = 0; i < 8; ++i) stage[i < a ? 0 : i < b ? 1 : 2] += costs[i];
    return std::max({stage[0], stage[1], stage[2]});
  };
  const std::vector<Range> found = SplitStages(costs, 2, 7, 3);
  for (int a = 1; a < 7; ++a) {
    for (int b = a + 1; b < 8; ++b) {
      EXPECT_LE(largest(static_cast<int>(found[0].end), static_cast<int>(found[1].end)),
                largest(a, b));
    }
  }
}

TEST(TokenRows, TileTheStepInRankOrder) {
  for (int64_t rows : {0, 1, 5, 64, 67}) {
    int64_t next = 0;
    for (int s = 0; s < 3; ++s) {
      for (int t = 0; t < 4; ++t) {
        const Range own = TokenRows(rows, s, 3, t, 4);
        EXPECT_EQ(own.begin, next);
        next = own.end;
      }
      EXPECT_EQ(SequenceRows(rows, s, 3).end, next);
    }
    EXPECT_EQ(next, rows);
  }
}

}  // namespace
}  // namespace phalanx::parallel
