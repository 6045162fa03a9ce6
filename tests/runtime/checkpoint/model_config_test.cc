#include "runtime/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "runtime/checkpoint/families.h"
#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// The keys without which no configuration is accepted.
json Minimal(const std::string& architecture, const std::string& model_type) {
  return json{{"architectures", {architecture}},
              {"model_type", model_type},
              {"hidden_size", 64},
              {"intermediate_size", 96},
              {"num_hidden_layers", 4},
              {"num_attention_heads", 32},
              {"vocab_size", 320}};
}
json Llama() { return Minimal("LlamaForCausalLM", "llama"); }
json Mistral() { return Minimal("MistralForCausalLM", "mistral"); }
json Qwen2() { return Minimal("Qwen2ForCausalLM", "qwen2"); }
json Qwen3() { return Minimal("Qwen3ForCausalLM", "qwen3"); }

json With(json config, const json& changes) {
  config.update(changes);
  return config;
}
json Without(json config, const std::string& key) {
  config.erase(key);
  return config;
}

ModelConfig Parsed(const json& config) {
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status() << " in " << config;
  return parsed.ok() ? *parsed : ModelConfig();
}

// Refused in one line that names the file and says `what`.
void ExpectRefused(const std::string& text, absl::StatusCode code, const std::string& what) {
  const auto parsed = ParseModelConfig(text, "config.json");
  EXPECT_EQ(parsed.status().code(), code) << text << "\n" << parsed.status();
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("config.json: "));
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(what));
  EXPECT_EQ(parsed.status().message().find('\n'), absl::string_view::npos);
}
void ExpectInvalid(const json& config, const std::string& what) {
  ExpectRefused(config.dump(), absl::StatusCode::kInvalidArgument, what);
}
void ExpectUnsupported(const json& config, const std::string& what) {
  ExpectRefused(config.dump(), absl::StatusCode::kUnimplemented, what);
}

TEST(ModelConfigTest, LlamaHasTheDefaultsOfLlamaConfig) {
  const ModelConfig config = Parsed(Llama());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 2);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_THAT(config.layer_windows, ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(config.rope, RopeParameters());
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(config.pad_token_id.has_value());
}

TEST(ModelConfigTest, MistralHasTheDefaultsOfMistralConfig) {
  const ModelConfig config = Parsed(Mistral());
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 2);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_THAT(config.layer_windows, ElementsAre(4096, 4096, 4096, 4096));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(config.qkv_bias);
}

TEST(ModelConfigTest, Qwen2HasTheDefaultsOfQwen2Config) {
  const ModelConfig config = Parsed(Qwen2());
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 2);
  EXPECT_EQ(config.max_position_embeddings, 32768);
  EXPECT_THAT(config.layer_windows, ElementsAre(0, 0, 0, 0));
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_FALSE(config.bos_token_id.has_value());
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(ModelConfigTest, Qwen3HasTheDefaultsOfQwen3Config) {
  const ModelConfig config = Parsed(Qwen3());
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.max_position_embeddings, 32768);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(ModelConfigTest, NullKvHeadsAndHeadDimAreDerivedFromTheHeads) {
  for (const json& base : {Llama(), Mistral(), Qwen2(), Qwen3()}) {
    const ModelConfig config =
        Parsed(With(base, {{"num_key_value_heads", nullptr}, {"head_dim", nullptr}}));
    EXPECT_EQ(config.num_kv_heads, 32);
    EXPECT_EQ(config.head_dim, 2);
  }
}

TEST(ModelConfigTest, ReadsTheKeysOfLlama32) {
  const json text = json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})");
  const ModelConfig config = Parsed(text);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.num_layers, 16);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.attention_scale(), 0.125f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.declared_dtype, "bfloat16");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
  const RopeParameters expected{.type = RopeType::kLlama3,
                                .theta = 500000.0,
                                .factor = 32.0,
                                .low_freq_factor = 1.0,
                                .high_freq_factor = 4.0,
                                .original_max_position_embeddings = 8192};
  EXPECT_EQ(config.rope, expected);
}

