// The promise at the level of the decoder: logits are the same bits for every tp, thread count,
// kernel path and chunking.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/decode.h"

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
    ASSERT_TRUE(logits.ok()) << logits.status();
    ASSERT_EQ(logits->size(), reference_.size());
    EXPECT_EQ(std::memcmp(logits->data(), reference_.data(), reference_.size() * sizeof(float)), 0)
        << "tp " << options.tp << ", threads " << options.threads << ", chunk " << options.chunk
        << ", path " << kernels::Name(options.path);
  }

  std::vector<int32_t> ids_;
  std::vector<float> reference_;
};

TEST_P(DecoderLayouts, EveryTpGivesTheBitsOfOneRank) {
  for (int tp = 2; tp <= 8; ++tp) ExpectSameBits({.tp = tp});
}

TEST_P(DecoderLayouts, ThreadsAndChunksAndPathsDoNotMatter) {
  for (const int64_t chunk : {1, 7, 64}) ExpectSameBits({.threads = 2, .chunk = chunk});
  ExpectSameBits({.tp = 3, .threads = 2, .chunk = 31});
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    ExpectSameBits({.path = path, .chunk = 20});
    ExpectSameBits({.tp = 2, .path = path, .chunk = 33});
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, DecoderLayouts, ::testing::ValuesIn(ModelDirectories()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           std::string name = fs::path(info.param).filename();
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(DecoderLayout, MoreRanksThanLeavesIsRefusedNamingTheLeavesNeeded) {
  const auto logits = testing::DecodeLogits(ModelDirectories()[0], {1, 2, 3}, {.tp = 9});
  EXPECT_EQ(logits.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(logits.status().message()).find("at least 9 reduction leaves"),
            std::string::npos)
      << logits.status();
}

TEST(DecoderLayout, MoreLeavesAllowMoreRanks) {
  const std::string directory = ModelDirectories()[0];
  const auto one = testing::DecodeLogits(directory, {1, 2, 3, 4}, {.reduction_leaves = 12});
  const auto nine =
      testing::DecodeLogits(directory, {1, 2, 3, 4}, {.tp = 9, .reduction_leaves = 12});
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(nine.ok()) << nine.status();
  EXPECT_EQ(*one, *nine);
}

}  // namespace
}  // namespace phalanx
