// The shape and the arithmetic of a model, read from a Hugging Face directory's config.json and
// generation_config.json (https://huggingface.co/docs/transformers/main_classes/configuration).
// Both spellings are read: the old keys (rope_theta, rope_scaling, torch_dtype) and those of
// Transformers 5 (rope_parameters, dtype). A key that is absent has the default of the
// Transformers config class of its family, except the keys that give the tensors their shapes
// (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, vocab_size): those must
// be there. A key that changes the arithmetic and is not supported is refused by name.
#ifndef PHALANX_RUNTIME_CHECKPOINT_MODEL_CONFIG_H_
#define PHALANX_RUNTIME_CHECKPOINT_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"

namespace phalanx::checkpoint {

struct FamilySpec;  // families.h

enum class RopeType { kDefault, kLinear, kLlama3, kYarn };
absl::string_view Name(RopeType type);  // "default", "linear", "llama3", "yarn"

// Rotary embedding (Su et al., arXiv:2104.09864) and its scalings; see rope_scaling.h.
struct RopeParameters {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;         // the base of the frequencies
  double factor = 1.0;            // linear, llama3, yarn
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  // Context length before scaling, in tokens; llama3, yarn.
  int64_t original_max_position_embeddings = 0;
  // YaRN only. Absent attention_factor: computed from factor, mscale and mscale_all_dim.
  std::optional<double> attention_factor = std::nullopt;
  std::optional<double> mscale = std::nullopt;
  std::optional<double> mscale_all_dim = std::nullopt;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;  // round the correction range to whole dimensions

  friend bool operator==(const RopeParameters&, const RopeParameters&) = default;
};

// What generation_config.json suggests for a request that leaves a parameter out. Only hints: a
// request's own values win. Absent: the file does not say.
struct GenerationDefaults {
  std::optional<bool> do_sample;  // false: greedy, whatever the temperature
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;  // 0: all
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
  // Keys of generation_config.json that would change what is generated and that nothing here reads,
  // sorted; for one log line.
  std::vector<std::string> ignored_keys;

  friend bool operator==(const GenerationDefaults&, const GenerationDefaults&) = default;
};

// How matrices of FP8 codes share scales (quantization.h).
struct Fp8Scheme {
  // Of a block of a matrix with one scale; 0, 0 where the configuration names none.
  int64_t block_rows = 0;
  int64_t block_columns = 0;

  friend bool operator==(const Fp8Scheme&, const Fp8Scheme&) = default;
};

struct ModelConfig {
  const FamilySpec* family = nullptr;  // an entry of the static table; never null after parsing
  std::string architecture;            // "LlamaForCausalLM"
  std::string model_type;              // "llama"

  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;      // even
  // What was taken for keys that the file doesn't have and tensors' shapes depend on, for messages
  // ("head_dim 128").
  std::vector<std::string> assumed;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;  // tokens of context, prompt and answer together
  float rms_norm_eps = 0;
  bool tie_word_embeddings = false;  // the head is the embedding

  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // RMSNorm over each query and key head before the rotary embedding

  // Window of each layer in tokens, [num_layers]; a query at position p sees positions > p -
  // window. 0: no window.
  std::vector<int64_t> layer_windows;
  int64_t window(int64_t layer) const { return layer_windows[layer]; }

  // Experts. num_experts 0: every layer is dense and the others below are 0 or empty.
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;         // 1 .. num_experts
  int64_t expert_intermediate_size = 0;  // channels of one expert
  int64_t shared_intermediate_size = 0;  // channels of the shared expert; 0: none
  bool shared_expert_gate = false;       // the shared expert is multiplied by sigmoid(x . gate)
  bool normalise_experts = false;        // the chosen experts' probabilities are made to add to 1
  std::vector<bool> moe_layers;          // [num_layers]; the others have intermediate_size channels
  bool is_moe(int64_t layer) const { return num_experts > 0 && moe_layers[layer]; }

  RopeParameters rope;

  // There where layers' matrices are codes of F8_E4M3 with scales, all or some of them.
  std::optional<Fp8Scheme> fp8;
  bool fine_scales = false;  // some of the scales are no BF16
  // Modules whose weights config.json says are left as they are (quantization.h). What the tensors
  // are decides; this is for those who don't read them.
  std::vector<std::string> fp8_left_out;

  // Of the linear weights and the embedding: what the tensors are, not what config.json says. F32
  // until Checkpoint::Open has looked at the tensors.
  kernels::DType weight_dtype = kernels::DType::kF32;
  // config.json's dtype or torch_dtype, "" if absent. Informative only.
  std::string declared_dtype;

  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // sorted, each in [0, vocab_size); may be empty
  std::optional<int64_t> pad_token_id;
  GenerationDefaults generation;

  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  // 1 / sqrt(head_dim), what query-key products are multiplied by.
  float attention_scale() const;
};

// Parses the text of a config.json. `file` names it in errors. INVALID_ARGUMENT names the key, what
// was found, what is expected; UNIMPLEMENTED names an architecture, rope type, quantisation or key
// that is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json, absl::string_view file);

// Lets the text of a generation_config.json override the token ids and fill config.generation.
absl::Status ApplyGenerationConfig(absl::string_view json, absl::string_view file,
                                   ModelConfig* config);

// Reads DIR/config.json and, where there is one, DIR/generation_config.json; touches no weights.
// NOT_FOUND: no such directory, or no config.json in it.
// `texts`: where the files' texts go, for a digest; may be null.
struct ConfigTexts {
  std::string config;
  std::string generation;  // "" where there is no such file
};
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory,
                                            ConfigTexts* texts = nullptr);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_MODEL_CONFIG_H_