TEST(ModelConfigTest, OldAndNewSpellingsMeanTheSame) {
  const ModelConfig old_style =
      Parsed(With(Llama(), {{"rope_theta", 5e5},
                            {"torch_dtype", "float16"},
                            {"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}));
  const ModelConfig new_style = Parsed(With(
      Llama(),
      {{"dtype", "float16"},
       {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 500000}}}}));
  EXPECT_EQ(old_style.rope, new_style.rope);
  EXPECT_EQ(old_style.rope.theta, 5e5);
  EXPECT_EQ(old_style.declared_dtype, "float16");
  EXPECT_EQ(new_style.declared_dtype, "float16");
}

TEST(ModelConfigTest, YarnTakesAllItsNumbersAndItsDefaults) {
  json config = With(Llama(), {{"max_position_embeddings", 4096}});
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"finetuned", true}};
  ModelConfig parsed = Parsed(config);
  EXPECT_EQ(parsed.rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(parsed.rope.beta_fast, 32.0);
  EXPECT_EQ(parsed.rope.beta_slow, 1.0);
  EXPECT_TRUE(parsed.rope.truncate);
  EXPECT_FALSE(parsed.rope.attention_factor.has_value());
  config["rope_scaling"] = {{"rope_type", "yarn"},
                            {"factor", 8},
                            {"original_max_position_embeddings", 512},
                            {"attention_factor", 1.25},
                            {"beta_fast", 16},
                            {"beta_slow", 2},
                            {"mscale", 1.0},
                            {"mscale_all_dim", 0.5},
                            {"truncate", false}};
  parsed = Parsed(config);
  EXPECT_EQ(parsed.rope.factor, 8.0);
  EXPECT_EQ(parsed.rope.original_max_position_embeddings, 512);
  EXPECT_EQ(parsed.rope.attention_factor, 1.25);
  EXPECT_EQ(parsed.rope.beta_fast, 16.0);
  EXPECT_EQ(parsed.rope.beta_slow, 2.0);
  EXPECT_EQ(parsed.rope.mscale, 1.0);
  EXPECT_EQ(parsed.rope.mscale_all_dim, 0.5);
  EXPECT_FALSE(parsed.rope.truncate);
  // A null factor is the ratio of the lengths.
  config["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 512}};
  EXPECT_EQ(Parsed(config).rope.factor, 8.0);
}

TEST(ModelConfigTest, WindowsFollowTheFamilyRules) {
  EXPECT_THAT(Parsed(With(Mistral(), {{"sliding_window", nullptr}})).layer_windows,
              ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Parsed(With(Mistral(), {{"sliding_window", 16}})).layer_windows,
              ElementsAre(16, 16, 16, 16));
  const json qwen = With(
      Qwen2(), {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 3}});
  EXPECT_THAT(Parsed(qwen).layer_windows, ElementsAre(0, 0, 0, 16));
  EXPECT_THAT(Parsed(With(qwen, {{"use_sliding_window", false}})).layer_windows,
              ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Parsed(With(qwen, {{"max_window_layers", 28}})).layer_windows,
              ElementsAre(0, 0, 0, 0));
  const json types = {"sliding_attention", "full_attention", "full_attention", "sliding_attention"};
  EXPECT_THAT(Parsed(With(qwen, {{"layer_types", types}})).layer_windows,
              ElementsAre(16, 0, 0, 16));
}

TEST(ModelConfigTest, RefusesLayerTypesThatContradictOtherKeys) {
  const json full = {"full_attention", "full_attention", "full_attention", "full_attention"};
  const json mixed = {"sliding_attention", "full_attention", "full_attention", "full_attention"};
  EXPECT_THAT(Parsed(With(Llama(), {{"layer_types", full}})).layer_windows,
              ElementsAre(0, 0, 0, 0));
  ExpectInvalid(With(Llama(), {{"layer_types", mixed}}), "layer 0 sliding_attention");
  ExpectInvalid(With(Mistral(), {{"layer_types", mixed}}), "layer 1 full_attention");
  ExpectInvalid(With(Qwen2(), {{"layer_types", mixed}}), "no window");
  ExpectInvalid(With(Qwen2(), {{"layer_types", {"full_attention"}}}), "1 entries");
  ExpectUnsupported(With(Qwen3(), {{"layer_types", {"linear_attention"}}}), "linear_attention");
}

TEST(ModelConfigTest, BiasKeysApplyWhereTheFamilyReadsThem) {
  const ModelConfig llama = Parsed(With(Llama(), {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(llama.qkv_bias);
  EXPECT_TRUE(llama.o_bias);
  EXPECT_TRUE(llama.mlp_bias);
  const ModelConfig qwen3 = Parsed(With(Qwen3(), {{"attention_bias", true}}));
  EXPECT_TRUE(qwen3.qkv_bias);
  EXPECT_TRUE(qwen3.o_bias);
  ExpectUnsupported(With(Mistral(), {{"attention_bias", true}}), "\"attention_bias\" is true");
  ExpectUnsupported(With(Qwen3(), {{"mlp_bias", true}}), "\"mlp_bias\" is true");
  EXPECT_FALSE(Parsed(With(Mistral(), {{"attention_bias", false}})).qkv_bias);
}

TEST(ModelConfigTest, RefusesMissingShapeKeys) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size"}) {
    ExpectInvalid(Without(Llama(), key), std::string("key \"") + key + "\" is missing");
    ExpectInvalid(With(Llama(), {{key, nullptr}}), std::string("key \"") + key + "\" is missing");
  }
}

TEST(ModelConfigTest, RefusesValuesOfWrongTypeOrSize) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "vocab_size", "max_position_embeddings", "num_key_value_heads"}) {
    for (const json& bad : {json("64"), json(64.0), json(0), json(-1), json(true), json::array(),
                            json(int64_t{1} << 40), json(~uint64_t{0})}) {
      ExpectInvalid(With(Llama(), {{key, bad}}), std::string("key \"") + key + "\" is ");
    }
  }
  ExpectInvalid(With(Llama(), {{"rms_norm_eps", 0}}), "rms_norm_eps");
  ExpectInvalid(With(Llama(), {{"rms_norm_eps", "1e-5"}}), "rms_norm_eps");
  ExpectInvalid(With(Llama(), {{"rope_theta", -1}}), "rope_theta");
  ExpectInvalid(With(Llama(), {{"tie_word_embeddings", 1}}), "expected true or false");
  ExpectInvalid(With(Mistral(), {{"sliding_window", 0}}), "sliding_window");
  ExpectInvalid(With(Llama(), {{"architectures", "LlamaForCausalLM"}}), "a list of strings");
  ExpectInvalid(With(Llama(), {{"head_dim", 0}}), "head_dim");
  ExpectInvalid(With(Llama(), {{"head_dim", 1026}}), "head_dim");
  EXPECT_EQ(Parsed(With(Llama(), {{"head_dim", 1024}})).head_dim, 1024);
}

