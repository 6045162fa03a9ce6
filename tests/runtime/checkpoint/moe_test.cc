// Families with experts: their keys, their tensors' names and shapes, both ways of storing experts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Base(const std::string& architecture, const std::string& model_type) {
  return {{"architectures", {architecture}}, {"model_type", model_type}, {"hidden_size", 8},
          {"intermediate_size", 12},         {"num_hidden_layers", 4},   {"num_attention_heads", 2},
          {"num_key_value_heads", 1},        {"vocab_size", 10}};
}
json With(json config, const json& changes) {
  config.update(changes);
  return config;
}
json Mixtral() {
  return With(Base("MixtralForCausalLM", "mixtral"),
              {{"num_local_experts", 3}, {"num_experts_per_tok", 2}});
}
json Qwen2Moe() {
  return With(Base("Qwen2MoeForCausalLM", "qwen2_moe"), {{"num_experts", 6},
                                                         {"num_experts_per_tok", 4},
                                                         {"moe_intermediate_size", 5},
                                                         {"shared_expert_intermediate_size", 7}});
}
json Qwen3Moe() {
  return With(Base("Qwen3MoeForCausalLM", "qwen3_moe"),
              {{"num_experts", 6}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 5}});
}

ModelConfig Parsed(const json& config) {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status() << " in " << config;
  return parsed.ok() ? *parsed : ModelConfig();
}

void ExpectRefused(const json& config, absl::StatusCode code, const std::string& what) {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_EQ(parsed.status().code(), code) << config << "\n" << parsed.status();
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("config.json: "));
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(what));
}
void ExpectInvalid(const json& config, const std::string& what) {
  ExpectRefused(config, absl::StatusCode::kInvalidArgument, what);
}
void ExpectUnsupported(const json& config, const std::string& what) {
  ExpectRefused(config, absl::StatusCode::kUnimplemented, what);
}

TEST(MoeConfigTest, MixtralHasExpertsInEveryLayerAndNormalisesThem) {
  const ModelConfig config = Parsed(Mixtral());
  EXPECT_EQ(config.num_experts, 3);
  EXPECT_EQ(config.experts_per_token, 2);
  EXPECT_EQ(config.expert_intermediate_size, 12);
  EXPECT_EQ(config.shared_intermediate_size, 0);
  EXPECT_FALSE(config.shared_expert_gate);
  EXPECT_TRUE(config.normalise_experts);
  EXPECT_THAT(config.moe_layers, ElementsAre(true, true, true, true));
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_THAT(config.layer_windows, ElementsAre(0, 0, 0, 0));
  // MixtralConfig's own defaults.
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_EQ(Parsed(With(Mixtral(), {{"sliding_window", 64}})).window(3), 64);
  EXPECT_EQ(Parsed(With(Mixtral(), {{"rope_theta", 1e4}})).rope.theta, 1e4);
}

TEST(MoeConfigTest, Qwen2MoeHasASharedExpertWithAGate) {
  const ModelConfig config = Parsed(Qwen2Moe());
  EXPECT_EQ(config.num_experts, 6);
  EXPECT_EQ(config.experts_per_token, 4);
  EXPECT_EQ(config.expert_intermediate_size, 5);
  EXPECT_EQ(config.shared_intermediate_size, 7);
  EXPECT_EQ(config.intermediate_size, 12);
  EXPECT_TRUE(config.shared_expert_gate);
  EXPECT_FALSE(config.normalise_experts);
  EXPECT_TRUE(Parsed(With(Qwen2Moe(), {{"norm_topk_prob", true}})).normalise_experts);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(Parsed(With(Qwen2Moe(), {{"qkv_bias", false}})).qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_FALSE(config.qk_norm);
}

TEST(MoeConfigTest, Qwen3MoeHasQueryAndKeyNormsAndNoSharedExpert) {
  const ModelConfig config = Parsed(Qwen3Moe());
  EXPECT_EQ(config.expert_intermediate_size, 5);
  EXPECT_EQ(config.shared_intermediate_size, 0);
  EXPECT_FALSE(config.shared_expert_gate);
  EXPECT_FALSE(config.normalise_experts);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.head_dim, 4);
  EXPECT_TRUE(Parsed(With(Qwen3Moe(), {{"attention_bias", true}})).o_bias);
  // Either of Transformers' names for the number of experts.
  json other = With(Qwen3Moe(), {{"num_local_experts", 6}});
  EXPECT_EQ(Parsed(other).num_experts, 6);
  other.erase("num_experts");
  EXPECT_EQ(Parsed(other).num_experts, 6);
}

