#include "runtime/checkpoint/families.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace phalanx::checkpoint {
namespace {

constexpr absl::string_view kLayer = "{layer}";

// Llama, Mistral, Qwen2 and Qwen3 name their tensors alike; which of them a model has is decided by
// HasRole.
constexpr RoleName kLlamaNames[] = {
    {Role::kEmbedding, "model.embed_tokens.weight"},
    {Role::kFinalNorm, "model.norm.weight"},
    {Role::kLmHead, "lm_head.weight"},
    {Role::kAttnNorm, "model.layers.{layer}.input_layernorm.weight"},
    {Role::kQ, "model.layers.{layer}.self_attn.q_proj.weight"},
    {Role::kK, "model.layers.{layer}.self_attn.k_proj.weight"},
    {Role::kV, "model.layers.{layer}.self_attn.v_proj.weight"},
    {Role::kO, "model.layers.{layer}.self_attn.o_proj.weight"},
    {Role::kQBias, "model.layers.{layer}.self_attn.q_proj.bias"},
    {Role::kKBias, "model.layers.{layer}.self_attn.k_proj.bias"},
    {Role::kVBias, "model.layers.{layer}.self_attn.v_proj.bias"},
    {Role::kOBias, "model.layers.{layer}.self_attn.o_proj.bias"},
    {Role::kQNorm, "model.layers.{layer}.self_attn.q_norm.weight"},
    {Role::kKNorm, "model.layers.{layer}.self_attn.k_norm.weight"},
    {Role::kMlpNorm, "model.layers.{layer}.post_attention_layernorm.weight"},
    {Role::kGate, "model.layers.{layer}.mlp.gate_proj.weight"},
    {Role::kUp, "model.layers.{layer}.mlp.up_proj.weight"},
    {Role::kDown, "model.layers.{layer}.mlp.down_proj.weight"},
    {Role::kGateBias, "model.layers.{layer}.mlp.gate_proj.bias"},
    {Role::kUpBias, "model.layers.{layer}.mlp.up_proj.bias"},
    {Role::kDownBias, "model.layers.{layer}.mlp.down_proj.bias"},
};

// Buffers that old versions of Transformers saved; they are computed from the configuration.
constexpr absl::string_view kLlamaIgnorable[] = {
    "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
};

// max_sequence_length: in early Llama 2 conversions, beside max_position_embeddings.
constexpr absl::string_view kLlamaHarmless[] = {"max_sequence_length"};

constexpr FamilySpec kFamilies[] = {
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .default_max_position_embeddings = 2048,
     .default_num_kv_heads = 0,
     .default_head_dim = 0,
     .default_sliding_window = 0,
     .default_bos_token_id = 1,
     .default_eos_token_id = 2,
     .qkv_bias = BiasRule::kByAttentionBias,
     .o_bias = BiasRule::kByAttentionBias,
     .mlp_bias = BiasRule::kByMlpBias,
     .qk_norm = false,
     .window = WindowRule::kNone,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = kLlamaHarmless},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .default_max_position_embeddings = 4096 * 32,
     .default_num_kv_heads = 8,
     .default_head_dim = 0,
     .default_sliding_window = 4096,
     .default_bos_token_id = 1,
     .default_eos_token_id = 2,
     .qkv_bias = BiasRule::kNever,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kEveryLayer,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = {}},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .default_max_position_embeddings = 32768,
     .default_num_kv_heads = 32,
     .default_head_dim = 0,
     .default_sliding_window = 4096,
     .default_bos_token_id = -1,
     .default_eos_token_id = -1,
     .qkv_bias = BiasRule::kAlways,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kFromWindowLayer,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = {}},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .default_max_position_embeddings = 32768,
     .default_num_kv_heads = 32,
     .default_head_dim = 128,
     .default_sliding_window = 4096,
     .default_bos_token_id = -1,
     .default_eos_token_id = -1,
     .qkv_bias = BiasRule::kByAttentionBias,
     .o_bias = BiasRule::kByAttentionBias,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = true,
     .window = WindowRule::kFromWindowLayer,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = {}},
};