TEST(ModelConfigTest, RefusesHeadsThatDoNotDivide) {
  ExpectInvalid(With(Llama(), {{"num_attention_heads", 7}}),
                "hidden_size 64 is not a multiple of num_attention_heads 7");
  EXPECT_EQ(Parsed(With(Llama(), {{"num_attention_heads", 7}, {"head_dim", 8}})).q_size(), 56);
  ExpectInvalid(With(Llama(), {{"num_key_value_heads", 5}}),
                "num_attention_heads 32 is not a multiple of num_key_value_heads 5");
  ExpectInvalid(With(Llama(), {{"num_attention_heads", 64}}), "head_dim is 1");
  ExpectInvalid(With(Llama(), {{"head_dim", 3}}), "head_dim is 3, expected an even number");
}

TEST(ModelConfigTest, RefusesUnknownArchitecturesNamingTheKnown) {
  ExpectUnsupported(Minimal("GPT2LMHeadModel", "gpt2"), "LlamaForCausalLM, MistralForCausalLM");
  ExpectUnsupported(With(Llama(), {{"architectures", {"LlamaForCausalLM", "Qwen2ForCausalLM"}}}),
                    "(one of them)");
  ExpectUnsupported(Without(Minimal("x", "gpt2"), "architectures"), "\"gpt2\"");
  ExpectInvalid(Without(Without(Llama(), "architectures"), "model_type"), "are missing");
  ExpectInvalid(With(Llama(), {{"model_type", "qwen2"}}), "model_type \"llama\"");
  EXPECT_EQ(Parsed(Without(Llama(), "architectures")).architecture, "LlamaForCausalLM");
  EXPECT_EQ(Parsed(Without(Llama(), "model_type")).model_type, "llama");
}