TEST(MoeConfigTest, ExpertsPerTokenDefaultsToTheConfigClass) {
  json config = With(Mixtral(), {{"num_local_experts", 60}});
  config.erase("num_experts_per_tok");
  EXPECT_EQ(Parsed(config).experts_per_token, 2);
  config = With(Qwen2Moe(), {{"num_experts", 60}});
  config.erase("num_experts_per_tok");
  EXPECT_EQ(Parsed(config).experts_per_token, 4);
  config = With(Qwen3Moe(), {{"num_experts", 60}});
  config.erase("num_experts_per_tok");
  EXPECT_EQ(Parsed(config).experts_per_token, 8);
}

TEST(MoeConfigTest, SparseStepAndListedLayersSayWhereExpertsAre) {
  EXPECT_THAT(Parsed(With(Qwen3Moe(), {{"decoder_sparse_step", 2}})).moe_layers,
              ElementsAre(false, true, false, true));
  EXPECT_THAT(Parsed(With(Qwen3Moe(), {{"decoder_sparse_step", 3}})).moe_layers,
              ElementsAre(false, false, true, false));
  EXPECT_THAT(Parsed(With(Qwen2Moe(), {{"mlp_only_layers", {0, 2}}})).moe_layers,
              ElementsAre(false, true, false, true));
  EXPECT_THAT(
      Parsed(With(Qwen2Moe(), {{"decoder_sparse_step", 2}, {"mlp_only_layers", {3}}})).moe_layers,
      ElementsAre(false, true, false, false));
  EXPECT_THAT(Parsed(With(Qwen2Moe(), {{"mlp_only_layers", json::array()}})).moe_layers,
              ElementsAre(true, true, true, true));
  EXPECT_THAT(Parsed(With(Qwen2Moe(), {{"mlp_only_layers", nullptr}})).moe_layers,
              ElementsAre(true, true, true, true));
}

TEST(MoeConfigTest, AModelWhoseLayersAreAllDenseHasNoExperts) {
  for (const json& change :
       {json{{"mlp_only_layers", {0, 1, 2, 3}}}, json{{"decoder_sparse_step", 5}}}) {
    const ModelConfig config = Parsed(With(Qwen2Moe(), change));
    EXPECT_EQ(config.num_experts, 0);
    EXPECT_EQ(config.experts_per_token, 0);
    EXPECT_EQ(config.shared_intermediate_size, 0);
    EXPECT_FALSE(config.is_moe(1));
    EXPECT_TRUE(HasRole(config, Role::kGate, 1));
    EXPECT_FALSE(HasRole(config, Role::kRouter, 1));
  }
}

TEST(MoeConfigTest, RefusesNumbersOfExpertsThatMakeNoSense) {
  ExpectInvalid(With(Mixtral(), {{"num_local_experts", 0}}), "num_local_experts");
  ExpectInvalid(With(Mixtral(), {{"num_local_experts", 5000}}), "num_local_experts");
  ExpectInvalid(With(Mixtral(), {{"num_local_experts", "8"}}), "num_local_experts");
  ExpectInvalid(With(Qwen2Moe(), {{"num_experts", -1}}), "num_experts");
  ExpectInvalid(With(Mixtral(), {{"num_experts_per_tok", 0}}), "num_experts_per_tok");
  ExpectInvalid(With(Mixtral(), {{"num_experts_per_tok", 4}}),
                "num_experts_per_tok is 4, but there are 3 experts (num_local_experts)");
  ExpectInvalid(With(Qwen3Moe(), {{"num_local_experts", 7}}),
                "\"num_experts\" is 6 but \"num_local_experts\" is 7");
  ExpectInvalid(With(Qwen3Moe(), {{"moe_intermediate_size", 0}}), "moe_intermediate_size");
  ExpectInvalid(With(Qwen2Moe(), {{"shared_expert_intermediate_size", 0}}),
                "shared_expert_intermediate_size");
  for (const auto& [config, key] :
       {std::pair{Mixtral(), "num_local_experts"}, std::pair{Qwen3Moe(), "num_experts"},
        std::pair{Qwen3Moe(), "moe_intermediate_size"},
        std::pair{Qwen2Moe(), "shared_expert_intermediate_size"}}) {
    json without = config;
    without.erase(key);
    ExpectInvalid(without, std::string("key \"") + key + "\" is missing");
  }
}

