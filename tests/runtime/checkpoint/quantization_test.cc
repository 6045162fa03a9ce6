// Checkpoints in FP8: what config.json may say, and what the files must then hold.
#include "runtime/checkpoint/quantization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Llama(const json& quantization) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 1},
          {"num_attention_heads", 2},
          {"vocab_size", 10},
          {"quantization_config", quantization}};
}

absl::StatusOr<ModelConfig> Parse(const json& quantization) {
  return ParseModelConfig(Llama(quantization).dump(), "config.json");
}

void ExpectUnsupported(const json& quantization, const std::string& what) {
  const absl::Status status = Parse(quantization).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << quantization << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: key \"quantization_config\""));
  EXPECT_THAT(std::string(status.message()), HasSubstr(what));
}

json FineGrained() {
  return {{"quant_method", "fp8"},
          {"fmt", "e4m3"},
          {"activation_scheme", "dynamic"},
          {"modules_to_not_convert", {"lm_head"}},
          {"weight_block_size", {128, 64}}};
}

json Compressed(const json& weights) {
  return {{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr},
          {"sparsity_config", json::object()},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
}
json Channel() {
  return {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}, {"symmetric", true}};
}

TEST(Quantization, OfFp8IsReadInEveryForm) {
  EXPECT_EQ(Parse(FineGrained())->fp8, (Fp8Scheme{128, 64}));
  json whole = FineGrained();
  whole.erase("weight_block_size");
  EXPECT_EQ(Parse(whole)->fp8, Fp8Scheme{});
  whole["weight_block_size"] = nullptr;
  EXPECT_EQ(Parse(whole)->fp8, Fp8Scheme{});
  EXPECT_EQ(Parse({{"quant_method", "fbgemm_fp8"},
                   {"activation_scale_ub", 1200.0},
                   {"modules_to_not_convert", {"lm_head"}}})
                ->fp8,
            Fp8Scheme{});
  EXPECT_EQ(Parse(Compressed(Channel()))->fp8, Fp8Scheme{});
  json block = Channel();
  block.update({{"strategy", "block"}, {"block_structure", {32, 96}}});
  EXPECT_EQ(Parse(Compressed(block))->fp8, (Fp8Scheme{32, 96}));
  block["block_structure"] = "128x64";
  EXPECT_EQ(Parse(Compressed(block))->fp8, (Fp8Scheme{128, 64}));
  EXPECT_EQ(Parse(nullptr)->fp8, std::nullopt);
}

TEST(Quantization, OfAnyOtherKindIsRefusedByName) {
  ExpectUnsupported({{"quant_method", "awq"}}, "quant_method \"awq\"");
  ExpectUnsupported("fp8", "\"fp8\"");
  ExpectUnsupported({{"bits", 8}}, "bits");
  json other = FineGrained();
  other["fmt"] = "e5m2";
  ExpectUnsupported(other, "fmt e5m2");
  other = FineGrained();
  other["rotate"] = true;
  ExpectUnsupported(other, "key rotate true");
  other = Compressed(Channel());
  other["format"] = "pack-quantized";
  ExpectUnsupported(other, "format pack-quantized");
  other = Compressed(Channel());
  other["transform_config"] = {{"config_groups", 1}};
  ExpectUnsupported(other, "transform_config");
  other = Compressed(Channel());
  for (const json& sparsity : {json{{"format", "sparse-24-bitmask"}}, json{{"format", nullptr}},
                               json{{"format", 3}}, json("dense"), json::array({1})}) {
    other["sparsity_config"] = sparsity;
    ExpectUnsupported(other, "sparsity_config");
  }
  other["sparsity_config"] = {{"format", "dense"}};
  EXPECT_TRUE(Parse(other).ok()) << Parse(other).status();
  for (const json& change : {json{{"num_bits", 4}}, json{{"type", "int"}},
                             json{{"symmetric", false}}, json{{"strategy", "group"}}}) {
    json weights = Channel();
    weights.update(change);
    ExpectUnsupported(Compressed(weights), "group_0.weights");
  }
  for (const json& block : {json{128}, json{0, 128}, json{128, "64"}, json(128), json("128x")}) {
    other = FineGrained();
    other["weight_block_size"] = block;
    EXPECT_THAT(std::string(Parse(other).status().message()), HasSubstr("weight_block_size"));
  }
}