TEST(ModelConfigTest, RefusesQuantizationByName) {
  ExpectUnsupported(
      With(Llama(), {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}}}),
      "quant_method \"gptq\"");
  EXPECT_EQ(Parsed(With(Llama(), {{"quantization_config", nullptr}})).hidden_size, 64);
}

TEST(ModelConfigTest, RefusesRopeTypesByName) {
  for (const char* type : {"dynamic", "longrope", "su", "mrope", "ntk", "proportional"}) {
    for (const char* key : {"type", "rope_type"}) {
      for (const char* section : {"rope_scaling", "rope_parameters"}) {
        ExpectUnsupported(With(Llama(), {{section, {{key, type}, {"factor", 2.0}}}}),
                          std::string("rope type \"") + type + "\" is not supported");
      }
    }
  }
  ExpectUnsupported(With(Llama(), {{"rope_scaling", {{"mrope_section", {1, 2}}}}}),
                    "mrope_section");
  ExpectUnsupported(
      With(Llama(), {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}}),
      "full_attention");
  ExpectUnsupported(With(Llama(), {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}}),
                    "partial_rotary_factor");
}

TEST(ModelConfigTest, RefusesRopeNumbersThatMakeNoSense) {
  const auto rope = [](const json& value) { return With(Llama(), {{"rope_scaling", value}}); };
  ExpectInvalid(rope("linear"), "expected an object");
  ExpectInvalid(rope({{"type", 3}}), "key \"type\" is 3");
  ExpectInvalid(rope({{"type", "linear"}}), "\"factor\" is missing");
  ExpectInvalid(rope({{"type", "linear"}, {"factor", 0}}), "\"factor\" is 0");
  ExpectInvalid(rope({{"type", "linear"}, {"factor", "2"}}), "\"factor\" is \"2\"");
  ExpectInvalid(rope({{"type", "yarn"}}), "\"factor\" is missing");
  ExpectInvalid(rope({{"type", "llama3"}, {"factor", 8}}), "\"low_freq_factor\" is missing");
  ExpectInvalid(rope({{"type", "llama3"},
                      {"factor", 8},
                      {"low_freq_factor", 4},
                      {"high_freq_factor", 4},
                      {"original_max_position_embeddings", 64}}),
                "high_freq_factor 4 is not above low_freq_factor 4");
  ExpectInvalid(rope({{"type", "linear"}, {"rope_type", "yarn"}, {"factor", 2}}), "must agree");
  ExpectInvalid(With(rope({{"type", "linear"}, {"factor", 2}}),
                     {{"rope_parameters", {{"rope_type", "default"}}}}),
                "are both there and differ");
  ExpectInvalid(With(Llama(), {{"rope_theta", 1e4}, {"rope_parameters", {{"rope_theta", 1e6}}}}),
                "must agree");
}