TEST(MoeConfigTest, RefusesLayersThatAreNotThere) {
  for (const json& layers : {json{4}, json{-1}, json{"1"}, json{1.5}, json{18446744073709551615u},
                             json(3), json("all")}) {
    ExpectInvalid(With(Qwen3Moe(), {{"mlp_only_layers", layers}}),
                  "a list of layers from 0 to num_hidden_layers - 1 = 3");
  }
  ExpectInvalid(With(Qwen3Moe(), {{"decoder_sparse_step", 0}}), "decoder_sparse_step");
}

TEST(MoeConfigTest, RefusesKeysThatChangeTheArithmetic) {
  const std::vector<std::pair<const char*, json>> cases = {
      {"n_shared_experts", 1},
      {"routed_scaling_factor", 2.5},
      {"scoring_func", "sigmoid"},
      {"first_k_dense_replace", 1},
      {"n_group", 4},
      {"topk_group", 2},
      {"moe_layer_freq", 2},
      {"router_bias", true},
      {"capacity_factor", 1.25},
      {"shared_expert_scale", 0.5},
  };
  for (const auto& [key, value] : cases) {
    for (const json& base : {Mixtral(), Qwen2Moe(), Qwen3Moe()}) {
      ExpectUnsupported(With(base, {{key, value}}), std::string("key \"") + key + "\" is ");
    }
  }
  // Keys of one family that the other doesn't have.
  ExpectUnsupported(With(Mixtral(), {{"norm_topk_prob", true}}), "norm_topk_prob");
  ExpectUnsupported(With(Mixtral(), {{"mlp_only_layers", {1}}}), "mlp_only_layers");
  ExpectUnsupported(With(Qwen3Moe(), {{"shared_expert_intermediate_size", 8}}),
                    "shared_expert_intermediate_size");
  for (const json& base : {Qwen2Moe(), Qwen3Moe()}) {
    ExpectUnsupported(With(base, {{"use_sliding_window", true}, {"sliding_window", 64}}),
                      "use_sliding_window");
    ExpectInvalid(
        With(base, {{"layer_types",
                     {"full_attention", "sliding_attention", "full_attention", "full_attention"}}}),
        "layer 1 sliding_attention");
  }
}

TEST(MoeConfigTest, AcceptsKeysOfTrainingAndWindowsThatAreOff) {
  for (const json& base : {Mixtral(), Qwen2Moe(), Qwen3Moe()}) {
    Parsed(With(base, {{"output_router_logits", true},
                       {"router_aux_loss_coef", 0.02},
                       {"router_jitter_noise", 0.1}}));
  }
  for (const json& base : {Qwen2Moe(), Qwen3Moe()}) {
    EXPECT_EQ(Parsed(With(base, {{"use_sliding_window", false},
                                 {"sliding_window", 32768},
                                 {"max_window_layers", 2}}))
                  .window(3),
              0);
    Parsed(With(base, {{"sliding_window", 0}}));
    Parsed(With(base, {{"sliding_window", nullptr}}));
  }
}

