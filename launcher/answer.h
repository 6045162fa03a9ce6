// An answer as `run` and `generate` print it: as text, or with `--json` as one JSON object (section
// 6 of the design).
#ifndef PHALANX_LAUNCHER_ANSWER_H_
#define PHALANX_LAUNCHER_ANSWER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/options.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::launcher {

// One finished answer.
struct Answer {
  std::string request_id;
  std::vector<int32_t> prompt_token_ids;
  std::vector<int32_t> token_ids;
  std::string text;
  std::string finish_reason;  // "stop", "length", or "error"
  std::string error;          // why, when finish_reason is "error"
  bool has_logprobs = false;
  std::vector<scheduler::TokenLogprobs> logprobs;
  bool has_prompt_logprobs = false;
  std::vector<scheduler::TokenLogprobs> prompt_logprobs;
  std::optional<int> index;  // the sample, when n > 1
  uint64_t seed = 0;
  int64_t cached_tokens = 0;
  std::string layout;
  double queue_ms = 0;
  double time_to_first_token_ms = 0;
  double total_ms = 0;
  int64_t preemptions = 0;
};

// One line without its end. Logprobs have 9 significant digits, so that equal text is equal bits;
// one that is minus infinity is null.
std::string ToJson(const Answer& answer);

// A line of its own that says which of several answers it is and how it ended, the prompt with its
// answer, and a line's end. `number` of the prompt counts from 1. Without a tokenizer (`has_text`
// false) the answer is its token ids.
std::string ToText(const Answer& answer, const Prompt& prompt, size_t number, bool has_text);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_ANSWER_H_
