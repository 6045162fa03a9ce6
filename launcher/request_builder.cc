#include "launcher/request_builder.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace phalanx::launcher {
namespace {

// A 64-bit flag into a 32-bit field: refused, not wrapped.
template <typename Set>
absl::Status SetInt32(const char* flag, const std::optional<int64_t>& value, Set set) {
  if (!value.has_value()) return absl::OkStatus();
  if (*value < std::numeric_limits<int32_t>::min() ||
      *value > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " ", *value, " is out of range; it must fit 32 bits"));
  }
  set(static_cast<int32_t>(*value));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::GenerateRequest> BuildRequest(const RequestOptions& o, const Prompt& prompt) {
  v1::GenerateRequest request;
  request.set_request_id(prompt.id);
  if (prompt.is_text) {
    request.set_text(prompt.text);
  } else {
    request.mutable_token_ids()->mutable_ids()->Add(prompt.token_ids.begin(),
                                                    prompt.token_ids.end());
  }
  request.set_parse_special_tokens(o.parse_special);
  if (o.no_special_tokens) request.set_add_special_tokens(false);
  request.set_cache_salt(o.cache_salt);

  v1::SamplingParams& s = *request.mutable_sampling();
  if (o.temperature) s.set_temperature(static_cast<float>(*o.temperature));
  if (o.top_p) s.set_top_p(static_cast<float>(*o.top_p));
  if (o.min_p) s.set_min_p(static_cast<float>(*o.min_p));
  if (o.repetition_penalty) s.set_repetition_penalty(static_cast<float>(*o.repetition_penalty));
  if (o.frequency_penalty) s.set_frequency_penalty(static_cast<float>(*o.frequency_penalty));
  if (o.presence_penalty) s.set_presence_penalty(static_cast<float>(*o.presence_penalty));
  absl::Status status = SetInt32("--top-k", o.top_k, [&](int32_t v) { s.set_top_k(v); });
  status.Update(SetInt32("--logprobs", o.logprobs, [&](int32_t v) { s.set_logprobs(v); }));
  status.Update(SetInt32("--prompt-logprobs", o.prompt_logprobs,
                         [&](int32_t v) { s.set_prompt_logprobs(v); }));
  status.Update(SetInt32("--n", o.n, [&](int32_t v) { s.set_n(v); }));
  if (!status.ok()) return status;
  const std::optional<uint64_t> seed = prompt.seed ? prompt.seed : o.seed;
  if (seed) s.set_seed(*seed);
  const std::optional<int64_t> max_tokens = prompt.max_tokens ? prompt.max_tokens : o.max_tokens;
  if (max_tokens) s.set_max_tokens(*max_tokens);
  if (o.min_tokens != 0) s.set_min_tokens(o.min_tokens);
  for (const std::string& stop : o.stop) s.add_stop(stop);
  for (const int32_t id : o.stop_token_ids) s.add_stop_token_ids(id);
  s.set_ignore_eos(o.ignore_eos);
  auto bias = ParseLogitBias(o.logit_bias);
  if (!bias.ok()) return bias.status();
  for (const auto& [id, value] : *bias) (*s.mutable_logit_bias())[id] = value;
  return request;
}

}  // namespace phalanx::launcher
