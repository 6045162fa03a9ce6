#include "parallel/memory.h"

#include "gtest/gtest.h"
#include "tests/parallel/specs.h"

namespace phalanx::parallel {
namespace {

ModelSpec Small() {
  ModelSpec spec;
  spec.shape.num_layers = 6;
  spec.shape.hidden_size = 128;
  spec.shape.intermediate_size = 320;
  spec.shape.num_heads = 8;
  spec.shape.num_kv_heads = 4;
  spec.shape.head_dim = 32;
  spec.shape.vocab_size = 1000;
  spec.max_positions = 4096;
  return spec;
}

std::vector<RankMemory> Ranks(const ModelSpec& spec, const Layout& layout) {
  const DeviceTraits traits;
  const DecoderShards shards(spec.shape, layout, 8, 8);
  const MemoryModel memory(spec, traits, shards, 64);
  std::vector<RankMemory> out;
  for (int r = 0; r < layout.group_size(); ++r) out.push_back(memory.rank(r));
  return out;
}

int64_t Sum(const std::vector<RankMemory>& ranks, int64_t RankMemory::*field) {
  int64_t total = 0;
  for (const RankMemory& rank : ranks) total += rank.*field;
  return total;
}

TEST(MemoryModelTest, OneRankHoldsEveryWeightOnce) {
  const ModelSpec spec = Small();
  const RankMemory rank = Ranks(spec, {})[0];
  // qkv [512, 128], o [128, 256], gate and up [640, 128], down [128, 320], head [1008, 128] in
  // BF16; 13 norms of 128 in F32. Channels are cut into leaves of whole 32s, so nothing is padded.
  const int64_t layer = 512 * 128 + 128 * 256 + 640 * 128 + 128 * 320;
  EXPECT_EQ(rank.embedding_bytes, 1000 * 128 * 2);
  EXPECT_EQ(rank.weight_bytes, 2 * (6 * layer + 1008 * 128 + 1000 * 128) + 13 * 128 * 4);
  // 4 heads of 32 keys and 32 values of 32 tokens, over 6 layers.
  EXPECT_EQ(rank.kv_block_bytes, 6 * 4 * (32 + 32) * 32 * 2);
  EXPECT_EQ(rank.stripes, 8);
}

TEST(MemoryModelTest, StagesHoldEveryLayerOnceAndTheEndsTheirOwn) {
  const ModelSpec spec = Small();
  const RankMemory whole = Ranks(spec, {})[0];
  Layout layout;
  layout.pp = 3;
  const std::vector<RankMemory> ranks = Ranks(spec, layout);
  EXPECT_EQ(Sum(ranks, &RankMemory::weight_bytes), whole.weight_bytes);
  EXPECT_EQ(Sum(ranks, &RankMemory::kv_block_bytes), whole.kv_block_bytes);
  EXPECT_EQ(ranks[0].embedding_bytes, whole.embedding_bytes);
  EXPECT_EQ(ranks[1].embedding_bytes, 0);
  EXPECT_EQ(ranks[2].embedding_bytes, 0);
}

TEST(MemoryModelTest, TensorRanksReplicateOnlyNormsAndKvHeadsThatTheyShare) {
  const ModelSpec spec = Small();
  const RankMemory whole = Ranks(spec, {})[0];
  Layout layout;
  layout.tp = 2;
  const std::vector<RankMemory> ranks = Ranks(spec, layout);
  // The head's 1000 rows end in the second rank, whose last panel is padded as the whole's is.
  EXPECT_EQ(Sum(ranks, &RankMemory::weight_bytes), whole.weight_bytes + 13 * 128 * 4);
  EXPECT_EQ(Sum(ranks, &RankMemory::embedding_bytes), whole.embedding_bytes);
  EXPECT_EQ(Sum(ranks, &RankMemory::kv_block_bytes), whole.kv_block_bytes);
  layout.tp = 8;  // two ranks read each KV head
  EXPECT_EQ(Sum(Ranks(spec, layout), &RankMemory::kv_block_bytes), 2 * whole.kv_block_bytes);
}

TEST(MemoryModelTest, SequenceRanksReplicateWeightsAndShareStripes) {
  const ModelSpec spec = Small();
  const RankMemory whole = Ranks(spec, {})[0];
  Layout layout;
  layout.sp = 3;
  const DecoderShards shards(spec.shape, layout, 8, 8);
  const DeviceTraits traits;
  const MemoryModel memory(spec, traits, shards, 64);
  int stripes = 0;
  int64_t blocks = 0;
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(memory.rank(r).kv_block_bytes, whole.kv_block_bytes);
    stripes += memory.rank(r).stripes;
    blocks += memory.BlocksPerSequence(r, 32 * 21 + 1);
  }
  EXPECT_EQ(stripes, 8);
  EXPECT_EQ(blocks, 22);
  // 22 blocks are two rounds of 8 stripes and 6 more: stripes 0 and 1 have 3 each.
  EXPECT_EQ(memory.BlocksPerSequence(0, 32 * 22), 6);
}

TEST(MemoryModelTest, ExpertsAreHeldOnceOverTheirGroupAndRoutersByAll) {
  ModelSpec spec = Small();
  spec.shape.num_experts = 6;
  spec.shape.experts_per_token = 2;
  spec.shape.expert_intermediate_size = 256;
  const RankMemory whole = Ranks(spec, {})[0];
  for (const int ep : {1, 2, 4}) {
    Layout layout;
    layout.tp = 4;
    layout.ep = ep;
    const std::vector<RankMemory> ranks = Ranks(spec, layout);
    // Replicated: 13 norms and 6 routers of 16 padded rows, by three more ranks.
    const int64_t replicated = 3 * (13 * 128 * 4 + 6 * 16 * 128 * 2);
    EXPECT_EQ(Sum(ranks, &RankMemory::weight_bytes), whole.weight_bytes + replicated) << ep;
  }
}

TEST(MemoryModelTest, BiasesAndHeadNormsCount) {
  ModelSpec spec = Small();
  const int64_t plain = Ranks(spec, {})[0].weight_bytes;
  spec.qkv_bias = true;
  EXPECT_EQ(Ranks(spec, {})[0].weight_bytes - plain, 6 * 512 * 4);
  spec.qkv_bias = false;
  spec.qk_norm = true;
  EXPECT_EQ(Ranks(spec, {})[0].weight_bytes - plain, 6 * 2 * 32 * 4);
}

TEST(MemoryModelTest, WorkspaceGrowsWithRows) {
  const ModelSpec spec = Small();
  const DeviceTraits traits;
  const DecoderShards one(spec.shape, {}, 8, 8);
  const int64_t few = MemoryModel(spec, traits, one, 64).rank(0).workspace_bytes;
  const int64_t many = MemoryModel(spec, traits, one, 128).rank(0).workspace_bytes;
  EXPECT_GT(many, 1.5 * static_cast<double>(few));
  EXPECT_LT(many, 2.1 * static_cast<double>(few));
}

TEST(ModelSpecTest, ParametersAreThePublishedOnes) {
  EXPECT_NEAR(static_cast<double>(Llama405b().Parameters()), 405.9e9, 0.1e9);
  EXPECT_NEAR(static_cast<double>(Mixtral8x22b().Parameters()), 140.6e9, 0.1e9);
  EXPECT_NEAR(static_cast<double>(Qwen235b().Parameters()), 235.1e9, 0.1e9);
}

}  // namespace
}  // namespace phalanx::parallel
