#include "runtime/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::checkpoint {
namespace {

using kernels::DType;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

json TinyConfig() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"vocab_size", 10},
          {"torch_dtype", "float32"}};
}

// The tensors that `config` asks for, all of one dtype.
std::vector<TestTensor> TensorsOf(const json& config, const std::string& dtype = "F32") {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  std::vector<TestTensor> tensors;
  for (const Role role : Roles(*parsed)) {
    const Shape shape = ExpectedShape(*parsed, role);
    for (int64_t layer = 0; layer < (IsPerLayer(role) ? parsed->num_layers : 1); ++layer) {
      tensors.push_back(
          {TensorName(*parsed, role, layer), {shape.begin(), shape.end()}, dtype, ""});
    }
  }
  return tensors;
}

TestTensor& Named(std::vector<TestTensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const TestTensor& tensor) { return tensor.name == name; });
}

void Remove(std::vector<TestTensor>& tensors, const std::string& name) {
  tensors.erase(std::remove_if(tensors.begin(), tensors.end(),
                               [&](const TestTensor& tensor) { return tensor.name == name; }),
                tensors.end());
}

class CheckpointTest : public testing::Test {
 protected:
  void WriteModel(const json& config, const std::vector<TestTensor>& tensors) {
    dir_.Write("config.json", config.dump());
    dir_.Write("model.safetensors", Safetensors(tensors));
  }

  // Two shards with an index; `edit` may spoil the index.
  void WriteIndexed(const std::function<void(json&)>& edit = nullptr) {
    dir_.Write("config.json", TinyConfig().dump());
    const std::vector<TestTensor> all = TensorsOf(TinyConfig());
    const auto middle = all.begin() + 5;
    json map;
    for (auto it = all.begin(); it != all.end(); ++it) {
      map[it->name] = it < middle ? "model-1.safetensors" : "model-2.safetensors";
    }
    if (edit) edit(map);
    dir_.Write("model-1.safetensors", Safetensors(std::vector<TestTensor>(all.begin(), middle)));
    dir_.Write("model-2.safetensors", Safetensors(std::vector<TestTensor>(middle, all.end())));
    dir_.Write("model.safetensors.index.json",
               json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
  }

  void ExpectRefused(absl::StatusCode code, const std::string& what) {
    const auto opened = Checkpoint::Open(dir_.path());
    EXPECT_EQ(opened.status().code(), code) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(what));
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(dir_.path()));
    EXPECT_EQ(opened.status().message().find('\n'), absl::string_view::npos);
  }
  void ExpectInvalid(const std::string& what) {
    ExpectRefused(absl::StatusCode::kInvalidArgument, what);
  }
  void ExpectUnsupported(const std::string& what) {
    ExpectRefused(absl::StatusCode::kUnimplemented, what);
  }

  TempDir dir_;
};

TEST_F(CheckpointTest, OpensAndFindsByNameAndRole) {
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig(), "BF16");
  Named(tensors, "model.layers.1.self_attn.k_proj.weight").bytes = std::string(4 * 8 * 2, 'k');
  WriteModel(TinyConfig(), tensors);
  dir_.Write("generation_config.json", R"({"eos_token_id": [3, 4]})");
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  // The dtype is that of the tensors; config.json's word is only kept.
  EXPECT_EQ(checkpoint.config().weight_dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.config().declared_dtype, "float32");
  EXPECT_EQ(checkpoint.config().eos_token_ids, (std::vector<int64_t>{3, 4}));
  const auto k = checkpoint.Find(Role::kK, 1);
  ASSERT_TRUE(k.ok()) << k.status();
  EXPECT_EQ(k->name, "model.layers.1.self_attn.k_proj.weight");
  EXPECT_EQ(k->rows(), 4);
  EXPECT_EQ(k->cols(), 8);
  EXPECT_EQ(k->bytes(), 64);
  EXPECT_EQ(std::string(static_cast<const char*>(k->data), 64), std::string(64, 'k'));
  EXPECT_EQ(checkpoint.Find(k->name)->data, k->data);
  EXPECT_EQ(checkpoint.Find("nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(checkpoint.Find(Role::kK, 2).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(checkpoint.Has(Role::kQBias));
  EXPECT_EQ(checkpoint.TensorNames().size(), tensors.size());
  EXPECT_TRUE(checkpoint.Validate().ok());
}

TEST_F(CheckpointTest, TheHeadOfATiedModelIsItsEmbedding) {
  json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  WriteModel(config, TensorsOf(config));
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->Find(Role::kLmHead)->name, "model.embed_tokens.weight");
}