TEST(ModelConfigTest, RefusesKeysThatChangeTheArithmetic) {
  const std::vector<std::pair<const char*, json>> cases = {
      {"attention_multiplier", 0.015},  {"attention_multiplier", 1.0},
      {"logit_scale", 0.0625},          {"final_logit_softcapping", 30.0},
      {"attn_logit_softcapping", 50.0}, {"residual_multiplier", 0.22},
      {"residual_multiplier", 0},       {"embedding_multiplier", 12.0},
      {"partial_rotary_factor", 0.25},  {"use_mrope", true},
      {"sliding_window", 4096},         {"num_experts", 8},
      {"per_layer_config", {{"0", 1}}}, {"is_decoder", true},
      {"some_future_key", 1},           {"some_future_key", "on"}};
  for (const auto& [key, value] : cases) {
    ExpectUnsupported(With(Llama(), {{key, value}}), std::string("key \"") + key + "\" is ");
  }
  ExpectUnsupported(With(Llama(), {{"hidden_act", "gelu"}}), "hidden_act");
  // A key that is known isn't to be removed.
  ExpectUnsupported(With(Llama(), {{"partial_rotary_factor", 0.5}}),
                    "is 0.5, which changes the arithmetic and is not supported; 1, which");
}

TEST(ModelConfigTest, AcceptsKeysThatChangeNothing) {
  const json neutral = {{"logit_scale", 1.0},
                        {"residual_multiplier", 1},
                        {"use_mrope", false},
                        {"final_logit_softcapping", nullptr},
                        {"partial_rotary_factor", 1.0},
                        {"pruned_heads", json::object()},
                        {"tie_encoder_decoder", false},
                        {"torchscript", false},
                        {"some_future_key", nullptr},
                        {"pretraining_tp", 2},
                        {"id2label", {{"0", "LABEL_0"}}},
                        {"_name_or_path", "x/y"},
                        {"temperature", 0.6},
                        {"top_p", 0.9},
                        {"pad_token_id", -1},
                        {"transformers_version", "4.41.2"}};
  for (const json& base : {Llama(), Mistral(), Qwen2(), Qwen3()}) {
    EXPECT_EQ(Parsed(With(base, neutral)).hidden_size, 64);
  }
}

TEST(ModelConfigTest, RefusesWhatIsNoJsonObject) {
  const auto refused = [](const std::string& text, const std::string& what) {
    ExpectRefused(text, absl::StatusCode::kInvalidArgument, what);
  };
  refused("", "not valid JSON");
  refused("[]", "expected an object");
  refused("{\n  \"hidden_size\": ,\n}", "error at line 2, column");
  refused("{\"a\": NaN}", "not valid JSON");
  refused("{\"a\":1,\"a\":2}", "key \"a\" is there twice");
  refused("{\"x\":{\"a\":1,\"a\":2}}", "key \"a\" is there twice");
  refused("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}",
          "nested deeper than");
  refused(std::string("{}\0", 3), "not valid JSON");
  refused("{\"\xc3\x28\":1}", "not valid JSON");
}

TEST(ModelConfigTest, TokenIdsMustLieInTheVocabulary) {
  EXPECT_THAT(Parsed(With(Llama(), {{"eos_token_id", {7, 5, 7}}})).eos_token_ids,
              ElementsAre(5, 7));
  EXPECT_TRUE(Parsed(With(Llama(), {{"eos_token_id", nullptr}})).eos_token_ids.empty());
  EXPECT_FALSE(Parsed(With(Llama(), {{"bos_token_id", nullptr}})).bos_token_id.has_value());
  ExpectInvalid(With(Llama(), {{"eos_token_id", 320}}), "below vocab_size 320");
  ExpectInvalid(With(Llama(), {{"eos_token_id", {1, 1u << 31}}}), "eos_token_id");
  ExpectInvalid(With(Llama(), {{"eos_token_id", "</s>"}}), "eos_token_id");
  ExpectInvalid(With(Llama(), {{"eos_token_id", ~uint64_t{0}}}), "eos_token_id");
  ExpectInvalid(With(Llama(), {{"bos_token_id", 320}}), "below vocab_size 320");
}

