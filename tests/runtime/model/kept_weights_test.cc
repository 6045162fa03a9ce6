// Weights that were kept compute the same bits as weights that are packed, for every model and
// path.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/shape.h"
#include "tests/testing/decode.h"
#include "tests/testing/layouts.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

// Keeps descriptors in this process, as a keeper does in its own.
class FakeStore : public model::WeightStore {
 public:
  ~FakeStore() override {
    for (const auto& [key, fd] : kept_) close(fd);
  }
  Found Find(const std::vector<std::string>& keys, int rank) override {
    const auto at = kept_.find(keys[rank]);
    if (at == kept_.end()) return {};
    auto arena = model::WeightArena::Map(dup(at->second), keys[rank], 1);
    EXPECT_TRUE(arena.ok()) << arena.status();
    ++found_;
    return {*std::move(arena), 0};
  }
  void Keep(const model::WeightArena& arena) override {
    const int fd = dup(arena.fd());
    if (!kept_.emplace(arena.key(), fd).second) close(fd);
  }
  void Agreed(uint64_t) override {}
  void Warn(absl::string_view why) override { warnings_.emplace_back(why); }

  int found() const { return found_; }
  size_t size() const { return kept_.size(); }
  std::set<std::string> keys() const {
    std::set<std::string> out;
    for (const auto& [key, fd] : kept_) out.insert(key);
    return out;
  }
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  std::map<std::string, int> kept_;
  int found_ = 0;
  std::vector<std::string> warnings_;
};