// The configurations of Mixtral-8x22B, Qwen1.5-MoE-A2.7B and Qwen3-235B-A22B as published.
TEST(MoeConfigTest, ReadsPublishedConfigurations) {
  const ModelConfig mixtral = Parsed({{"architectures", {"MixtralForCausalLM"}},
                                      {"attention_dropout", 0.0},
                                      {"bos_token_id", 1},
                                      {"eos_token_id", 2},
                                      {"hidden_act", "silu"},
                                      {"hidden_size", 6144},
                                      {"initializer_range", 0.02},
                                      {"intermediate_size", 16384},
                                      {"max_position_embeddings", 65536},
                                      {"model_type", "mixtral"},
                                      {"num_attention_heads", 48},
                                      {"num_experts_per_tok", 2},
                                      {"num_hidden_layers", 56},
                                      {"num_key_value_heads", 8},
                                      {"num_local_experts", 8},
                                      {"output_router_logits", false},
                                      {"rms_norm_eps", 1e-05},
                                      {"rope_theta", 1000000},
                                      {"router_aux_loss_coef", 0.001},
                                      {"sliding_window", nullptr},
                                      {"tie_word_embeddings", false},
                                      {"torch_dtype", "bfloat16"},
                                      {"transformers_version", "4.38.0"},
                                      {"use_cache", true},
                                      {"vocab_size", 32000}});
  EXPECT_EQ(mixtral.num_experts, 8);
  EXPECT_EQ(mixtral.head_dim, 128);
  EXPECT_EQ(ExpectedShape(mixtral, Role::kExpertDown), (Shape{6144, 16384}));
  const ModelConfig qwen2 = Parsed({{"architectures", {"Qwen2MoeForCausalLM"}},
                                    {"attention_dropout", 0.0},
                                    {"bos_token_id", 151643},
                                    {"decoder_sparse_step", 1},
                                    {"eos_token_id", 151643},
                                    {"hidden_act", "silu"},
                                    {"hidden_size", 2048},
                                    {"initializer_range", 0.02},
                                    {"intermediate_size", 5632},
                                    {"max_position_embeddings", 8192},
                                    {"max_window_layers", 21},
                                    {"model_type", "qwen2_moe"},
                                    {"moe_intermediate_size", 1408},
                                    {"norm_topk_prob", false},
                                    {"num_attention_heads", 16},
                                    {"num_experts", 60},
                                    {"num_experts_per_tok", 4},
                                    {"num_hidden_layers", 24},
                                    {"num_key_value_heads", 16},
                                    {"output_router_logits", false},
                                    {"rms_norm_eps", 1e-06},
                                    {"rope_theta", 1000000.0},
                                    {"router_aux_loss_coef", 0.001},
                                    {"shared_expert_intermediate_size", 5632},
                                    {"sliding_window", 32768},
                                    {"tie_word_embeddings", false},
                                    {"torch_dtype", "bfloat16"},
                                    {"transformers_version", "4.39.0.dev0"},
                                    {"use_cache", true},
                                    {"use_sliding_window", false},
                                    {"vocab_size", 151936}});
  EXPECT_EQ(qwen2.num_experts, 60);
  EXPECT_EQ(qwen2.shared_intermediate_size, 5632);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_EQ(qwen2.window(23), 0);
  const ModelConfig qwen3 = Parsed({{"architectures", {"Qwen3MoeForCausalLM"}},
                                    {"attention_bias", false},
                                    {"attention_dropout", 0.0},
                                    {"bos_token_id", 151643},
                                    {"decoder_sparse_step", 1},
                                    {"eos_token_id", 151645},
                                    {"head_dim", 128},
                                    {"hidden_act", "silu"},
                                    {"hidden_size", 4096},
                                    {"initializer_range", 0.02},
                                    {"intermediate_size", 12288},
                                    {"max_position_embeddings", 40960},
                                    {"max_window_layers", 94},
                                    {"mlp_only_layers", json::array()},
                                    {"model_type", "qwen3_moe"},
                                    {"moe_intermediate_size", 1536},
                                    {"norm_topk_prob", true},
                                    {"num_attention_heads", 64},
                                    {"num_experts", 128},
                                    {"num_experts_per_tok", 8},
                                    {"num_hidden_layers", 94},
                                    {"num_key_value_heads", 4},
                                    {"output_router_logits", false},
                                    {"rms_norm_eps", 1e-06},
                                    {"rope_scaling", nullptr},
                                    {"rope_theta", 1000000.0},
                                    {"router_aux_loss_coef", 0.001},
                                    {"sliding_window", nullptr},
                                    {"tie_word_embeddings", false},
                                    {"torch_dtype", "bfloat16"},
                                    {"transformers_version", "4.51.0"},
                                    {"use_cache", true},
                                    {"use_sliding_window", false},
                                    {"vocab_size", 151936}});
  EXPECT_EQ(qwen3.num_experts, 128);
  EXPECT_EQ(qwen3.experts_per_token, 8);
  EXPECT_TRUE(qwen3.normalise_experts);
  EXPECT_EQ(ExpectedShape(qwen3, Role::kExpertGate), (Shape{1536, 4096}));
  EXPECT_EQ(std::count(qwen3.moe_layers.begin(), qwen3.moe_layers.end(), true), 94);
}