TEST_F(CheckpointTest, ATiedHeadInTheFilesMustEqualTheEmbedding) {
  json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  std::vector<TestTensor> tensors = TensorsOf(config);
  tensors.push_back({"lm_head.weight", {10, 8}, "F32", ""});
  WriteModel(config, tensors);
  EXPECT_TRUE(Checkpoint::Open(dir_.path()).ok());
  tensors.back().bytes = std::string(320, '\1');
  WriteModel(config, tensors);
  ExpectInvalid("tie_word_embeddings true, but lm_head.weight is there and differs");
  // In one value of one row.
  tensors.back().bytes = std::string(320, '\0');
  tensors.back().bytes[7 * 8 * 4 + 3] = '\1';
  WriteModel(config, tensors);
  ExpectInvalid("tie_word_embeddings true, but lm_head.weight is there and differs");
}

// What safetensors' save_model writes: of two names of one tensor, the alphabetically first.
TEST_F(CheckpointTest, ATiedEmbeddingMayBeStoredAsTheHead) {
  json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  std::vector<TestTensor> tensors = TensorsOf(config, "BF16");
  Named(tensors, "model.embed_tokens.weight").name = "lm_head.weight";
  WriteModel(config, tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->config().weight_dtype, DType::kBF16);
  EXPECT_EQ((*opened)->Find(Role::kEmbedding)->name, "lm_head.weight");
  EXPECT_EQ((*opened)->Find(Role::kLmHead)->name, "lm_head.weight");
  config["tie_word_embeddings"] = false;
  WriteModel(config, tensors);
  ExpectInvalid("tensor model.embed_tokens.weight is missing");
}

TEST_F(CheckpointTest, ReadVectorWidensExactlyAndRefusesNan) {
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig(), "F16");
  // 1.5, -2, 2^-24 (subnormal), 65504, 0, -0, 2^-14, 1
  const uint16_t halves[8] = {0x3e00, 0xc000, 0x0001, 0x7bff, 0, 0x8000, 0x0400, 0x3c00};
  std::string& bytes = Named(tensors, "model.norm.weight").bytes;
  bytes.assign(reinterpret_cast<const char*>(halves), sizeof(halves));
  WriteModel(TinyConfig(), tensors);
  {
    const auto opened = Checkpoint::Open(dir_.path());
    ASSERT_TRUE(opened.ok()) << opened.status();
    const auto values = (*opened)->ReadVector(Role::kFinalNorm);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(*values,
              (std::vector<float>{1.5f, -2.0f, 0x1p-24f, 65504.0f, 0.0f, -0.0f, 0x1p-14f, 1.0f}));
  }
  const uint16_t nan = 0x7e01;
  std::memcpy(bytes.data() + 6, &nan, 2);
  WriteModel(TinyConfig(), tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto values = (*opened)->ReadVector(Role::kFinalNorm);
  EXPECT_EQ(values.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(values.status().message()),
              HasSubstr("tensor model.norm.weight has NaN at element 3"));
}

TEST_F(CheckpointTest, CheckFiniteNamesRowAndColumn) {
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig(), "BF16");
  std::string bytes(10 * 8 * 2, '\0');
  const uint16_t infinity = 0xff80;
  std::memcpy(bytes.data() + (3 * 8 + 5) * 2, &infinity, 2);
  Named(tensors, "model.embed_tokens.weight").bytes = bytes;
  WriteModel(TinyConfig(), tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const TensorRef table = *(*opened)->Find(Role::kEmbedding);
  EXPECT_TRUE((*opened)->CheckFinite(table, 0, 3).ok());
  EXPECT_TRUE((*opened)->CheckFinite(table, 4, 10).ok());
  EXPECT_THAT(std::string((*opened)->CheckFinite(table, 0, 10).message()),
              AllOf(StartsWith(dir_.path() + ": tensor model.embed_tokens.weight"),
                    HasSubstr("infinity at row 3, column 5")));
}