TEST(GenerationConfigTest, OverridesTokenIdsAndGivesDefaults) {
  ModelConfig config = Parsed(Llama());
  ASSERT_TRUE(ApplyGenerationConfig(
                  R"({"eos_token_id": [9, 3], "pad_token_id": 4, "do_sample": true,
                      "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05,
                      "min_p": 0.1, "max_new_tokens": 77, "num_beams": 4, "num_return_sequences": 1,
                      "suppress_tokens": [1], "transformers_version": "4.41.2",
                      "_from_model_config": true})",
                  "generation_config.json", &config)
                  .ok());
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(3, 9));
  EXPECT_EQ(config.pad_token_id, 4);
  EXPECT_EQ(config.generation.do_sample, true);
  EXPECT_EQ(config.generation.temperature, 0.6);
  EXPECT_EQ(config.generation.top_p, 0.95);
  EXPECT_EQ(config.generation.top_k, 20);
  EXPECT_EQ(config.generation.repetition_penalty, 1.05);
  EXPECT_EQ(config.generation.min_p, 0.1);
  EXPECT_EQ(config.generation.max_new_tokens, 77);
  EXPECT_THAT(config.generation.ignored_keys, ElementsAre("num_beams", "suppress_tokens"));
}

TEST(GenerationConfigTest, RefusesBadValuesNamingTheFile) {
  for (const char* text : {"{\"eos_token_id\": 320}", "{\"temperature\": -1}", "{\"top_p\": \"x\"}",
                           "{\"top_p\": 0}", "[]"}) {
    ModelConfig config = Parsed(Llama());
    const absl::Status status = ApplyGenerationConfig(text, "generation_config.json", &config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("generation_config.json: "));
  }
}

TEST(FamiliesTest, EveryRoleHasANameAndAShape) {
  for (const FamilySpec& family : Families()) {
    EXPECT_EQ(FamilyByArchitecture(family.architecture), &family);
    EXPECT_EQ(FamilyByModelType(family.model_type), &family);
    json text = Minimal(std::string(family.architecture), std::string(family.model_type));
    if (family.moe != nullptr) text[std::string(family.moe->experts_key)] = 16;
    if (family.moe != nullptr) text[std::string(family.moe->width_key)] = 48;
    if (family.moe != nullptr && family.moe->shared_expert) {
      text["shared_expert_intermediate_size"] = 80;
    }
    const ModelConfig config = Parsed(text);
    EXPECT_EQ(config.num_experts > 0, family.moe != nullptr);
    for (const Role role : Roles(config)) {
      EXPECT_FALSE(TensorName(config, role, 3).empty());
      const Shape shape = ExpectedShape(config, role);
      EXPECT_EQ(shape.size(), IsVector(role) ? 1u : 2u);
      for (const int64_t dim : shape) EXPECT_GT(dim, 0);
    }
  }
}

TEST(FamiliesTest, IgnoresOnlyComputedBuffersAndATiedHead) {
  ModelConfig config = Parsed(Llama());
  EXPECT_TRUE(IsIgnorable(config, "model.layers.11.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(IsIgnorable(config, "model.layers..self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(IsIgnorable(config, "model.layers.x.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(IsIgnorable(config, "model.layers.1.self_attn.q_proj.bias"));
  EXPECT_FALSE(IsIgnorable(config, "lm_head.weight"));
  config.tie_word_embeddings = true;
  EXPECT_TRUE(IsIgnorable(config, "lm_head.weight"));
}

}  // namespace
}  // namespace phalanx::checkpoint
