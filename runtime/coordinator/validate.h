// Checks a request before it reaches the queue, so that a bad one never harms a neighbour.
#ifndef PHALANX_RUNTIME_COORDINATOR_VALIDATE_H_
#define PHALANX_RUNTIME_COORDINATOR_VALIDATE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "runtime/coordinator/request.h"

namespace phalanx::coordinator {

struct ModelLimits {
  int64_t vocab_size = 0;      // ids are 0 .. vocab_size - 1
  int64_t max_context = 0;     // tokens of prompt and answer together
  int64_t max_samples = 128;   // n
  int64_t max_logprobs = 128;  // K of logprobs and prompt_logprobs
  int64_t max_stop_strings = 64;
  int64_t max_stop_string_bytes = 1024;  // of each
  int64_t max_stop_token_ids = 1024;
  std::vector<int32_t> eos_token_ids = {};  // the model's
  int64_t max_logit_bias = 4096;            // entries
};

// INVALID_ARGUMENT whose message begins with the field's name as in GenerateRequest or
// SamplingParams, then what was found and what is allowed. `has_text`: there is a text decoder, so
// stop strings can be found.
absl::Status ValidateRequest(const GenerateRequest& request, const ModelLimits& limits,
                             bool has_text);

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_VALIDATE_H_
