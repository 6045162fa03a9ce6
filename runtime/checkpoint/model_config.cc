#include "runtime/checkpoint/model_config.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/kernels.h"
#include "runtime/checkpoint/config_reader.h"
#include "runtime/checkpoint/families.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/known_keys.h"
#include "runtime/checkpoint/quantization.h"
#include "runtime/checkpoint/rope_config.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

// Bounds far beyond any model, so that products of two of them cannot overflow 64 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 65536;
using kernels::kMaxHeadDim;
constexpr int64_t kMaxVocab = int64_t{1} << 28;

std::string KnownArchitectures() {
  return absl::StrJoin(Families(), ", ", [](std::string* out, const FamilySpec& family) {
    absl::StrAppend(out, family.architecture);
  });
}

const FamilySpec* ReadFamily(ConfigReader& reader) {
  const auto architectures = reader.Strings("architectures");
  const auto model_type = reader.String("model_type");
  if (!reader.ok()) return nullptr;
  const FamilySpec* family = nullptr;
  if (architectures.has_value() && !architectures->empty()) {
    for (const std::string& architecture : *architectures) {
      const FamilySpec* found = FamilyByArchitecture(architecture);
      if (found == nullptr || (family != nullptr && found != family)) {
        reader.Fail(absl::UnimplementedError(
            absl::StrCat(reader.where(), ": key \"architectures\" is ",
                         PrintableJson(reader.object().at("architectures")), ", supported are ",
                         KnownArchitectures(), found == nullptr ? "" : " (one of them)")));
        return nullptr;
      }
      family = found;
    }
    if (model_type.has_value() && *model_type != family->model_type) {
      reader.Fail(absl::InvalidArgumentError(absl::StrCat(
          reader.where(), ": key \"model_type\" is \"", Printable(*model_type), "\", but \"",
          family->architecture, "\" in architectures is model_type \"", family->model_type, "\"")));
      return nullptr;
    }
    return family;
  }
  if (!model_type.has_value()) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat(reader.where(),
                     ": keys \"architectures\" and \"model_type\" are missing, "
                     "expected one of the architectures ",
                     KnownArchitectures())));
    return nullptr;
  }
  family = FamilyByModelType(*model_type);
  if (family == nullptr) {
    reader.Fail(absl::UnimplementedError(
        absl::StrCat(reader.where(), ": key \"model_type\" is \"", Printable(*model_type),
                     "\", supported are the architectures ", KnownArchitectures())));
  }
  return family;
}

// ---------------------------------------------------------------------------------------------
// Sliding windows

// Checks `layer_types` and tells which layers it calls sliding; empty if the key is absent.
std::vector<bool> ReadLayerTypes(ConfigReader& reader, int64_t num_layers) {
  const auto types = reader.Strings("layer_types");
  if (!types.has_value()) return {};
  std::vector<bool> sliding;
  for (const std::string& type : *types) {
    if (type != "full_attention" && type != "sliding_attention") {
      reader.Fail(absl::UnimplementedError(
          absl::StrCat(reader.where(), ": layer_types has \"", Printable(type),
                       "\"; supported are full_attention and sliding_attention")));
      return {};
    }
    sliding.push_back(type == "sliding_attention");
  }
  if (static_cast<int64_t>(sliding.size()) != num_layers) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat(reader.where(), ": layer_types has ", sliding.size(),
                     " entries, but num_hidden_layers is ", num_layers)));
    return {};
  }
  return sliding;
}