TEST_F(CheckpointTest, F32NormsBesideBf16WeightsAreUsedAsStored) {
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig(), "BF16");
  const float values[8] = {1.0000001f, 2, 3, 4, 5, 6, 7, 8};
  Named(tensors, "model.norm.weight") = {
      "model.norm.weight", {8}, "F32", std::string(reinterpret_cast<const char*>(values), 32)};
  WriteModel(TinyConfig(), tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->ReadVector(Role::kFinalNorm)->at(0), 1.0000001f);
}

TEST_F(CheckpointTest, RefusesMixedAndUnsupportedDtypes) {
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig(), "BF16");
  TestTensor& up = Named(tensors, "model.layers.0.mlp.up_proj.weight");
  up.dtype = "F16";
  WriteModel(TinyConfig(), tensors);
  ExpectUnsupported("model.layers.0.mlp.up_proj.weight has dtype F16, but the embedding has BF16");
  up.dtype = "I8";
  WriteModel(TinyConfig(), tensors);
  ExpectUnsupported("model.layers.0.mlp.up_proj.weight has dtype I8, supported are F32");
  WriteModel(TinyConfig(), TensorsOf(TinyConfig(), "F64"));
  ExpectUnsupported("has dtype F64, supported are F32, BF16 and F16");
  tensors = TensorsOf(TinyConfig(), "F32");
  Named(tensors, "model.norm.weight").dtype = "BF16";
  WriteModel(TinyConfig(), tensors);
  ExpectUnsupported("model.norm.weight has dtype BF16, but the embedding has F32");
}

TEST_F(CheckpointTest, RefusesMissingTensors) {
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.1.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"}) {
    std::vector<TestTensor> tensors = TensorsOf(TinyConfig());
    Remove(tensors, name);
    WriteModel(TinyConfig(), tensors);
    ExpectInvalid(absl::StrCat("tensor ", name, " is missing"));
  }
}

TEST_F(CheckpointTest, RefusesConfigsThatContradictTheTensors) {
  const std::vector<std::pair<json, const char*>> cases = {
      {{{"num_hidden_layers", 3}},
       "config.json says num_hidden_layers 3, but tensor model.layers.2.input_layernorm.weight is "
       "missing"},
      {{{"num_hidden_layers", 1}}, "has tensor \"model.layers.1."},
      {{{"hidden_size", 16}}, "has shape [10, 8], but config.json asks for [10, 16]"},
      {{{"vocab_size", 11}}, "has shape [10, 8], but config.json asks for [11, 8]"},
      {{{"intermediate_size", 13}}, "mlp.gate_proj.weight has shape [12, 8], but config.json asks"},
      {{{"num_key_value_heads", 2}}, "k_proj.weight has shape [4, 8], but config.json asks"},
      {{{"head_dim", 8}}, "q_proj.weight has shape [8, 8], but config.json asks for [16, 8]"},
      {{{"attention_bias", true}}, "self_attn.q_proj.bias is missing"},
      {{{"mlp_bias", true}}, "mlp.gate_proj.bias is missing"},
  };
  for (const auto& [change, what] : cases) {
    json config = TinyConfig();
    config.update(change);
    WriteModel(config, TensorsOf(TinyConfig()));
    ExpectInvalid(what);
  }
}

TEST_F(CheckpointTest, SaysWhichSizesTheConfigDidNotSay) {
  json config = TinyConfig();
  config.erase("num_key_value_heads");
  config.erase("head_dim");
  WriteModel(config, TensorsOf(TinyConfig()));
  ExpectInvalid(
      "k_proj.weight has shape [4, 8], but config.json asks for [8, 8] (it doesn't say, so this "
      "was "
      "taken: num_key_value_heads 2, head_dim 4)");
  // Nothing of what isn't said is in this tensor's shape.
  config["vocab_size"] = 11;
  WriteModel(config, TensorsOf(TinyConfig()));
  ExpectInvalid("has shape [10, 8], but config.json asks for [11, 8]");
  EXPECT_EQ(Checkpoint::Open(dir_.path()).status().message().find("doesn't say"),
            std::string::npos);
}

