#include "runtime/checkpoint/families.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace phalanx::checkpoint {
namespace {

constexpr absl::string_view kLayer = "{layer}";
constexpr absl::string_view kExpert = "{expert}";

// All families name these tensors alike; which of them a model has is decided by HasRole.
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

constexpr RoleName kMixtralNames[] = {
    {Role::kRouter, "model.layers.{layer}.block_sparse_moe.gate.weight"},
    {Role::kExpertGate, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"},
    {Role::kExpertUp, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"},
    {Role::kExpertDown, "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"},
};

constexpr RoleName kQwenMoeNames[] = {
    {Role::kRouter, "model.layers.{layer}.mlp.gate.weight"},
    {Role::kSharedGate, "model.layers.{layer}.mlp.shared_expert.gate_proj.weight"},
    {Role::kSharedUp, "model.layers.{layer}.mlp.shared_expert.up_proj.weight"},
    {Role::kSharedDown, "model.layers.{layer}.mlp.shared_expert.down_proj.weight"},
    {Role::kSharedRouter, "model.layers.{layer}.mlp.shared_expert_gate.weight"},
    {Role::kExpertGate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"},
    {Role::kExpertUp, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"},
    {Role::kExpertDown, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"},
};

// How Transformers 5 holds experts, and saves them when asked not to go back to the original names
// (save_pretrained with save_original_format false).
constexpr OtherName kFusedNames[] = {
    {Role::kRouter, "model.layers.{layer}.mlp.gate.weight"},
    {Role::kExpertGate, "model.layers.{layer}.mlp.experts.gate_up_proj", 0, 2},
    {Role::kExpertUp, "model.layers.{layer}.mlp.experts.gate_up_proj", 1, 2},
    {Role::kExpertDown, "model.layers.{layer}.mlp.experts.down_proj", 0, 1},
};

constexpr MoeSpec kMixtralMoe = {.experts_key = "num_local_experts",
                                 .other_experts_key = "num_experts",
                                 .width_key = "intermediate_size",
                                 .default_experts_per_token = 2,
                                 .layer_keys = false,
                                 .always_normalise = true,
                                 .shared_expert = false,
                                 .names = kMixtralNames,
                                 .other_names = kFusedNames};
constexpr MoeSpec kQwen2Moe = {.experts_key = "num_experts",
                               .other_experts_key = "num_local_experts",
                               .width_key = "moe_intermediate_size",
                               .default_experts_per_token = 4,
                               .layer_keys = true,
                               .always_normalise = false,
                               .shared_expert = true,
                               .names = kQwenMoeNames,
                               .other_names = kFusedNames};
constexpr MoeSpec kQwen3Moe = {.experts_key = "num_experts",
                               .other_experts_key = "num_local_experts",
                               .width_key = "moe_intermediate_size",
                               .default_experts_per_token = 8,
                               .layer_keys = true,
                               .always_normalise = false,
                               .shared_expert = false,
                               .names = kQwenMoeNames,
                               .other_names = kFusedNames};

// Buffers that old versions of Transformers saved; they are computed from the configuration.
constexpr absl::string_view kLlamaIgnorable[] = {
    "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
};

// max_sequence_length: in early Llama 2 conversions, beside max_position_embeddings.
constexpr absl::string_view kLlamaHarmless[] = {"max_sequence_length"};

// Training's: a loss that balances the experts, and noise on the router's input.
constexpr absl::string_view kMoeHarmless[] = {"output_router_logits", "router_aux_loss_coef",
                                              "router_jitter_noise"};

constexpr FamilySpec kFamilies[] = {
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .default_max_position_embeddings = 2048,
     .default_num_kv_heads = 0,
     .default_head_dim = 0,
     .default_sliding_window = 0,
     .default_bos_token_id = 1,
     .default_eos_token_id = 2,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kByAttentionBias,
     .o_bias = BiasRule::kByAttentionBias,
     .mlp_bias = BiasRule::kByMlpBias,
     .qk_norm = false,
     .window = WindowRule::kNone,
     .moe = nullptr,
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
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kNever,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kEveryLayer,
     .moe = nullptr,
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
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kAlways,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kFromWindowLayer,
     .moe = nullptr,
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
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kByAttentionBias,
     .o_bias = BiasRule::kByAttentionBias,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = true,
     .window = WindowRule::kFromWindowLayer,
     .moe = nullptr,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = {}},
    {.architecture = "MixtralForCausalLM",
     .model_type = "mixtral",
     .default_max_position_embeddings = 4096 * 32,
     .default_num_kv_heads = 8,
     .default_head_dim = 0,
     .default_sliding_window = 0,
     .default_bos_token_id = 1,
     .default_eos_token_id = 2,
     .default_rms_norm_eps = 1e-5,
     .default_rope_theta = 1000000.0,
     .qkv_bias = BiasRule::kNever,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kEveryLayer,
     .moe = &kMixtralMoe,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = kMoeHarmless},
    {.architecture = "Qwen2MoeForCausalLM",
     .model_type = "qwen2_moe",
     .default_max_position_embeddings = 32768,
     .default_num_kv_heads = 16,
     .default_head_dim = 0,
     .default_sliding_window = 0,
     .default_bos_token_id = -1,
     .default_eos_token_id = -1,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kByQkvBias,
     .o_bias = BiasRule::kNever,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = false,
     .window = WindowRule::kOff,
     .moe = &kQwen2Moe,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = kMoeHarmless},
    {.architecture = "Qwen3MoeForCausalLM",
     .model_type = "qwen3_moe",
     .default_max_position_embeddings = 32768,
     .default_num_kv_heads = 4,
     .default_head_dim = 0,
     .default_sliding_window = 0,
     .default_bos_token_id = -1,
     .default_eos_token_id = -1,
     .default_rms_norm_eps = 1e-6,
     .default_rope_theta = 10000.0,
     .qkv_bias = BiasRule::kByAttentionBias,
     .o_bias = BiasRule::kByAttentionBias,
     .mlp_bias = BiasRule::kNever,
     .qk_norm = true,
     .window = WindowRule::kOff,
     .moe = &kQwen3Moe,
     .names = kLlamaNames,
     .ignorable = kLlamaIgnorable,
     .harmless_keys = kMoeHarmless},
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

// The pattern with its placeholders replaced.
std::string Fill(absl::string_view pattern, int64_t layer, int64_t expert) {
  std::string name;
  while (!pattern.empty()) {
    const size_t at = pattern.find('{');
    absl::StrAppend(&name, pattern.substr(0, at));
    if (at == absl::string_view::npos) break;
    pattern.remove_prefix(at);
    const bool is_layer = absl::StartsWith(pattern, kLayer);
    absl::StrAppend(&name, is_layer ? layer : expert);
    pattern.remove_prefix(is_layer ? kLayer.size() : kExpert.size());
  }
  return name;
}

// The family's names, and those of its experts where it has any.
std::vector<absl::Span<const RoleName>> NameTables(const ModelConfig& config) {
  std::vector<absl::Span<const RoleName>> tables = {config.family->names};
  if (config.family->moe != nullptr) tables.push_back(config.family->moe->names);
  return tables;
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

bool IsPerExpert(Role role) {
  return role == Role::kExpertGate || role == Role::kExpertUp || role == Role::kExpertDown;
}

bool IsProduct(Role role) {
  switch (role) {
    case Role::kEmbedding:
    case Role::kLmHead:
    case Role::kRouter:
    case Role::kSharedRouter:
      return false;
    default:
      return !IsVector(role);
  }
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
    case Role::kRouter:
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedDown:
    case Role::kSharedRouter:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertDown:
      return false;
    default:
      return true;
  }
}

bool HasRole(const ModelConfig& config, Role role, int64_t layer) {
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
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
      return !config.is_moe(layer);
    case Role::kGateBias:
    case Role::kUpBias:
    case Role::kDownBias:
      return config.mlp_bias && !config.is_moe(layer);
    case Role::kRouter:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertDown:
      return config.is_moe(layer);
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedDown:
      return config.is_moe(layer) && config.shared_intermediate_size > 0;
    case Role::kSharedRouter:
      return config.is_moe(layer) && config.shared_expert_gate;
    default:
      return true;
  }
}

std::string TensorName(const ModelConfig& config, Role role, int64_t layer, int64_t expert) {
  for (const absl::Span<const RoleName> names : NameTables(config)) {
    for (const RoleName& entry : names) {
      if (entry.role == role) return Fill(entry.pattern, layer, expert);
    }
  }
  return "";
}

const OtherName* FindOtherName(const ModelConfig& config, Role role) {
  if (config.family->moe == nullptr) return nullptr;
  for (const OtherName& other : config.family->moe->other_names) {
    if (other.role == role) return &other;
  }
  return nullptr;
}

std::string TensorName(const OtherName& other, int64_t layer) {
  return Fill(other.pattern, layer, 0);
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
    case Role::kRouter:
      return {config.num_experts, config.hidden_size};
    case Role::kSharedGate:
    case Role::kSharedUp:
      return {config.shared_intermediate_size, config.hidden_size};
    case Role::kSharedDown:
      return {config.hidden_size, config.shared_intermediate_size};
    case Role::kSharedRouter:
      return {1, config.hidden_size};
    case Role::kExpertGate:
    case Role::kExpertUp:
      return {config.expert_intermediate_size, config.hidden_size};
    case Role::kExpertDown:
      return {config.hidden_size, config.expert_intermediate_size};
  }
  return {};
}

std::vector<Role> Roles(const ModelConfig& config) {
  std::vector<Role> roles;
  for (const absl::Span<const RoleName> names : NameTables(config)) {
    for (const RoleName& entry : names) {
      bool has = false;
      for (int64_t layer = 0; layer < config.num_layers && !has; ++layer) {
        has = HasRole(config, entry.role, layer);
      }
      if (has) roles.push_back(entry.role);
    }
  }
  return roles;
}

bool IsIgnorable(const ModelConfig& config, absl::string_view name) {
  if (config.tie_word_embeddings && name == TensorName(config, Role::kLmHead)) return true;
  return std::any_of(config.family->ignorable.begin(), config.family->ignorable.end(),
                     [&](absl::string_view pattern) { return Matches(pattern, name); });
}

}  // namespace phalanx::checkpoint