void ReadWindows(ConfigReader& reader, ModelConfig* config) {
  config->layer_windows.assign(config->num_layers, 0);
  const FamilySpec& family = *config->family;
  const std::vector<bool> types = ReadLayerTypes(reader, config->num_layers);
  if (family.window == WindowRule::kOff) {
    // Read, so that they count as known; Transformers 5 saves a window of 0 where it is off.
    reader.Int("sliding_window", 0, kMaxPositions);
    reader.Int("max_window_layers", 0, kMaxPositions);
    if (reader.Bool("use_sliding_window").value_or(false)) {
      reader.Fail(absl::UnimplementedError(absl::StrCat(
          reader.where(), ": key \"use_sliding_window\" is true; for ", family.architecture,
          " only false is supported, because versions of Transformers differ in which layers it "
          "means")));
    }
  } else if (family.window != WindowRule::kNone) {
    int64_t window = family.default_sliding_window;
    if (reader.HasOrNull("sliding_window")) {
      window = reader.Int("sliding_window", 1, kMaxPositions).value_or(0);
    }
    int64_t first_layer = 0;
    if (family.window == WindowRule::kFromWindowLayer) {
      first_layer = reader.Int("max_window_layers", 0, kMaxPositions).value_or(28);
      if (!reader.Bool("use_sliding_window").value_or(false)) window = 0;
      if (!types.empty()) {
        for (int64_t layer = 0; layer < config->num_layers; ++layer) {
          if (types[layer]) config->layer_windows[layer] = window;
        }
      }
    }
    if (types.empty() || family.window == WindowRule::kEveryLayer) {
      for (int64_t layer = first_layer; layer < config->num_layers; ++layer) {
        config->layer_windows[layer] = window;
      }
    }
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    const bool has_window = config->layer_windows[layer] != 0;
    if (types[layer] == has_window) continue;
    reader.Fail(absl::InvalidArgumentError(absl::StrCat(
        reader.where(), ": layer_types calls layer ", layer,
        types[layer] ? " sliding_attention" : " full_attention", ", but the other keys give it ",
        has_window ? absl::StrCat("a window of ", config->layer_windows[layer]) : "no window")));
    return;
  }
}

// ---------------------------------------------------------------------------------------------
// Token ids

// Null and negative ids mean "none".
std::optional<int64_t> ReadTokenId(ConfigReader& reader, absl::string_view key,
                                   int64_t vocab_size) {
  const auto id = reader.Int(key, -kMaxVocab, kMaxVocab);
  if (!id.has_value() || *id < 0) return std::nullopt;
  if (*id >= vocab_size) {
    reader.Fail(key, *reader.Get(key), absl::StrCat("a token id below vocab_size ", vocab_size));
    return std::nullopt;
  }
  return id;
}

