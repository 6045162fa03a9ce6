#include "launcher/answer.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace phalanx::launcher {
namespace {

using scheduler::RankedToken;
using scheduler::TokenLogprobs;

std::string Quote(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Number(float logprob) {
  return std::isfinite(logprob) ? absl::StrFormat("%.9g", logprob) : "null";
}

std::string List(const std::vector<TokenLogprobs>& tokens) {
  const auto ranked = [](std::string* out, const RankedToken& token) {
    absl::StrAppend(out, "{\"id\":", token.id, ",\"logprob\":", Number(token.logprob), "}");
  };
  const auto chosen = [&](std::string* out, const TokenLogprobs& token) {
    absl::StrAppend(out, "{\"id\":", token.id, ",\"logprob\":", Number(token.logprob), ",\"top\":[",
                    absl::StrJoin(token.top, ",", ranked), "]}");
  };
  return absl::StrCat("[", absl::StrJoin(tokens, ",", chosen), "]");
}

}  // namespace

std::string ToJson(const Answer& a) {
  std::string out = "{";
  if (!a.request_id.empty()) absl::StrAppend(&out, "\"id\":", Quote(a.request_id), ",");
  if (a.index.has_value()) absl::StrAppend(&out, "\"index\":", *a.index, ",");
  absl::StrAppend(&out, "\"prompt_token_ids\":[", absl::StrJoin(a.prompt_token_ids, ","),
                  "],\"token_ids\":[", absl::StrJoin(a.token_ids, ","),
                  "],\"text\":", Quote(a.text), ",\"finish_reason\":", Quote(a.finish_reason));
  if (!a.error.empty()) absl::StrAppend(&out, ",\"error\":", Quote(a.error));
  absl::StrAppend(&out, ",\"logprobs\":", a.has_logprobs ? List(a.logprobs) : "null");
  if (a.has_prompt_logprobs) {
    absl::StrAppend(&out, ",\"prompt_logprobs\":", List(a.prompt_logprobs));
  }
  absl::StrAppend(&out, ",\"seed\":", a.seed, ",\"cached_tokens\":", a.cached_tokens,
                  ",\"layout\":", Quote(a.layout),
                  absl::StrFormat(",\"timings\":{\"queue_ms\":%.3f,\"time_to_first_token_ms\":%.3f,"
                                  "\"total_ms\":%.3f,\"preemptions\":%d}}",
                                  a.queue_ms, a.time_to_first_token_ms, a.total_ms, a.preemptions));
  return out;
}

std::string ToText(const Answer& answer, const Prompt& prompt, size_t number, bool has_text) {
  std::string out = absl::StrCat("== prompt ", number);
  if (answer.index.has_value()) absl::StrAppend(&out, ", answer ", *answer.index + 1);
  absl::StrAppend(&out, " (", answer.finish_reason);
  if (!answer.error.empty()) absl::StrAppend(&out, ": ", answer.error);
  absl::StrAppend(&out, ")\n", prompt.text,
                  has_text ? answer.text : absl::StrJoin(answer.token_ids, ","), "\n");
  return out;
}

}  // namespace phalanx::launcher
