#include "runtime/serving/request.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::serving {
namespace {

absl::Status Prefixed(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

absl::StatusOr<std::vector<int32_t>> PromptIds(const v1::GenerateRequest& request,
                                               const ModelInfo& model,
                                               const tokenizer::Tokenizer* tokenizer) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kTokenIds:
      return std::vector<int32_t>(request.token_ids().ids().begin(),
                                  request.token_ids().ids().end());
    case v1::GenerateRequest::kText: {
      const std::string& text = request.text();
      if (tokenizer == nullptr) {
        return absl::InvalidArgumentError("text: the model has no tokenizer; send token_ids");
      }
      if (text.empty()) {
        return absl::InvalidArgumentError(
            "text: is empty; to start from nothing send the id of the BOS token in token_ids");
      }
      if (model.max_prompt_bytes > 0 &&
          static_cast<int64_t>(text.size()) > model.max_prompt_bytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            "text: ", text.size(), " bytes cannot fit the context of ", model.context_length,
            " tokens, which holds less than ", model.max_prompt_bytes, " bytes; shorten it"));
      }
      tokenizer::EncodeOptions options;
      options.parse_special = request.parse_special_tokens();
      if (request.has_add_special_tokens()) {
        options.add_special_tokens = request.add_special_tokens();
      }
      absl::StatusOr<std::vector<int32_t>> ids = tokenizer->Encode(text, options);
      if (!ids.ok()) return Prefixed("text", ids.status());
      if (ids->empty()) return absl::InvalidArgumentError("text: has no tokens; write some text");
      return ids;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt: is missing; set text or token_ids");
}

// The coordinator writes "none" as -1; a client leaves the field out.
absl::Status CheckNotNegative(absl::string_view field, bool present, int64_t value) {
  if (!present || value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.", field, ": found ", value,
                   ", allowed are 0 and more; leave the field out for no logprobs"));
}

}  // namespace

absl::Status CheckModelName(absl::string_view name, const ModelInfo& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model: \"", name,
                                          "\" is not served here; this server has \"", model.name,
                                          "\" (leave the field empty for that)"));
}

v1::SamplingParams DefaultSampling(const ModelInfo& model) {
  const checkpoint::GenerationDefaults& d = model.defaults;
  v1::SamplingParams sampling;
  const bool greedy = !d.do_sample.value_or(false);
  sampling.set_temperature(greedy ? 0.0f : static_cast<float>(d.temperature.value_or(1.0)));
  sampling.set_top_p(static_cast<float>(d.top_p.value_or(1.0)));
  sampling.set_top_k(static_cast<int32_t>(
      std::clamp<int64_t>(d.top_k.value_or(0), 0, std::numeric_limits<int32_t>::max())));
  sampling.set_min_p(static_cast<float>(d.min_p.value_or(0.0)));
  sampling.set_repetition_penalty(static_cast<float>(d.repetition_penalty.value_or(1.0)));
  sampling.set_frequency_penalty(0);
  sampling.set_presence_penalty(0);
  sampling.set_n(1);
  sampling.set_min_tokens(0);
  if (d.max_new_tokens.has_value() && *d.max_new_tokens >= 1) {
    sampling.set_max_tokens(
        std::min<int64_t>(*d.max_new_tokens, std::numeric_limits<int32_t>::max()));
  }
  return sampling;
}

absl::StatusOr<coordinator::GenerateRequest> ToCoordinatorRequest(
    const v1::GenerateRequest& request, const ModelInfo& model,
    const tokenizer::Tokenizer* tokenizer) {
  absl::Status status = CheckModelName(request.model(), model);
  const v1::SamplingParams& asked = request.sampling();
  status.Update(CheckNotNegative("logprobs", asked.has_logprobs(), asked.logprobs()));
  status.Update(
      CheckNotNegative("prompt_logprobs", asked.has_prompt_logprobs(), asked.prompt_logprobs()));
  if (!status.ok()) return status;

  // Scalars that are present replace the defaults; repeated fields have none.
  v1::SamplingParams sampling = DefaultSampling(model);
  sampling.MergeFrom(asked);

  coordinator::GenerateRequest out;
  out.id = request.request_id();
  out.sampling.temperature = sampling.temperature();
  out.sampling.top_p = sampling.top_p();
  out.sampling.top_k = sampling.top_k();
  out.sampling.min_p = sampling.min_p();
  out.sampling.repetition_penalty = sampling.repetition_penalty();
  out.sampling.frequency_penalty = sampling.frequency_penalty();
  out.sampling.presence_penalty = sampling.presence_penalty();
  out.sampling.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  std::sort(out.sampling.logit_bias.begin(), out.sampling.logit_bias.end());
  if (sampling.has_logprobs()) out.sampling.logprobs = sampling.logprobs();
  if (sampling.has_prompt_logprobs()) out.sampling.prompt_logprobs = sampling.prompt_logprobs();
  if (sampling.has_seed()) out.seed = sampling.seed();
  if (sampling.has_max_tokens()) out.max_tokens = sampling.max_tokens();
  out.min_tokens = sampling.min_tokens();
  // A default is no promise: it gives way to what the request asks for.
  if (!asked.has_max_tokens() && out.max_tokens.has_value() && *out.max_tokens < out.min_tokens) {
    out.max_tokens.reset();
  }
  out.stop.assign(sampling.stop().begin(), sampling.stop().end());
  out.stop_token_ids.assign(sampling.stop_token_ids().begin(), sampling.stop_token_ids().end());
  out.ignore_eos = sampling.ignore_eos();
  out.n = sampling.n();
  out.cache_salt = request.cache_salt();
  out.skip_special_tokens = !request.show_special_tokens();

  // Last, as it may be long.
  absl::StatusOr<std::vector<int32_t>> ids = PromptIds(request, model, tokenizer);
  if (!ids.ok()) return ids.status();
  out.prompt_token_ids = *std::move(ids);
  return out;
}

absl::Status WithPublicFieldName(const absl::Status& status, bool from_text) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;
  const absl::string_view message = status.message();
  const size_t colon = message.find(':');
  if (colon == absl::string_view::npos) return status;
  const std::string field(message.substr(0, colon));
  const absl::string_view rest = message.substr(colon);
  const auto renamed = [&](absl::string_view name) {
    return absl::InvalidArgumentError(absl::StrCat(name, rest));
  };
  if (field == "prompt") return renamed(from_text ? "text" : "token_ids");
  if (field == "prompt_token_ids") return renamed(from_text ? "text" : "token_ids");
  if (v1::SamplingParams::descriptor()->FindFieldByName(field) != nullptr) {
    return renamed(absl::StrCat("sampling.", field));
  }
  return status;
}

}  // namespace phalanx::serving