std::vector<int64_t> ReadTokenIds(ConfigReader& reader, absl::string_view key, int64_t vocab_size) {
  const json* value = reader.Get(key);
  std::vector<int64_t> ids;
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& element : list) {
    if (!element.is_number_integer() || element.get<int64_t>() >= vocab_size ||
        (element.is_number_unsigned() &&
         element.get<uint64_t>() >= static_cast<uint64_t>(vocab_size))) {
      reader.Fail(key, *value,
                  absl::StrCat("a token id below vocab_size ", vocab_size, " or a list of them"));
      return {};
    }
    if (element.get<int64_t>() >= 0) ids.push_back(element.get<int64_t>());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void ReadTokens(ConfigReader& reader, ModelConfig* config) {
  const FamilySpec& family = *config->family;
  config->bos_token_id = ReadTokenId(reader, "bos_token_id", config->vocab_size);
  config->eos_token_ids = ReadTokenIds(reader, "eos_token_id", config->vocab_size);
  // An unused default beyond a small vocabulary is no fault of the file's.
  if (!reader.HasOrNull("bos_token_id") && family.default_bos_token_id >= 0 &&
      family.default_bos_token_id < config->vocab_size) {
    config->bos_token_id = family.default_bos_token_id;
  }
  if (!reader.HasOrNull("eos_token_id") && family.default_eos_token_id >= 0 &&
      family.default_eos_token_id < config->vocab_size) {
    config->eos_token_ids = {family.default_eos_token_id};
  }
  // Only ever used to pad batches, which nothing here does: an id out of range is no fault.
  const auto pad = reader.Int("pad_token_id", -kMaxVocab, kMaxVocab);
  if (pad.has_value() && *pad >= 0 && *pad < config->vocab_size) config->pad_token_id = pad;
}

bool HasBias(BiasRule rule, bool attention_bias, bool qkv_bias, bool mlp_bias) {
  switch (rule) {
    case BiasRule::kNever:
      return false;
    case BiasRule::kAlways:
      return true;
    case BiasRule::kByAttentionBias:
      return attention_bias;
    case BiasRule::kByQkvBias:
      return qkv_bias;
    case BiasRule::kByMlpBias:
      return mlp_bias;
  }
  return false;
}

void ReadBiases(ConfigReader& reader, ModelConfig* config) {
  const FamilySpec& family = *config->family;
  const auto reads = [&](BiasRule rule) {
    return family.qkv_bias == rule || family.o_bias == rule || family.mlp_bias == rule;
  };
  const bool attention_bias =
      reads(BiasRule::kByAttentionBias) && reader.Bool("attention_bias").value_or(false);
  const bool qkv_bias = reads(BiasRule::kByQkvBias) && reader.Bool("qkv_bias").value_or(true);
  const bool mlp_bias = reads(BiasRule::kByMlpBias) && reader.Bool("mlp_bias").value_or(false);
  config->qkv_bias = HasBias(family.qkv_bias, attention_bias, qkv_bias, mlp_bias);
  config->o_bias = HasBias(family.o_bias, attention_bias, qkv_bias, mlp_bias);
  config->mlp_bias = HasBias(family.mlp_bias, attention_bias, qkv_bias, mlp_bias);
  config->qk_norm = family.qk_norm;
}

void ReadHeads(ConfigReader& reader, ModelConfig* config) {
  const FamilySpec& family = *config->family;
  config->num_heads = reader.RequiredInt("num_attention_heads", 1, kMaxHeads);
  // A null means num_attention_heads in every family, an absent key means the class's default.
  const int64_t default_kv_heads =
      reader.HasOrNull("num_key_value_heads") || family.default_num_kv_heads == 0
          ? config->num_heads
          : family.default_num_kv_heads;
  const auto num_kv_heads = reader.Int("num_key_value_heads", 1, kMaxHeads);
  config->num_kv_heads = num_kv_heads.value_or(default_kv_heads);
  if (!num_kv_heads.has_value()) {
    config->assumed.push_back(absl::StrCat("num_key_value_heads ", config->num_kv_heads));
  }
  if (reader.ok() && config->num_heads % config->num_kv_heads != 0) {
    reader.Fail(absl::InvalidArgumentError(absl::StrCat(
        reader.where(), ": num_attention_heads ", config->num_heads,
        " is not a multiple of num_key_value_heads ", config->num_kv_heads,
        num_kv_heads.has_value() ? "" : ", which the family has where the file doesn't say it")));
  }
  const auto head_dim = reader.Int("head_dim", 2, kMaxHeadDim);
  if (head_dim.has_value()) {
    config->head_dim = *head_dim;
  } else if (family.default_head_dim != 0 && !reader.HasOrNull("head_dim")) {
    config->head_dim = family.default_head_dim;
  } else {
    if (reader.ok() && config->hidden_size % config->num_heads != 0) {
      reader.Fail(absl::InvalidArgumentError(
          absl::StrCat(reader.where(), ": hidden_size ", config->hidden_size,
                       " is not a multiple of num_attention_heads ", config->num_heads,
                       ", and there is no head_dim")));
      return;
    }
    config->head_dim = config->hidden_size / config->num_heads;
  }
  if (!head_dim.has_value()) config->assumed.push_back(absl::StrCat("head_dim ", config->head_dim));
  if (reader.ok() && (config->head_dim % 2 != 0 || config->head_dim > kMaxHeadDim)) {
    reader.Fail(absl::InvalidArgumentError(absl::StrCat(
        reader.where(), ": head_dim is ", config->head_dim, ", expected an even number up to ",
        kMaxHeadDim, " (the rotary embedding turns pairs)")));
  }
}

// ---------------------------------------------------------------------------------------------
// Experts

int64_t ReadNumExperts(ConfigReader& reader, const MoeSpec& moe) {
  if (!reader.Has(moe.experts_key) && reader.Has(moe.other_experts_key)) {
    return reader.RequiredInt(moe.other_experts_key, 1, kernels::kMaxExperts);
  }
  const int64_t experts = reader.RequiredInt(moe.experts_key, 1, kernels::kMaxExperts);
  const auto other = reader.Int(moe.other_experts_key, 1, kernels::kMaxExperts);
  if (reader.ok() && other.value_or(experts) != experts) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat(reader.where(), ": key \"", moe.experts_key, "\" is ", experts, " but \"",
                     moe.other_experts_key, "\" is ", *other, "; they must agree")));
  }
  return experts;
}

