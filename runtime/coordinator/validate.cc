#include "runtime/coordinator/validate.h"

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx::coordinator {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxNameBytes = 256;
constexpr float kMaxTemperature = 1e4f;
constexpr float kMaxRepetitionPenalty = 100.0f;
constexpr float kMaxLogitBias = 1e4f;

template <typename... Parts>
absl::Status Invalid(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

absl::Status CheckInt(absl::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(field, "found ", value, ", allowed are ", least, " to ", most);
}

// A NaN is in no range.
absl::Status CheckFloat(absl::string_view field, float value, float least, float most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(field, "found ", value, ", allowed are ", least, " to ", most);
}

absl::Status CheckId(absl::string_view field, size_t index, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return Invalid(field, "entry ", index, " is token id ", id, ", but the vocabulary has ids 0 to ",
                 vocab_size - 1);
}

absl::Status CheckCount(absl::string_view field, size_t count, int64_t most) {
  if (static_cast<int64_t>(count) <= most) return absl::OkStatus();
  return Invalid(field, "found ", count, " entries, at most ", most, " are allowed");
}

absl::Status CheckSampling(const sampling::SamplingParams& p, const ModelLimits& limits) {
  const int64_t most_logprobs = std::min(limits.max_logprobs, limits.vocab_size);
  absl::Status status = CheckFloat("temperature", p.temperature, 0, kMaxTemperature);
  if (status.ok() && !(p.top_p > 0 && p.top_p <= 1)) {
    status = Invalid("top_p", "found ", p.top_p, ", it must be above 0 and at most 1");
  }
  status.Update(CheckInt("top_k", p.top_k, 0, kMaxInt32));
  status.Update(CheckFloat("min_p", p.min_p, 0, 1));
  if (status.ok() && !(p.repetition_penalty > 0 && p.repetition_penalty <= kMaxRepetitionPenalty)) {
    status = Invalid("repetition_penalty", "found ", p.repetition_penalty,
                     ", it must be above 0 and at most ", kMaxRepetitionPenalty);
  }
  status.Update(CheckFloat("frequency_penalty", p.frequency_penalty, -2, 2));
  status.Update(CheckFloat("presence_penalty", p.presence_penalty, -2, 2));
  // -1 stands for a field that the client has left out.
  if (p.logprobs != -1) status.Update(CheckInt("logprobs", p.logprobs, 0, most_logprobs));
  if (p.prompt_logprobs != -1) {
    status.Update(CheckInt("prompt_logprobs", p.prompt_logprobs, 0, most_logprobs));
  }
  status.Update(CheckCount("logit_bias", p.logit_bias.size(), limits.max_logit_bias));
  std::set<int32_t> biased;
  for (size_t i = 0; i < p.logit_bias.size() && status.ok(); ++i) {
    const auto& [id, bias] = p.logit_bias[i];
    status = CheckId("logit_bias", i, id, limits.vocab_size);
    status.Update(CheckFloat("logit_bias", bias, -kMaxLogitBias, kMaxLogitBias));
    if (status.ok() && !biased.insert(id).second) {
      status = Invalid("logit_bias", "token id ", id, " is there twice");
    }
  }
  return status;
}

absl::Status CheckPrompt(const GenerateRequest& request, const ModelLimits& limits) {
  const std::vector<int32_t>& prompt = request.prompt_token_ids;
  if (prompt.empty()) {
    return Invalid("prompt", "it has no tokens; at least one is needed");
  }
  if (static_cast<int64_t>(prompt.size()) >= limits.max_context) {
    return Invalid("prompt", "it has ", prompt.size(), " tokens, but the model's context of ",
                   limits.max_context, " tokens holds at most ", limits.max_context - 1,
                   " and one new token; shorten it");
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    absl::Status status = CheckId("prompt_token_ids", i, prompt[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const GenerateRequest& request, const ModelLimits& limits, bool has_text) {
  absl::Status status =
      CheckCount("stop_token_ids", request.stop_token_ids.size(), limits.max_stop_token_ids);
  for (size_t i = 0; i < request.stop_token_ids.size() && status.ok(); ++i) {
    status = CheckId("stop_token_ids", i, request.stop_token_ids[i], limits.vocab_size);
  }
  if (status.ok() && request.min_tokens > 0) {
    std::set<int32_t> banned(request.stop_token_ids.begin(), request.stop_token_ids.end());
    if (!request.ignore_eos) {
      banned.insert(limits.eos_token_ids.begin(), limits.eos_token_ids.end());
    }
    if (static_cast<int64_t>(banned.size()) >= limits.vocab_size) {
      status = Invalid("stop_token_ids", "with the end-of-sequence ids, all ", limits.vocab_size,
                       " ids of the vocabulary are there, which leaves none to choose below "
                       "min_tokens = ",
                       request.min_tokens);
    }
  }
  status.Update(CheckCount("stop", request.stop.size(), limits.max_stop_strings));
  if (status.ok() && !request.stop.empty() && !has_text) {
    status = Invalid("stop",
                     "stop strings need a tokenizer, and the model has none; use "
                     "stop_token_ids");
  }
  for (size_t i = 0; i < request.stop.size() && status.ok(); ++i) {
    const size_t bytes = request.stop[i].size();
    if (bytes == 0) {
      status = Invalid("stop", "entry ", i, " is empty");
    } else if (static_cast<int64_t>(bytes) > limits.max_stop_string_bytes) {
      status = Invalid("stop", "entry ", i, " has ", bytes, " bytes, at most ",
                       limits.max_stop_string_bytes, " are allowed");
    }
  }
  return status;
}

}  // namespace

absl::Status ValidateRequest(const GenerateRequest& request, const ModelLimits& limits,
                             bool has_text) {
  absl::Status status = CheckPrompt(request, limits);
  status.Update(CheckSampling(request.sampling, limits));
  if (request.max_tokens.has_value()) {
    status.Update(CheckInt("max_tokens", *request.max_tokens, 1, kMaxInt32));
  }
  status.Update(CheckInt("min_tokens", request.min_tokens, 0, kMaxInt32));
  if (status.ok() && request.max_tokens.has_value() && request.min_tokens > *request.max_tokens) {
    status = Invalid("min_tokens", "found ", request.min_tokens,
                     ", more than max_tokens = ", *request.max_tokens);
  }
  status.Update(CheckInt("n", request.n, 1, limits.max_samples));
  status.Update(CheckStops(request, limits, has_text));
  for (const auto& [field, text] :
       {std::pair<absl::string_view, const std::string&>("request_id", request.id),
        {"cache_salt", request.cache_salt}}) {
    if (status.ok() && text.size() > kMaxNameBytes) {
      status =
          Invalid(field, "found ", text.size(), " bytes, at most ", kMaxNameBytes, " are allowed");
    }
  }
  return status;
}

}  // namespace phalanx::coordinator
