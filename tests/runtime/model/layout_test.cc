// The promise at the level of the decoder: logits are the same bits for every layout, thread count,
// kernel path and chunking, whether the residual stream is sharded by token or not.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/shape.h"
#include "tests/testing/decode.h"
#include "tests/testing/layouts.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> ModelDirectories() {
  std::vector<std::string> out;
  for (const auto& entry :
       fs::directory_iterator(fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/models")) {
    if (entry.is_directory()) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

class DecoderLayouts : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto checkpoint = checkpoint::Checkpoint::Open(GetParam());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    config_ = (*checkpoint)->config();
    std::mt19937 rng(11);
    const int64_t vocab = (*checkpoint)->config().vocab_size;
    const int64_t context = (*checkpoint)->config().max_position_embeddings;
    ids_.resize(std::min<int64_t>(context, 75));
    for (int32_t& id : ids_) id = static_cast<int32_t>(rng() % vocab);
    auto reference = testing::DecodeLogits(GetParam(), ids_, {});
    ASSERT_TRUE(reference.ok()) << reference.status();
    reference_ = *std::move(reference);
    ASSERT_EQ(reference_.size(), ids_.size() * vocab);
  }

  void ExpectSameBits(const testing::DecodeOptions& options) {
    const auto logits = testing::DecodeLogits(GetParam(), ids_, options);
    ASSERT_TRUE(logits.ok()) << options.layout.ToString() << ": " << logits.status();
    ASSERT_EQ(logits->size(), reference_.size());
    EXPECT_EQ(std::memcmp(logits->data(), reference_.data(), reference_.size() * sizeof(float)), 0)
        << options.layout.ToString() << ", threads " << options.threads << ", chunk "
        << options.chunk << ", shard_rows " << options.shard_rows << ", path "
        << kernels::Name(options.path);
  }

  checkpoint::ModelConfig config_;
  std::vector<int32_t> ids_;
  std::vector<float> reference_;
};

TEST_P(DecoderLayouts, EveryTpGivesTheBitsOfOneRank) {
  for (int tp = 2; tp <= 8; ++tp) ExpectSameBits({.layout = {.tp = tp}});
}

TEST_P(DecoderLayouts, EveryLayoutGivesTheBitsOfOneRank) {
  // Deep models on up to eight ranks, the others on four; with the residual stream sharded by token
  // and, in the second chunk of few rows, not.
  const int ranks = config_.num_layers >= 8 ? 8 : 4;
  for (const parallel::Layout& layout : testing::LayoutsOf(model::ShapeOf(config_), ranks)) {
    ExpectSameBits({.layout = layout, .chunk = 50});
  }
}

TEST_P(DecoderLayouts, WhetherTheResidualStreamIsShardedDoesNotMatter) {
  for (const parallel::Layout& layout :
       {parallel::Layout{.sp = 2, .tp = 2}, {.pp = 2, .tp = 3}, {.sp = 3}, {.pp = 2, .sp = 2}}) {
    if (layout.pp > config_.num_layers) continue;
    // 1: ranks without a row of their own.
    for (const int64_t shard_rows : {int64_t{1}, int64_t{1} << 20}) {
      for (const int64_t chunk : {1, 2, 64}) {
        ExpectSameBits({.layout = layout, .shard_rows = shard_rows, .chunk = chunk});
      }
    }
  }
}

TEST_P(DecoderLayouts, ThreadsAndChunksAndPathsDoNotMatter) {
  for (const int64_t chunk : {1, 7, 64}) ExpectSameBits({.threads = 2, .chunk = chunk});
  ExpectSameBits({.layout = {.tp = 3}, .threads = 2, .chunk = 31});
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    ExpectSameBits({.path = path, .chunk = 20});
    ExpectSameBits({.layout = {.sp = 2, .tp = 2}, .path = path, .chunk = 33});
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, DecoderLayouts, ::testing::ValuesIn(ModelDirectories()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           std::string name = fs::path(info.param).filename();
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(DecoderLayout, MoreRanksThanLeavesIsRefusedNamingTheLeavesNeeded) {
  const auto logits =
      testing::DecodeLogits(ModelDirectories()[0], {1, 2, 3}, {.layout = {.tp = 9}});
  EXPECT_EQ(logits.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(logits.status().message()).find("at least 9 reduction leaves"),
            std::string::npos)
      << logits.status();
}

TEST(DecoderLayout, MoreLeavesAllowMoreRanks) {
  const std::string directory = ModelDirectories()[0];
  const auto one = testing::DecodeLogits(directory, {1, 2, 3, 4}, {.reduction_leaves = 12});
  const auto nine =
      testing::DecodeLogits(directory, {1, 2, 3, 4}, {.layout = {.tp = 9}, .reduction_leaves = 12});
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(nine.ok()) << nine.status();
  EXPECT_EQ(*one, *nine);
}

}  // namespace
}  // namespace phalanx