// Layers `decoder_sparse_step` - 1, 2 * `decoder_sparse_step` - 1 ... but those of
// `mlp_only_layers`.
std::vector<bool> ReadMoeLayers(ConfigReader& reader, int64_t num_layers) {
  const int64_t step = reader.Int("decoder_sparse_step", 1, kMaxPositions).value_or(1);
  std::vector<bool> layers(num_layers);
  for (int64_t layer = 0; layer < num_layers; ++layer) layers[layer] = (layer + 1) % step == 0;
  const json* dense = reader.Get("mlp_only_layers");
  if (dense == nullptr) return layers;
  const std::string expected =
      absl::StrCat("a list of layers from 0 to num_hidden_layers - 1 = ", num_layers - 1);
  if (!dense->is_array()) {
    reader.Fail("mlp_only_layers", *dense, expected);
    return layers;
  }
  for (const json& layer : *dense) {
    const bool fits =
        layer.is_number_integer() && layer.get<int64_t>() >= 0 && layer.get<int64_t>() < num_layers;
    if (!fits) {
      reader.Fail("mlp_only_layers", *dense, expected);
      return layers;
    }
    layers[layer.get<int64_t>()] = false;
  }
  return layers;
}

void ReadExperts(ConfigReader& reader, ModelConfig* config) {
  if (config->family->moe == nullptr) return;
  const MoeSpec& moe = *config->family->moe;
  config->num_experts = ReadNumExperts(reader, moe);
  config->experts_per_token = reader.Int("num_experts_per_tok", 1, kernels::kMaxExperts)
                                  .value_or(moe.default_experts_per_token);
  if (reader.ok() && config->experts_per_token > config->num_experts) {
    reader.Fail(absl::InvalidArgumentError(
        absl::StrCat(reader.where(), ": num_experts_per_tok is ", config->experts_per_token,
                     ", but there are ", config->num_experts, " experts (", moe.experts_key, ")")));
  }
  config->expert_intermediate_size = reader.RequiredInt(moe.width_key, 1, kMaxWidth);
  if (moe.shared_expert) {
    config->shared_intermediate_size =
        reader.RequiredInt("shared_expert_intermediate_size", 1, kMaxWidth);
    config->shared_expert_gate = true;
  }
  config->normalise_experts = moe.always_normalise || reader.Bool("norm_topk_prob").value_or(false);
  config->moe_layers = moe.layer_keys ? ReadMoeLayers(reader, config->num_layers)
                                      : std::vector<bool>(config->num_layers, true);
  if (std::find(config->moe_layers.begin(), config->moe_layers.end(), true) !=
      config->moe_layers.end()) {
    return;
  }
  // Every layer is dense: a dense model.
  config->num_experts = config->experts_per_token = config->expert_intermediate_size = 0;
  config->shared_intermediate_size = 0;
  config->shared_expert_gate = config->normalise_experts = false;
  config->moe_layers.clear();
}

void ReadMisc(ConfigReader& reader, ModelConfig* config) {
  config->rms_norm_eps = static_cast<float>(
      reader.Positive("rms_norm_eps", 1.0).value_or(config->family->default_rms_norm_eps));
  config->tie_word_embeddings = reader.Bool("tie_word_embeddings").value_or(false);
  const auto activation = reader.String("hidden_act");
  if (activation.has_value() && *activation != "silu" && *activation != "swish") {
    reader.Fail(
        absl::UnimplementedError(absl::StrCat(reader.where(), ": key \"hidden_act\" is \"",
                                              Printable(*activation), "\", supported is silu")));
  }
  // How Llama 1 and 2 cut their matmuls while training; the values are the same.
  reader.Int("pretraining_tp", 1, kMaxHeads);
  const auto dtype = reader.String("dtype");
  const auto torch_dtype = reader.String("torch_dtype");
  config->declared_dtype = dtype.value_or(torch_dtype.value_or(""));
}

}  // namespace