TEST(MoeRolesTest, NamesFollowTheFamily) {
  const ModelConfig mixtral = Parsed(Mixtral());
  EXPECT_EQ(TensorName(mixtral, Role::kRouter, 12), "model.layers.12.block_sparse_moe.gate.weight");
  EXPECT_EQ(TensorName(mixtral, Role::kExpertGate, 1, 20),
            "model.layers.1.block_sparse_moe.experts.20.w1.weight");
  EXPECT_EQ(TensorName(mixtral, Role::kExpertUp, 1, 20),
            "model.layers.1.block_sparse_moe.experts.20.w3.weight");
  EXPECT_EQ(TensorName(mixtral, Role::kExpertDown, 1, 20),
            "model.layers.1.block_sparse_moe.experts.20.w2.weight");
  EXPECT_EQ(TensorName(mixtral, Role::kSharedGate, 1), "");
  const ModelConfig qwen = Parsed(Qwen2Moe());
  EXPECT_EQ(TensorName(qwen, Role::kRouter, 3), "model.layers.3.mlp.gate.weight");
  EXPECT_EQ(TensorName(qwen, Role::kExpertDown, 3, 5),
            "model.layers.3.mlp.experts.5.down_proj.weight");
  EXPECT_EQ(TensorName(qwen, Role::kSharedUp, 3),
            "model.layers.3.mlp.shared_expert.up_proj.weight");
  EXPECT_EQ(TensorName(qwen, Role::kSharedRouter, 3),
            "model.layers.3.mlp.shared_expert_gate.weight");
  EXPECT_EQ(TensorName(qwen, Role::kGate, 3), "model.layers.3.mlp.gate_proj.weight");
}

TEST(MoeRolesTest, ALayerHasExpertsOrADenseMlp) {
  const ModelConfig config = Parsed(With(Qwen2Moe(), {{"mlp_only_layers", {1}}}));
  for (const Role role : {Role::kGate, Role::kUp, Role::kDown}) {
    EXPECT_TRUE(HasRole(config, role, 1));
    EXPECT_FALSE(HasRole(config, role, 2));
  }
  for (const Role role :
       {Role::kRouter, Role::kExpertGate, Role::kExpertUp, Role::kExpertDown, Role::kSharedGate,
        Role::kSharedUp, Role::kSharedDown, Role::kSharedRouter}) {
    EXPECT_FALSE(HasRole(config, role, 1));
    EXPECT_TRUE(HasRole(config, role, 2));
  }
  EXPECT_EQ(ExpectedShape(config, Role::kGate), (Shape{12, 8}));
  EXPECT_EQ(ExpectedShape(config, Role::kRouter), (Shape{6, 8}));
  EXPECT_EQ(ExpectedShape(config, Role::kExpertUp), (Shape{5, 8}));
  EXPECT_EQ(ExpectedShape(config, Role::kExpertDown), (Shape{8, 5}));
  EXPECT_EQ(ExpectedShape(config, Role::kSharedDown), (Shape{8, 7}));
  EXPECT_EQ(ExpectedShape(config, Role::kSharedRouter), (Shape{1, 8}));
  EXPECT_FALSE(HasRole(Parsed(Qwen3Moe()), Role::kSharedGate, 2));
  EXPECT_FALSE(HasRole(Parsed(Mixtral()), Role::kGate, 0));
}

// The tensors of a configuration with their elements numbered from a number of the tensor's own.
std::vector<TestTensor> TensorsOf(const json& text) {
  const ModelConfig config = Parsed(text);
  std::vector<TestTensor> tensors;
  for (const Role role : Roles(config)) {
    const Shape shape = ExpectedShape(config, role);
    for (int64_t layer = 0; layer < (IsPerLayer(role) ? config.num_layers : 1); ++layer) {
      if (!HasRole(config, role, layer)) continue;
      for (int64_t e = 0; e < (IsPerExpert(role) ? config.num_experts : 1); ++e) {
        TestTensor tensor{TensorName(config, role, layer, e), {shape.begin(), shape.end()}};
        std::vector<float> values(tensor.size() / 4);
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<float>(1000 * tensors.size() + i);
        }
        tensor.bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
        tensors.push_back(std::move(tensor));
      }
    }
  }
  return tensors;
}