// Whether `name` is `pattern` with some decimal number in place of "{layer}".
bool Matches(absl::string_view pattern, absl::string_view name) {
  const size_t at = pattern.find(kLayer);
  if (at == absl::string_view::npos) return pattern == name;
  const absl::string_view head = pattern.substr(0, at);
  const absl::string_view tail = pattern.substr(at + kLayer.size());
  if (name.size() <= head.size() + tail.size() || name.substr(0, head.size()) != head ||
      name.substr(name.size() - tail.size()) != tail) {
    return false;
  }
  const absl::string_view digits =
      name.substr(head.size(), name.size() - head.size() - tail.size());
  return std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

absl::Span<const FamilySpec> Families() { return kFamilies; }

const FamilySpec* FamilyByArchitecture(absl::string_view architecture) {
  for (const FamilySpec& family : kFamilies) {
    if (family.architecture == architecture) return &family;
  }
  return nullptr;
}

const FamilySpec* FamilyByModelType(absl::string_view model_type) {
  for (const FamilySpec& family : kFamilies) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

bool IsPerLayer(Role role) {
  return role != Role::kEmbedding && role != Role::kFinalNorm && role != Role::kLmHead;
}

bool IsVector(Role role) {
  switch (role) {
    case Role::kEmbedding:
    case Role::kLmHead:
    case Role::kQ:
    case Role::kK:
    case Role::kV:
    case Role::kO:
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
      return false;
    default:
      return true;
  }
}

bool HasRole(const ModelConfig& config, Role role) {
  switch (role) {
    case Role::kLmHead:
      return !config.tie_word_embeddings;
    case Role::kQBias:
    case Role::kKBias:
    case Role::kVBias:
      return config.qkv_bias;
    case Role::kOBias:
      return config.o_bias;
    case Role::kQNorm:
    case Role::kKNorm:
      return config.qk_norm;
    case Role::kGateBias:
    case Role::kUpBias:
    case Role::kDownBias:
      return config.mlp_bias;
    default:
      return true;
  }
}

std::string TensorName(const ModelConfig& config, Role role, int64_t layer) {
  for (const RoleName& entry : config.family->names) {
    if (entry.role != role) continue;
    const size_t at = entry.pattern.find(kLayer);
    if (at == absl::string_view::npos) return std::string(entry.pattern);
    return absl::StrCat(entry.pattern.substr(0, at), layer,
                        entry.pattern.substr(at + kLayer.size()));
  }
  return "";
}

Shape ExpectedShape(const ModelConfig& config, Role role) {
  switch (role) {
    case Role::kEmbedding:
    case Role::kLmHead:
      return {config.vocab_size, config.hidden_size};
    case Role::kQ:
      return {config.q_size(), config.hidden_size};
    case Role::kK:
    case Role::kV:
      return {config.kv_size(), config.hidden_size};
    case Role::kO:
      return {config.hidden_size, config.q_size()};
    case Role::kGate:
    case Role::kUp:
      return {config.intermediate_size, config.hidden_size};
    case Role::kDown:
      return {config.hidden_size, config.intermediate_size};
    case Role::kQBias:
      return {config.q_size()};
    case Role::kKBias:
    case Role::kVBias:
      return {config.kv_size()};
    case Role::kQNorm:
    case Role::kKNorm:
      return {config.head_dim};
    case Role::kGateBias:
    case Role::kUpBias:
      return {config.intermediate_size};
    case Role::kFinalNorm:
    case Role::kAttnNorm:
    case Role::kMlpNorm:
    case Role::kOBias:
    case Role::kDownBias:
      return {config.hidden_size};
  }
  return {};
}

std::vector<Role> Roles(const ModelConfig& config) {
  std::vector<Role> roles;
  for (const RoleName& entry : config.family->names) {
    if (HasRole(config, entry.role)) roles.push_back(entry.role);
  }
  return roles;
}

bool IsIgnorable(const ModelConfig& config, absl::string_view name) {
  if (config.tie_word_embeddings && name == TensorName(config, Role::kLmHead)) return true;
  return std::any_of(config.family->ignorable.begin(), config.family->ignorable.end(),
                     [&](absl::string_view pattern) { return Matches(pattern, name); });
}

}  // namespace phalanx::checkpoint