float ModelConfig::attention_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text, absl::string_view file) {
  const auto parsed = ParseJsonObject(text, file);
  if (!parsed.ok()) return parsed.status();
  ConfigReader reader(*parsed, file);
  ModelConfig config;
  config.family = ReadFamily(reader);
  if (!reader.ok()) return reader.status();
  config.architecture = std::string(config.family->architecture);
  config.model_type = std::string(config.family->model_type);
  if (std::optional<Quantization> found = ReadQuantization(reader); found.has_value()) {
    config.fp8 = found->scheme;
    config.fp8_left_out = std::move(found->left_out);
  }
  if (!reader.ok()) return reader.status();

  config.hidden_size = reader.RequiredInt("hidden_size", 1, kMaxWidth);
  config.intermediate_size = reader.RequiredInt("intermediate_size", 1, kMaxWidth);
  config.num_layers = reader.RequiredInt("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = reader.RequiredInt("vocab_size", 1, kMaxVocab);
  config.max_position_embeddings = reader.Int("max_position_embeddings", 1, kMaxPositions)
                                       .value_or(config.family->default_max_position_embeddings);
  ReadHeads(reader, &config);
  ReadMisc(reader, &config);
  ReadBiases(reader, &config);
  ReadWindows(reader, &config);
  ReadExperts(reader, &config);
  config.rope.theta = config.family->default_rope_theta;
  ReadRope(reader, &config);
  ReadTokens(reader, &config);
  if (reader.ok()) RefuseUnknownKeys(reader, *config.family);
  if (!reader.ok()) return reader.status();
  return config;
}

absl::Status ApplyGenerationConfig(absl::string_view text, absl::string_view file,
                                   ModelConfig* config) {
  const auto parsed = ParseJsonObject(text, file);
  if (!parsed.ok()) return parsed.status();
  ConfigReader reader(*parsed, file);
  if (reader.Has("bos_token_id")) {
    config->bos_token_id = ReadTokenId(reader, "bos_token_id", config->vocab_size);
  }
  if (reader.Has("eos_token_id")) {
    config->eos_token_ids = ReadTokenIds(reader, "eos_token_id", config->vocab_size);
  }
  const auto pad = reader.Int("pad_token_id", -kMaxVocab, kMaxVocab);
  if (pad.has_value() && *pad >= 0 && *pad < config->vocab_size) config->pad_token_id = pad;

  GenerationDefaults& defaults = config->generation;
  defaults.do_sample = reader.Bool("do_sample");
  defaults.temperature = reader.Number("temperature", 0, 1e6);
  defaults.top_p = reader.Positive("top_p", 1);
  defaults.top_k = reader.Int("top_k", -1, kMaxVocab);
  if (defaults.top_k == -1) defaults.top_k = 0;  // two spellings of "all"
  defaults.min_p = reader.Number("min_p", 0, 1);
  defaults.repetition_penalty = reader.Positive("repetition_penalty", 1e6);
  defaults.max_new_tokens = reader.Int("max_new_tokens", 1, kMaxPositions);
  defaults.ignored_keys = IgnoredGenerationKeys(reader);
  return reader.status();
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory, ConfigTexts* texts) {
  struct stat info;
  if (stat(directory.c_str(), &info) != 0) {
    return errno == ENOENT || errno == ENOTDIR
               ? absl::NotFoundError(absl::StrCat(directory,
                                                  ": no such directory, expected a "
                                                  "Hugging Face model directory"))
               : absl::ErrnoToStatus(errno, absl::StrCat(directory, ": cannot be opened"));
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, ": not a directory, expected a Hugging Face model directory"));
  }
  const std::string path = absl::StrCat(directory, "/config.json");
  const auto text = ReadTextFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) {
    const std::string snapshots = absl::StrCat(directory, "/snapshots");
    return absl::NotFoundError(absl::StrCat(
        path, ": no such file; ",
        stat(snapshots.c_str(), &info) == 0
            ? absl::StrCat("this is a folder of the Hub's cache, the model is in one of ",
                           snapshots)
            : "a Hugging Face model directory has one"));
  }
  if (!text.ok()) return text.status();
  auto config = ParseModelConfig(*text, path);
  if (!config.ok()) return config.status();
  const std::string generation_path = absl::StrCat(directory, "/generation_config.json");
  const auto generation = ReadTextFile(generation_path, kMaxConfigBytes);
  if (generation.ok()) {
    absl::Status applied = ApplyGenerationConfig(*generation, generation_path, &*config);
    if (!applied.ok()) return applied;
  } else if (!absl::IsNotFound(generation.status())) {
    return generation.status();
  }
  if (texts != nullptr) {
    texts->config = *text;
    texts->generation = generation.ok() ? *generation : "";
  }
  return config;
}

}  // namespace phalanx::checkpoint