std::vector<std::string> ModelDirectories() {
  std::vector<std::string> out;
  for (const auto& entry :
       fs::directory_iterator(fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/models")) {
    if (entry.is_directory()) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<int32_t> SomeIds(const std::string& directory) {
  auto checkpoint = checkpoint::Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::mt19937 rng(5);
  std::vector<int32_t> ids(40);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % (*checkpoint)->config().vocab_size);
  return ids;
}

class KeptWeights : public ::testing::TestWithParam<std::string> {};

TEST_P(KeptWeights, GiveTheBitsOfPackedOnesOnEveryPathAndLayout) {
  const std::vector<int32_t> ids = SomeIds(GetParam());
  const auto reference = testing::DecodeLogits(GetParam(), ids, {});
  ASSERT_TRUE(reference.ok()) << reference.status();
  const auto expect_same = [&](const testing::DecodeOptions& options) {
    const auto logits = testing::DecodeLogits(GetParam(), ids, options);
    ASSERT_TRUE(logits.ok()) << logits.status();
    ASSERT_EQ(logits->size(), reference->size());
    EXPECT_EQ(std::memcmp(logits->data(), reference->data(), logits->size() * sizeof(float)), 0);
  };
  auto checkpoint = checkpoint::Checkpoint::Open(GetParam());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    for (const parallel::Layout& layout :
         testing::LayoutsOf(model::ShapeOf((*checkpoint)->config()), 2)) {
      std::vector<FakeStore> stores(layout.group_size());
      testing::DecodeOptions options;
      options.path = path;
      options.layout = layout;
      for (FakeStore& store : stores) options.stores.push_back(&store);
      expect_same(options);
      for (FakeStore& store : stores) {
        EXPECT_EQ(store.size(), 1u);
        EXPECT_EQ(store.found(), 0);
      }
      expect_same(options);
      for (FakeStore& store : stores) {
        EXPECT_EQ(store.found(), 1) << layout.ToString();
        EXPECT_TRUE(store.warnings().empty()) << store.warnings()[0];
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, KeptWeights, ::testing::ValuesIn(ModelDirectories()),
                         [](const auto& info) {
                           std::string name = fs::path(info.param).filename();
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

std::string Golden(const char* name) {
  return fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/models" / name;
}

// The keys of ranks of that layout, by rank.
std::vector<std::string> KeysOf(const std::string& directory, const parallel::Layout& layout,
                                const std::string& packer = "p", int leaves = 8) {
  auto checkpoint = checkpoint::Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  model::DecoderOptions options;
  options.packer = packer;
  options.profile.reduction_leaves = leaves;
  return model::Decoder::WeightKeys(**checkpoint, options, layout);
}

TEST(WeightKeys, DifferWhereverOtherBytesWouldBePacked) {
  const std::string model = Golden("llama-gqa-tied-bf16");
  std::set<std::string> keys;
  size_t count = 0;
  const auto add = [&](const std::vector<std::string>& more) {
    keys.insert(more.begin(), more.end());
    count += more.size();
  };
  add(KeysOf(model, {}));
  add(KeysOf(model, {.tp = 2}));
  add(KeysOf(model, {.pp = 2}));
  add(KeysOf(model, {}, "another build"));
  add(KeysOf(model, {}, "p", 16));
  add(KeysOf(Golden("llama-gqa-tied"), {}));
  EXPECT_EQ(keys.size(), count);
  EXPECT_EQ(KeysOf(model, {.tp = 2}), KeysOf(model, {.tp = 2}));
}

TEST(WeightKeys, DifferForFilesThatHaveChanged) {
  const fs::path copy = fs::path(::testing::TempDir()) / "phalanx-kept-weights-test";
  fs::remove_all(copy);
  fs::copy(Golden("qwen3-bf16"), copy, fs::copy_options::recursive);
  const std::vector<std::string> before = KeysOf(copy, {});
  EXPECT_EQ(KeysOf(copy, {}), before);
  // The same bytes once more: another file.
  fs::copy_file(copy / "model.safetensors", copy / "again");
  fs::rename(copy / "again", copy / "model.safetensors");
  EXPECT_NE(KeysOf(copy, {}), before);
  fs::remove_all(copy);
}

// Finds what another model's rank has packed, as if keys had collided.
class WrongStore : public FakeStore {
 public:
  explicit WrongStore(std::shared_ptr<model::WeightArena> wrong) : wrong_(std::move(wrong)) {}
  Found Find(const std::vector<std::string>&, int) override { return {wrong_, 0}; }

 private:
  const std::shared_ptr<model::WeightArena> wrong_;
};

TEST(KeptWeightsOfAnotherSlice, AreRefusedAndPackedAgain) {
  const std::string model = Golden("llama-mha");
  const std::vector<int32_t> ids = SomeIds(model);
  const auto reference = testing::DecodeLogits(model, ids, {});
  ASSERT_TRUE(reference.ok()) << reference.status();
  FakeStore half[2];
  ASSERT_TRUE(
      testing::DecodeLogits(model, ids, {.layout = {.tp = 2}, .stores = {&half[0], &half[1]}})
          .ok());
  const std::string key = *half[0].keys().begin();
  WrongStore store(half[0].Find({key}, 0).arena);
  const auto again = testing::DecodeLogits(model, ids, {.stores = {&store}});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(std::memcmp(again->data(), reference->data(), again->size() * sizeof(float)), 0);
  ASSERT_EQ(store.warnings().size(), 1u);
  EXPECT_NE(store.warnings()[0].find("packing them again"), std::string::npos);
}

TEST(KvMemory, CanBeBackedLater) {
  const std::string model = Golden("qwen3-bf16");
  auto checkpoint = checkpoint::Checkpoint::Open(model);
  ASSERT_TRUE(checkpoint.ok());
  auto kernels = kernels::CreateCpuKernels({});
  ASSERT_TRUE(kernels.ok());
  for (const bool later : {false, true}) {
    model::DecoderOptions options;
    options.max_rows = 4;
    auto decoder = model::Decoder::Load(**checkpoint, options, **kernels, {});
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    EXPECT_FALSE((*decoder)->weights_were_kept());
    ASSERT_TRUE((*decoder)->AllocateKv(4000, later).ok());
    EXPECT_EQ((*decoder)->kv_blocks(), 4000);
  }  // ends while its memory may still be being backed
}

}  // namespace
}  // namespace phalanx