TEST(ScaleBlock, IsAMatrixARowOrWhatTheConfigurationNames) {
  const Fp8Scheme blocks = {128, 64};
  EXPECT_EQ(ScaleBlock(blocks, 300, 200, {3, 4}), blocks);
  EXPECT_EQ(ScaleBlock(blocks, 300, 200, {3, 3}), std::nullopt);
  EXPECT_EQ(ScaleBlock(blocks, 300, 200, {2, 4}), std::nullopt);
  for (const Shape& one : {Shape{}, Shape{1}, Shape{1, 1}}) {
    EXPECT_EQ(ScaleBlock({}, 300, 200, one), (Fp8Scheme{300, 200}));
  }
  EXPECT_EQ(ScaleBlock({}, 300, 200, {300}), (Fp8Scheme{1, 200}));
  EXPECT_EQ(ScaleBlock({}, 300, 200, {300, 1}), (Fp8Scheme{1, 200}));
  EXPECT_EQ(ScaleBlock({}, 300, 200, {1, 200}), std::nullopt);
  EXPECT_EQ(ScaleBlock({}, 300, 200, {3, 4}), std::nullopt);
}

class Fp8Checkpoint : public testing::Test {
 protected:
  // Every product of the layer in codes of 1.0, with a scale of 0.5 for each row.
  void SetUp() override {
    config_ = Llama(Compressed(Channel()));
    const auto parsed = ParseModelConfig(config_.dump(), "config.json");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    for (const Role role : Roles(*parsed)) {
      const Shape shape = ExpectedShape(*parsed, role);
      const std::string name = TensorName(*parsed, role, 0);
      TestTensor& tensor = tensors_.emplace_back();
      tensor = {name, {shape.begin(), shape.end()}, "BF16"};
      if (!IsProduct(role)) continue;
      tensor.dtype = "F8_E4M3";
      tensor.bytes = std::string(shape[0] * shape[1], '\x38');
      std::string scales;
      for (int64_t row = 0; row < shape[0]; ++row) scales += std::string("\x00\x3f", 2);
      tensors_.push_back({name + "_scale", {shape[0], 1}, "BF16", scales});
    }
  }
  TestTensor& Named(const std::string& name) {
    for (TestTensor& tensor : tensors_) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return tensors_[0];
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    dir_.Write("config.json", config_.dump());
    dir_.Write("model.safetensors", Safetensors(tensors_));
    return Checkpoint::Open(dir_.path());
  }
  void ExpectRefused(const std::string& what) {
    const absl::Status status = Open().status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.path()));
  }

  const std::string down_ = "model.layers.0.mlp.down_proj.weight";
  TempDir dir_;
  json config_;
  std::vector<TestTensor> tensors_;
};

TEST_F(Fp8Checkpoint, GivesCodesWithTheirScales) {
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->config().weight_dtype, kernels::DType::kBF16);
  const auto down = (*opened)->Find(Role::kDown, 0);
  ASSERT_TRUE(down.ok()) << down.status();
  EXPECT_EQ(down->dtype, kernels::DType::kF8E4M3);
  EXPECT_EQ(down->bytes(), 64 * 96);
  EXPECT_EQ(down->scales.name, down_ + "_scale");
  EXPECT_EQ(down->scales.block, (Fp8Scheme{1, 96}));
  EXPECT_EQ((*opened)->ReadScales(*down).value(), std::vector<float>(64, 0.5f));
  EXPECT_EQ((*opened)->Find(Role::kLmHead)->dtype, kernels::DType::kBF16);
  EXPECT_FALSE((*opened)->config().fine_scales);
  // Embedding and head, four matrices of attention, three of the MLP, three norms.
  EXPECT_EQ((*opened)->NumParameters(), 2 * 10 * 64 + 4 * 64 * 64 + 3 * 64 * 96 + 3 * 64);
}