const std::string& BytesOf(const std::vector<TestTensor>& tensors, const std::string& name) {
  return std::find_if(tensors.begin(), tensors.end(),
                      [&](const TestTensor& t) { return t.name == name; })
      ->bytes;
}

void Remove(std::vector<TestTensor>& tensors, const std::string& name) {
  const auto end = std::remove_if(tensors.begin(), tensors.end(),
                                  [&](const TestTensor& t) { return t.name == name; });
  EXPECT_NE(end, tensors.end()) << name;
  tensors.erase(end, tensors.end());
}

// As save_pretrained(save_original_format=False) of Transformers 5 does: the experts of a layer in
// two tensors, and Mixtral's router under its new name.
std::vector<TestTensor> Fused(const json& text) {
  const ModelConfig config = Parsed(text);
  std::vector<TestTensor> tensors = TensorsOf(text);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.is_moe(layer)) continue;
    const std::string prefix = absl::StrCat("model.layers.", layer, ".mlp.");
    const std::string router = TensorName(config, Role::kRouter, layer);
    for (TestTensor& tensor : tensors) {
      if (tensor.name == router) tensor.name = prefix + "gate.weight";
    }
    const int64_t experts = config.num_experts, width = config.expert_intermediate_size;
    TestTensor gate_up{prefix + "experts.gate_up_proj", {experts, 2 * width, config.hidden_size}};
    TestTensor down{prefix + "experts.down_proj", {experts, config.hidden_size, width}};
    for (int64_t e = 0; e < experts; ++e) {
      for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
        const std::string name = TensorName(config, role, layer, e);
        (role == Role::kExpertDown ? down : gate_up).bytes += BytesOf(tensors, name);
        Remove(tensors, name);
      }
    }
    tensors.push_back(gate_up);
    tensors.push_back(down);
  }
  return tensors;
}

class MoeCheckpointTest : public testing::Test {
 protected:
  void Write(const json& config, const std::vector<TestTensor>& tensors) {
    dir_.Write("config.json", config.dump());
    dir_.Write("model.safetensors", Safetensors(tensors));
  }
  void ExpectInvalid(const std::string& what) {
    const auto opened = Checkpoint::Open(dir_.path());
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(what));
  }
  // Every role's tensor, by role, is what TensorsOf made under its usual name.
  void ExpectEveryTensor(const json& text) {
    const auto opened = Checkpoint::Open(dir_.path());
    ASSERT_TRUE(opened.ok()) << opened.status();
    const ModelConfig& config = (*opened)->config();
    const std::vector<TestTensor> tensors = TensorsOf(text);
    size_t found = 0;
    for (const Role role : Roles(config)) {
      for (int64_t layer = 0; layer < (IsPerLayer(role) ? config.num_layers : 1); ++layer) {
        EXPECT_EQ((*opened)->Has(role, layer), HasRole(config, role, layer));
        if (!(*opened)->Has(role, layer)) continue;
        for (int64_t e = 0; e < (IsPerExpert(role) ? config.num_experts : 1); ++e, ++found) {
          const auto tensor = (*opened)->Find(role, layer, e);
          ASSERT_TRUE(tensor.ok()) << tensor.status();
          EXPECT_EQ(tensor->shape, ExpectedShape(config, role));
          const std::string& bytes = BytesOf(tensors, TensorName(config, role, layer, e));
          ASSERT_EQ(tensor->bytes(), static_cast<int64_t>(bytes.size()));
          EXPECT_EQ(std::memcmp(tensor->data, bytes.data(), bytes.size()), 0)
              << TensorName(config, role, layer, e);
        }
      }
    }
    EXPECT_EQ(found, tensors.size());
  }
  TempDir dir_;
};