TEST_F(CheckpointTest, RefusesTensorsThatWouldChangeTheAnswers) {
  for (const char* name : {"model.layers.0.self_attn.q_proj.bias",
                           "model.layers.0.self_attn.q_norm.weight", "score.weight"}) {
    std::vector<TestTensor> tensors = TensorsOf(TinyConfig());
    tensors.push_back({name, {8}, "F32", ""});
    WriteModel(TinyConfig(), tensors);
    ExpectInvalid(absl::StrCat("has tensor \"", name, "\""));
  }
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig());
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {2}, "F64", ""});
  WriteModel(TinyConfig(), tensors);
  EXPECT_TRUE(Checkpoint::Open(dir_.path()).ok());
}

TEST_F(CheckpointTest, RefusesDamagedWeightFiles) {
  dir_.Write("config.json", TinyConfig().dump());
  const std::string good = Safetensors(TensorsOf(TinyConfig()));
  dir_.Write("model.safetensors", LittleEndian64(uint64_t{1} << 63) + good.substr(8));
  ExpectInvalid("model.safetensors: header length 9223372036854775808 exceeds the file's");
  dir_.Write("model.safetensors", good.substr(0, good.size() - 1));
  ExpectInvalid("the file is truncated");
  dir_.Write("model.safetensors", "");
  ExpectInvalid("model.safetensors: 0 bytes");
}

TEST_F(CheckpointTest, RefusesMisalignedTensors) {
  dir_.Write("config.json", TinyConfig().dump());
  const std::string good = Safetensors(TensorsOf(TinyConfig()));
  uint64_t length = 0;
  std::memcpy(&length, good.data(), 8);
  std::string header = good.substr(8, length);
  header.push_back(' ');
  dir_.Write("model.safetensors", Safetensors(header, good.substr(8 + length)));
  ExpectUnsupported("is not aligned to its 4-byte elements");
}

TEST_F(CheckpointTest, OpensIndexedShards) {
  WriteIndexed();
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->TensorNames().size(), TensorsOf(TinyConfig()).size());
}

TEST_F(CheckpointTest, RefusesShardNamesThatLeaveTheDirectory) {
  for (const char* name : {"../model-1.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".",
                           "", "a\\b.safetensors", "model.bin", "/model-1.safetensors"}) {
    WriteIndexed([&](json& map) { map["model.norm.weight"] = name; });
    ExpectInvalid("expected a plain name");
  }
  WriteIndexed([](json& map) { map["model.norm.weight"] = std::string("a\0.safetensors", 14); });
  ExpectInvalid("expected a plain name");
  WriteIndexed([](json& map) { map["model.norm.weight"] = 3; });
  ExpectInvalid("the file 3, expected a file name");
}

TEST_F(CheckpointTest, RefusesAnIndexThatContradictsItsShards) {
  WriteIndexed([](json& map) { map["extra.weight"] = "model-1.safetensors"; });
  ExpectInvalid("says that tensor \"extra.weight\" is in \"model-1.safetensors\", but that file");
  WriteIndexed([](json& map) { map.erase("model.norm.weight"); });
  ExpectInvalid("has tensor \"model.norm.weight\", but model.safetensors.index.json does not list");
  WriteIndexed([](json& map) { map["model.norm.weight"] = "model-2.safetensors"; });
  ExpectInvalid("says that it is in \"model-2.safetensors\"");
  WriteIndexed([](json& map) { map = json::object(); });
  ExpectInvalid("expected an object \"weight_map\"");
  WriteIndexed([](json& map) { map = "x"; });
  ExpectInvalid("expected an object \"weight_map\"");
}

