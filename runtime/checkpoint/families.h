// A model family is data: a row of this table plus the one decoder.
#ifndef PHALANX_RUNTIME_CHECKPOINT_FAMILIES_H_
#define PHALANX_RUNTIME_CHECKPOINT_FAMILIES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/safetensors.h"

namespace phalanx::checkpoint {

// What a tensor is for. Linear weights are [out, in].
enum class Role {
  kEmbedding,  // [vocab_size, hidden_size]
  kFinalNorm,  // [hidden_size]
  kLmHead,     // [vocab_size, hidden_size]; absent when tied
  // One per layer from here on.
  kAttnNorm,  // [hidden_size]
  kQ,         // [num_heads * head_dim, hidden_size]
  kK,         // [num_kv_heads * head_dim, hidden_size]
  kV,         // [num_kv_heads * head_dim, hidden_size]
  kO,         // [hidden_size, num_heads * head_dim]
  kQBias,
  kKBias,
  kVBias,
  kOBias,
  kQNorm,    // [head_dim]
  kKNorm,    // [head_dim]
  kMlpNorm,  // [hidden_size]
  kGate,     // [intermediate_size, hidden_size]
  kUp,       // [intermediate_size, hidden_size]
  kDown,     // [hidden_size, intermediate_size]
  kGateBias,
  kUpBias,
  kDownBias,
};

struct RoleName {
  Role role;
  absl::string_view pattern;  // "{layer}" stands for the layer's index
};

// Where a bias exists.
enum class BiasRule { kNever, kAlways, kByAttentionBias, kByMlpBias };
// Which layers have a sliding window.
enum class WindowRule {
  kNone,
  kEveryLayer,       // `sliding_window`, on every layer
  kFromWindowLayer,  // `use_sliding_window`: layers from `max_window_layers` on, or `layer_types`
};

struct FamilySpec {
  absl::string_view architecture;  // of config.json's `architectures`
  absl::string_view model_type;
  // Defaults of the Transformers config class.
  int64_t default_max_position_embeddings;
  int64_t default_num_kv_heads;    // 0: num_attention_heads
  int64_t default_head_dim;        // 0: hidden_size / num_attention_heads
  int64_t default_sliding_window;  // 0: none
  int64_t default_bos_token_id;    // -1: none
  int64_t default_eos_token_id;    // -1: none
  BiasRule qkv_bias;
  BiasRule o_bias;
  BiasRule mlp_bias;
  bool qk_norm;
  WindowRule window;
  absl::Span<const RoleName> names;
  // Tensors that may be in the files and mean nothing; "{layer}" as above.
  absl::Span<const absl::string_view> ignorable;
  // Keys of config.json that this family's Transformers class does not read and that real
  // checkpoints of it carry.
  absl::Span<const absl::string_view> harmless_keys;
};

absl::Span<const FamilySpec> Families();
// Null: unknown.
const FamilySpec* FamilyByArchitecture(absl::string_view architecture);
const FamilySpec* FamilyByModelType(absl::string_view model_type);

bool IsPerLayer(Role role);
// Norm weights and biases: vectors, which may be F32 beside weights of another dtype.
bool IsVector(Role role);

// Whether a model of this configuration has the tensor at all.
bool HasRole(const ModelConfig& config, Role role);
// The tensor's name. `layer` is ignored by roles that are not per layer.
std::string TensorName(const ModelConfig& config, Role role, int64_t layer = 0);
// The shape that the configuration gives it.
Shape ExpectedShape(const ModelConfig& config, Role role);
// Every role of the family that the configuration has, in the order of the table.
std::vector<Role> Roles(const ModelConfig& config);
// Whether `name` is one of the tensors that mean nothing here (a tied lm_head.weight included).
bool IsIgnorable(const ModelConfig& config, absl::string_view name);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_FAMILIES_H_