TEST_F(MoeCheckpointTest, FindsEveryExpertByRoleLayerAndNumber) {
  for (const json& config :
       {Mixtral(), Qwen2Moe(), Qwen3Moe(), With(Qwen2Moe(), {{"mlp_only_layers", {0, 3}}}),
        With(Qwen3Moe(), {{"decoder_sparse_step", 2}})}) {
    Write(config, TensorsOf(config));
    ExpectEveryTensor(config);
  }
}

TEST_F(MoeCheckpointTest, FindsExpertsThatAreStoredTogether) {
  for (const json& config :
       {Mixtral(), Qwen2Moe(), Qwen3Moe(), With(Qwen3Moe(), {{"mlp_only_layers", {2}}})}) {
    Write(config, Fused(config));
    ExpectEveryTensor(config);
  }
}

TEST_F(MoeCheckpointTest, ChecksEveryExpertOfEveryLayer) {
  for (const json& config : {Mixtral(), Qwen2Moe(), Qwen3Moe()}) {
    const ModelConfig parsed = Parsed(config);
    for (const Role role : {Role::kRouter, Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
      const std::string name = TensorName(parsed, role, 3, parsed.num_experts - 1);
      std::vector<TestTensor> tensors = TensorsOf(config);
      Remove(tensors, name);
      Write(config, tensors);
      ExpectInvalid(absl::StrCat("config.json says num_hidden_layers 4 with ", parsed.num_experts,
                                 " experts, but tensor ", name, " is missing"));
      tensors.push_back({name, {5, 9}});
      Write(config, tensors);
      ExpectInvalid(name + " has shape [5, 9], but config.json asks for [");
    }
  }
}

TEST_F(MoeCheckpointTest, RefusesConfigsThatContradictTheTensors) {
  const std::vector<std::pair<json, const char*>> cases = {
      {{{"num_experts", 5}}, "mlp.gate.weight has shape [6, 8], but config.json asks for [5, 8]"},
      {{{"num_experts", 7}}, "mlp.gate.weight has shape [6, 8], but config.json asks for [7, 8]"},
      {{{"moe_intermediate_size", 6}}, "experts.0.gate_proj.weight has shape [5, 8]"},
      {{{"shared_expert_intermediate_size", 8}}, "shared_expert.gate_proj.weight has shape [7, 8]"},
      {{{"mlp_only_layers", {2}}}, "model.layers.2.mlp.gate_proj.weight is missing"},
      {{{"qkv_bias", false}}, "self_attn.k_proj.bias\""},
  };
  for (const auto& [change, what] : cases) {
    Write(With(Qwen2Moe(), change), TensorsOf(Qwen2Moe()));
    ExpectInvalid(what);
  }
  // Dense tensors where there should be experts, and experts beyond the last.
  std::vector<TestTensor> tensors = TensorsOf(Qwen3Moe());
  tensors.push_back({"model.layers.1.mlp.up_proj.weight", {12, 8}});
  Write(Qwen3Moe(), tensors);
  ExpectInvalid("has tensor \"model.layers.1.mlp.up_proj.weight\"");
  tensors.back() = {"model.layers.1.mlp.experts.6.up_proj.weight", {5, 8}};
  Write(Qwen3Moe(), tensors);
  ExpectInvalid("has tensor \"model.layers.1.mlp.experts.6.up_proj.weight\"");
  tensors.back() = {"model.layers.1.mlp.experts.down_proj", {6, 8, 5}};
  Write(Qwen3Moe(), tensors);
  ExpectInvalid("has tensor \"model.layers.1.mlp.experts.down_proj\"");
}

TEST_F(MoeCheckpointTest, RefusesFusedTensorsOfAnotherShape) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{6, 5, 8}, {6, 8, 10}, {5, 10, 8}, {60, 8}, {6, 10, 8, 1}}) {
    std::vector<TestTensor> tensors = Fused(Qwen3Moe());
    Remove(tensors, "model.layers.2.mlp.experts.gate_up_proj");
    tensors.push_back({"model.layers.2.mlp.experts.gate_up_proj", shape});
    Write(Qwen3Moe(), tensors);
    ExpectInvalid("config.json asks for [6, 10, 8]");
  }
}

}  // namespace
}  // namespace phalanx::checkpoint