TEST_F(CheckpointTest, NamesAMissingShard) {
  WriteIndexed();
  std::filesystem::remove(dir_.file("model-2.safetensors"));
  ExpectRefused(absl::StatusCode::kNotFound, "model-2.safetensors: no such file");
}

TEST_F(CheckpointTest, NamesATruncatedShard) {
  WriteIndexed();
  std::filesystem::resize_file(dir_.file("model-2.safetensors"),
                               std::filesystem::file_size(dir_.file("model-2.safetensors")) - 4);
  ExpectInvalid("model-2.safetensors: tensor");
}

TEST_F(CheckpointTest, SaysWhatADirectoryLacks) {
  ExpectRefused(absl::StatusCode::kNotFound, "config.json: no such file; a Hugging Face");
  std::filesystem::create_directory(dir_.file("snapshots"));
  ExpectRefused(absl::StatusCode::kNotFound, "the Hub's cache, the model is in one of");
  dir_.Write("config.json", TinyConfig().dump());
  ExpectRefused(absl::StatusCode::kNotFound, "has neither model.safetensors nor");
  dir_.Write("pytorch_model.bin", "x");
  ExpectUnsupported("has pytorch_model.bin but no model.safetensors");
}

TEST_F(CheckpointTest, RefusesMissingDirectoriesAndFiles) {
  const auto missing = Checkpoint::Open(dir_.file("missing"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("no such directory"));
  dir_.Write("file", "x");
  EXPECT_THAT(std::string(Checkpoint::Open(dir_.file("file")).status().message()),
              HasSubstr("not a directory"));
  EXPECT_FALSE(Checkpoint::Open("").ok());
  std::filesystem::create_directory(dir_.file("config.json"));
  ExpectInvalid("config.json: not a regular file");
}

TEST_F(CheckpointTest, DigestTellsModelsApartAndCopiesAlike) {
  const auto digest = [&] {
    const auto opened = Checkpoint::Open(dir_.path());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return (*opened)->CheckpointDigest();
  };
  std::vector<TestTensor> tensors = TensorsOf(TinyConfig());
  WriteModel(TinyConfig(), tensors);
  const std::string first = digest();
  EXPECT_EQ(first.size(), 32u);
  EXPECT_EQ(digest(), first);
  dir_.Write("generation_config.json", R"({"eos_token_id": 5})");
  const std::string with_generation = digest();
  EXPECT_NE(with_generation, first);
  Named(tensors, "model.norm.weight").bytes = std::string(32, '\1');
  WriteModel(TinyConfig(), tensors);
  EXPECT_NE(digest(), with_generation);
}

// Every model directory of the repository opens, in both spellings of its configuration.
TEST(CheckpointDataTest, OpensEveryGoldenModel) {
  const std::filesystem::path root =
      std::filesystem::path(PHALANX_SOURCE_DIR) / "tests/goldens/models";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    const auto opened = Checkpoint::Open(entry.path().string());
    EXPECT_TRUE(opened.ok()) << opened.status();
    ++count;
    if (!opened.ok()) continue;
    EXPECT_EQ((*opened)->config().weight_dtype,
              (*opened)->Find((*opened)->TensorNames().front())->dtype);
    const std::filesystem::path other = entry.path() / "config-other-style.json";
    if (!std::filesystem::exists(other)) continue;
    std::ifstream stream(other);
    const std::string text(std::istreambuf_iterator<char>(stream), {});
    const auto config = ParseModelConfig(text, other.string());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope, (*opened)->config().rope);
    EXPECT_EQ(config->declared_dtype, (*opened)->config().declared_dtype);
  }
  EXPECT_GE(count, 4);
}

TEST(CheckpointDataTest, OpensTheSharedModel) {
  const std::string path = PHALANX_SHARED_DIR "/models/tinystories-656k";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const auto opened = Checkpoint::Open(path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->config().num_kv_heads, 4);
  EXPECT_TRUE((*opened)->config().tie_word_embeddings);
  EXPECT_TRUE((*opened)->ReadVector(Role::kFinalNorm).ok());
}

}  // namespace
}  // namespace phalanx::checkpoint
