#include "runtime/checkpoint/rope_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/known_keys.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

absl::StatusOr<RopeType> RopeTypeByName(const std::string& name, const std::string& where) {
  for (const RopeType type :
       {RopeType::kDefault, RopeType::kLinear, RopeType::kLlama3, RopeType::kYarn}) {
    if (name == Name(type)) return type;
  }
  return absl::UnimplementedError(absl::StrCat(where, ": rope type \"", Printable(name),
                                               "\" is not supported; supported are default, "
                                               "linear, llama3, yarn"));
}

// Keys that mean something to some rope type; those that this type does not read, Transformers
// ignores too. "finetuned": a note of the YaRN authors.
constexpr absl::string_view kRopeHarmlessKeys[] = {
    "attention_factor", "beta_fast",
    "beta_slow",        "factor",
    "finetuned",        "high_freq_factor",
    "low_freq_factor",  "mscale",
    "mscale_all_dim",   "original_max_position_embeddings",
    "truncate",
};

bool IsHarmless(absl::string_view key) {
  return std::find(std::begin(kRopeHarmlessKeys), std::end(kRopeHarmlessKeys), key) !=
         std::end(kRopeHarmlessKeys);
}

double RequiredRopeNumber(ConfigReader& rope, absl::string_view key, RopeType type) {
  if (!rope.Has(key)) {
    rope.Fail(absl::InvalidArgumentError(absl::StrCat(rope.where(), ": key \"", key,
                                                      "\" is missing, expected a number above 0 "
                                                      "for rope type ",
                                                      Name(type))));
    return 1;
  }
  return rope.Positive(key, 1e9).value_or(1);
}

void ReadYarn(ConfigReader& rope, const ModelConfig& config, RopeParameters* out) {
  if (rope.Has("factor") || !rope.HasOrNull("factor")) {
    out->factor = RequiredRopeNumber(rope, "factor", out->type);
  } else {
    // A null factor: the ratio of the two lengths.
    out->factor = static_cast<double>(config.max_position_embeddings) /
                  static_cast<double>(out->original_max_position_embeddings);
  }
  out->attention_factor = rope.Positive("attention_factor", 1e6);
  out->mscale = rope.Number("mscale", 0, 1e6);
  out->mscale_all_dim = rope.Number("mscale_all_dim", 0, 1e6);
  // A zero counts as absent, as in Transformers.
  const double beta_fast = rope.Number("beta_fast", 0, 1e9).value_or(0);
  const double beta_slow = rope.Number("beta_slow", 0, 1e9).value_or(0);
  if (beta_fast != 0) out->beta_fast = beta_fast;
  if (beta_slow != 0) out->beta_slow = beta_slow;
  out->truncate = rope.Bool("truncate").value_or(!rope.HasOrNull("truncate"));
  if (out->beta_fast < out->beta_slow) {
    rope.Fail(absl::InvalidArgumentError(absl::StrCat(rope.where(), ": beta_fast ", out->beta_fast,
                                                      " is below beta_slow ", out->beta_slow,
                                                      ", expected at least beta_slow")));
  }
  if (out->theta <= 1) {
    rope.Fail(absl::InvalidArgumentError(
        absl::StrCat(rope.where(), ": rope_theta is ", out->theta, ", expected above 1 for yarn")));
  }
}

void ReadLlama3(ConfigReader& rope, RopeParameters* out) {
  out->factor = RequiredRopeNumber(rope, "factor", out->type);
  out->low_freq_factor = RequiredRopeNumber(rope, "low_freq_factor", out->type);
  out->high_freq_factor = RequiredRopeNumber(rope, "high_freq_factor", out->type);
  if (rope.ok() && out->high_freq_factor <= out->low_freq_factor) {
    rope.Fail(absl::InvalidArgumentError(
        absl::StrCat(rope.where(), ": high_freq_factor ", out->high_freq_factor,
                     " is not above low_freq_factor ", out->low_freq_factor)));
  }
}