TEST_F(Fp8Checkpoint, OneScaleInF32MakesThemFine) {
  TestTensor& scale = Named(down_ + "_scale");
  const float value = 0.3f;
  scale = {down_ + "_scale", {}, "F32", std::string(reinterpret_cast<const char*>(&value), 4)};
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto down = (*opened)->Find(Role::kDown, 0);
  EXPECT_EQ(down->scales.block, (Fp8Scheme{64, 96}));
  EXPECT_THAT((*opened)->ReadScales(*down).value(), ElementsAre(0.3f));
  EXPECT_TRUE((*opened)->config().fine_scales);
}

TEST_F(Fp8Checkpoint, ScalesOfActivationsAndCachesAreLeftAlone) {
  tensors_.push_back({"model.layers.0.mlp.down_proj.input_scale", {1}, "F32"});
  tensors_.push_back({"model.layers.0.mlp.up_proj.activation_scale", {}, "BF16"});
  tensors_.push_back({"model.layers.0.self_attn.k_scale", {1}, "F32"});
  tensors_.push_back({"model.layers.0.self_attn.kv_scale", {1}, "F32"});
  EXPECT_TRUE(Open().ok()) << Open().status();
  tensors_.push_back({"model.layers.0.mlp.down_proj.weight_zero_point", {1}, "F32"});
  ExpectRefused("weight_zero_point");
}

TEST_F(Fp8Checkpoint, MatricesThatWereLeftOutAreBf16) {
  Named(down_) = {down_, {64, 96}, "BF16"};
  Named(down_ + "_scale").name = "model.layers.0.mlp.down_proj.input_scale";
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->Find(Role::kDown, 0)->dtype, kernels::DType::kBF16);
}

TEST_F(Fp8Checkpoint, FaultsAreNamed) {
  const std::vector<TestTensor> sound = tensors_;
  Named(down_ + "_scale").shape = {32, 2};
  ExpectRefused(down_ + "_scale of BF16 has shape [32, 2]");
  tensors_ = sound;
  Named(down_ + "_scale").name = "model.layers.0.mlp.down_proj.input_scale";
  ExpectRefused("neither " + down_ + "_scale_inv nor " + down_ + "_scale is there");
  tensors_ = sound;
  Named("lm_head.weight").dtype = "F8_E4M3";
  ExpectRefused("lm_head.weight has dtype F8_E4M3");
  tensors_ = sound;
  for (TestTensor& tensor : tensors_) {
    if (tensor.dtype == "BF16") tensor.dtype = "F16";
  }
  ExpectRefused("FP8 matrices are read beside BF16 alone");
  tensors_ = sound;
  config_.erase("quantization_config");
  ExpectRefused("quantization_config of FP8");
}

TEST_F(Fp8Checkpoint, AScaleThatIsNoneIsNamed) {
  // NaN, infinity, -1, 2^-91, 128.5 or so.
  for (const uint16_t bits : {0x7fc0, 0x7f80, 0xbf80, 0x1200, 0x4301}) {
    std::memcpy(&Named(down_ + "_scale").bytes[6], &bits, 2);
    const auto opened = Open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    const auto scales = (*opened)->ReadScales((*opened)->Find(Role::kDown, 0).value());
    EXPECT_THAT(std::string(scales.status().message()), HasSubstr("down_proj.weight_scale has "));
    EXPECT_THAT(std::string(scales.status().message()), HasSubstr("at element 3"));
  }
}

}  // namespace
}  // namespace phalanx::checkpoint
