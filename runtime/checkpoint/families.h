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
  // Layers with experts have these in place of kGate, kUp and kDown.
  kRouter,        // [num_experts, hidden_size]
  kSharedGate,    // [shared_intermediate_size, hidden_size]
  kSharedUp,      // [shared_intermediate_size, hidden_size]
  kSharedDown,    // [hidden_size, shared_intermediate_size]
  kSharedRouter,  // [1, hidden_size]: the shared expert's gate
  // One per expert from here on.
  kExpertGate,  // [expert_intermediate_size, hidden_size]
  kExpertUp,    // [expert_intermediate_size, hidden_size]
  kExpertDown,  // [hidden_size, expert_intermediate_size]
};

struct RoleName {
  Role role;
  absl::string_view pattern;  // "{layer}" and "{expert}" stand for their indices
};

// Another name that a role's tensor may have in the files. A role per expert is a slice there of
// one tensor [num_experts, parts * rows, cols] of all experts: rows [part * rows, (part + 1) *
// rows) of the expert's matrix.
struct OtherName {
  Role role;
  absl::string_view pattern;  // "{layer}" as above
  int part = 0;
  int parts = 1;
};

// Where a bias exists.
enum class BiasRule {
  kNever,
  kAlways,
  kByAttentionBias,  // `attention_bias`, false when absent
  kByQkvBias,        // `qkv_bias`, true when absent
  kByMlpBias,        // `mlp_bias`, false when absent
};
// Which layers have a sliding window.
enum class WindowRule {
  kNone,
  kEveryLayer,       // `sliding_window`, on every layer
  kFromWindowLayer,  // `use_sliding_window`: layers from `max_window_layers` on, or `layer_types`
  kOff,              // `use_sliding_window` true is refused: its meaning changed between versions
};

// How a family with experts says what they are (Shazeer et al., arXiv:1701.06538).
struct MoeSpec {
  // Keys of config.json. Both spellings of the number of experts are read and must agree.
  absl::string_view experts_key;
  absl::string_view other_experts_key;
  absl::string_view width_key;  // channels of one expert
  int64_t default_experts_per_token;
  bool layer_keys;  // `decoder_sparse_step` and `mlp_only_layers` say which layers have experts
  bool always_normalise;  // else `norm_topk_prob`, false when absent
  bool shared_expert;     // with a gate; `shared_expert_intermediate_size` channels
  absl::Span<const RoleName> names;
  absl::Span<const OtherName> other_names;
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
  double default_rms_norm_eps;
  double default_rope_theta;
  BiasRule qkv_bias;
  BiasRule o_bias;
  BiasRule mlp_bias;
  bool qk_norm;
  WindowRule window;
  const MoeSpec* moe;  // null: every layer is dense
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
bool IsPerExpert(Role role);
// Matrices of attention, MLP and experts, which may be FP8; routers, embedding and head aren't.
bool IsProduct(Role role);
// Norm weights and biases: vectors, which may be F32 beside weights of another dtype.
bool IsVector(Role role);

// Whether a model of this configuration has the tensor in layer `layer`, which is ignored by roles
// that are not per layer.
bool HasRole(const ModelConfig& config, Role role, int64_t layer = 0);
// The tensor's name. `layer` and `expert` are ignored by roles that are not per layer or expert.
std::string TensorName(const ModelConfig& config, Role role, int64_t layer = 0, int64_t expert = 0);
// Its other name, null where there is none, and that name for a layer.
const OtherName* FindOtherName(const ModelConfig& config, Role role);
std::string TensorName(const OtherName& other, int64_t layer);
// The shape that the configuration gives it.
Shape ExpectedShape(const ModelConfig& config, Role role);
// Every role of the family that some layer of the configuration has, in the order of the table.
std::vector<Role> Roles(const ModelConfig& config);
// Whether `name` is one of the tensors that mean nothing here (a tied lm_head.weight included).
bool IsIgnorable(const ModelConfig& config, absl::string_view name);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_FAMILIES_H_