// The scaling parameters in `object`, with `theta` as the base unless the object has its own.
void ReadRopeObject(ConfigReader& reader, absl::string_view key, const json& object,
                    std::optional<double> theta, ModelConfig* config) {
  ConfigReader rope(object, absl::StrCat(reader.where(), ": ", key));
  RopeParameters& out = config->rope;
  const auto rope_type = rope.String("rope_type");
  const auto old_type = rope.String("type");
  if (rope.ok() && rope_type.has_value() && old_type.has_value() && *rope_type != *old_type) {
    rope.Fail(absl::InvalidArgumentError(
        absl::StrCat(rope.where(), ": rope_type is \"", Printable(*rope_type), "\" but type is \"",
                     Printable(*old_type), "\"; they must agree")));
  }
  if (rope.ok()) {
    const auto type =
        RopeTypeByName(rope_type.value_or(old_type.value_or("default")), rope.where());
    if (type.ok()) {
      out.type = *type;
    } else {
      rope.Fail(type.status());
    }
  }
  const auto own_theta = rope.Positive("rope_theta", 1e15);
  if (own_theta.has_value() && theta.has_value() && *own_theta != *theta) {
    rope.Fail(absl::InvalidArgumentError(absl::StrCat(rope.where(), ": rope_theta is ", *own_theta,
                                                      " but ", *theta,
                                                      " at the top of the file; they must agree")));
  }
  if (own_theta.has_value()) out.theta = *own_theta;
  const auto original = rope.Int("original_max_position_embeddings", 1, kMaxPositions);
  const auto top_original = reader.Int("original_max_position_embeddings", 1, kMaxPositions);
  if (out.type == RopeType::kLlama3 || out.type == RopeType::kYarn) {
    // The top of the file wins, as in Transformers.
    out.original_max_position_embeddings =
        top_original.value_or(original.value_or(config->max_position_embeddings));
  }
  if (rope.ok()) {
    if (out.type == RopeType::kLinear) out.factor = RequiredRopeNumber(rope, "factor", out.type);
    if (out.type == RopeType::kLlama3) ReadLlama3(rope, &out);
    if (out.type == RopeType::kYarn) ReadYarn(rope, *config, &out);
  }
  const auto partial = rope.Number("partial_rotary_factor", 0, 1);
  if (partial.has_value() && *partial != 1) {
    rope.Fail(absl::UnimplementedError(absl::StrCat(rope.where(), ": partial_rotary_factor is ",
                                                    *partial, "; only 1 is supported")));
  }
  for (const auto& [name, value] : object.items()) {
    if (rope.WasRead(name) || IsHarmless(name) || IsUnset(value)) continue;
    rope.Fail(absl::UnimplementedError(
        absl::StrCat(rope.where(), ": key \"", Printable(name), "\" is ", PrintableJson(value),
                     ", which rope type ", Name(out.type), " here does not know")));
  }
  reader.Fail(rope.status());
}

}  // namespace

void ReadRope(ConfigReader& reader, ModelConfig* config) {
  const auto theta = reader.Positive("rope_theta", 1e15);
  if (theta.has_value()) config->rope.theta = *theta;
  const json* chosen = nullptr;
  absl::string_view chosen_key;
  for (const absl::string_view key : {"rope_parameters", "rope_scaling"}) {
    const json* value = reader.Get(key);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      reader.Fail(key, *value, "an object {...} or null");
      return;
    }
    if (value->empty()) continue;
    if (chosen != nullptr && *chosen != *value) {
      reader.Fail(absl::InvalidArgumentError(
          absl::StrCat(reader.where(),
                       ": keys \"rope_parameters\" and \"rope_scaling\" are both "
                       "there and differ; remove one of them")));
      return;
    }
    chosen = value;
    chosen_key = key;
  }
  if (chosen != nullptr) ReadRopeObject(reader, chosen_key, *chosen, theta, config);
}

absl::string_view Name(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLinear:
      return "linear";
    case RopeType::kLlama3:
      return "llama3";
    case RopeType::kYarn:
      return "yarn";
  }
  return "";
}

}  // namespace phalanx::checkpoint
