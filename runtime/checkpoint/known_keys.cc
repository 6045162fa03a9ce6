#include "runtime/checkpoint/known_keys.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/json_file.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

// Keys that any Transformers configuration may carry and that do not change what a decoder computes
// at inference: provenance, training, other tasks, implementation choices, and generation
// parameters, which Transformers reads from generation_config.json instead.
constexpr absl::string_view kHarmlessKeys[] = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_p",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
};

// Keys that change the arithmetic in families that have them, with the value that changes nothing.
struct NeutralValue {
  absl::string_view key;
  double value;
};
constexpr NeutralValue kNeutralValues[] = {
    {"embedding_multiplier", 1}, {"logit_scale", 1},
    {"logits_scaling", 1},       {"lm_head_multiplier", 1},
    {"mup_multiplier", 1},       {"residual_multiplier", 1},
    {"rope_ratio", 1},           {"scale_emb", 1},
    {"embedding_scale", 1},      {"partial_rotary_factor", 1},
    {"rotary_pct", 1},
};

bool Contains(absl::Span<const absl::string_view> keys, absl::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

// Null: no such key.
const NeutralValue* FindNeutral(const std::string& key) {
  const auto* found = std::find_if(std::begin(kNeutralValues), std::end(kNeutralValues),
                                   [&](const NeutralValue& neutral) { return neutral.key == key; });
  return found == std::end(kNeutralValues) ? nullptr : found;
}

bool IsNeutral(const std::string& key, const json& value) {
  const NeutralValue* neutral = FindNeutral(key);
  if (neutral == nullptr) return IsUnset(value);
  return value.is_null() || (value.is_number() && value.get<double>() == neutral->value);
}

}  // namespace

bool IsUnset(const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

void RefuseUnknownKeys(ConfigReader& reader, const FamilySpec& family) {
  for (const auto& [key, value] : reader.object().items()) {
    if (reader.WasRead(key) || Contains(kHarmlessKeys, key) ||
        Contains(family.harmless_keys, key) || IsNeutral(key, value)) {
      continue;
    }
    const NeutralValue* neutral = FindNeutral(key);
    reader.Fail(absl::UnimplementedError(absl::StrCat(
        reader.where(), ": key \"", Printable(key), "\" is ", PrintableJson(value), ", which ",
        neutral != nullptr
            ? absl::StrCat("changes the arithmetic and is not supported; ", neutral->value,
                           ", which changes nothing, is")
            : absl::StrCat(
                  family.architecture,
                  " here does not know and which may change the arithmetic; if it does not, remove "
                  "it"))));
    return;
  }
}

std::vector<std::string> IgnoredGenerationKeys(const ConfigReader& reader) {
  static constexpr absl::string_view kNoEffect[] = {
      "_from_model_config",      "cache_implementation", "disable_compile", "max_length",
      "output_attentions",       "output_hidden_states", "output_logits",   "output_scores",
      "return_dict_in_generate", "transformers_version", "use_cache",
  };
  std::vector<std::string> ignored;
  for (const auto& [key, value] : reader.object().items()) {
    const bool is_one = value.is_number() && value.get<double>() == 1;
    if (reader.WasRead(key) || Contains(kNoEffect, key) || IsUnset(value) || is_one) continue;
    ignored.push_back(Printable(key));
  }
  return ignored;
}

}  // namespace phalanx::checkpoint
