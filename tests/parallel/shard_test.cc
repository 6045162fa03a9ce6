#include "parallel/shard.h"

#include "gtest/gtest.h"

namespace phalanx::parallel {
namespace {

DecoderShape Llama1B() { return {16, 2048, 8192, 32, 8, 64, 128256}; }

TEST(DecoderShards, SlicesTileEveryDimensionForEveryTp) {
  for (const DecoderShape& shape : {Llama1B(), DecoderShape{2, 96, 200, 6, 3, 16, 307},
                                    DecoderShape{2, 128, 384, 4, 4, 32, 50}}) {
    for (int tp = 1; tp <= 8; ++tp) {
      const DecoderShards shards(shape, tp, 8);
      int64_t heads = 0;
      int64_t channels = 0;
      int64_t vocab = 0;
      for (int t = 0; t < tp; ++t) {
        const TensorShard s = shards.shard(t);
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

TEST(DecoderShards, RefusesMoreRanksThanLeavesNamingTheLeavesNeeded) {
  EXPECT_TRUE(DecoderShards::Check(8, 8).ok());
  const absl::Status status = DecoderShards::Check(12, 8);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("at least 12 reduction leaves"), std::string::npos) << status;
}

}  // namespace
}  // namespace phalanx::parallel
