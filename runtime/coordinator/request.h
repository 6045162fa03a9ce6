// What a client asks of the coordinator, and what it hears back.
#ifndef PHALANX_RUNTIME_COORDINATOR_REQUEST_H_
#define PHALANX_RUNTIME_COORDINATOR_REQUEST_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/sampling/sampling_params.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::coordinator {

// `max_tokens`, `n` and the like are 64-bit so that what a client sent is checked, not wrapped.
struct GenerateRequest {
  std::string id;  // empty: the coordinator makes one up. At most 256 bytes
  std::vector<int32_t> prompt_token_ids;
  // sampling.seed is overwritten: by `seed` or, where that is absent, by a drawn one.
  sampling::SamplingParams sampling;
  std::optional<uint64_t> seed;
  // Tokens to generate per sample, 1 .. 2^31 - 1; absent: up to the context. Generation that
  // reaches the context ends there with kLength.
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;  // before that many no eos, stop id or stop string ends a sample
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;  // stop strings, UTF-8; found across token borders
  bool ignore_eos = false;
  int64_t n = 1;  // samples
  // Prefixes are shared only among requests of equal salt. At most 256 bytes.
  std::string cache_salt;
  bool skip_special_tokens = true;  // for the text decoder
  absl::Time deadline = absl::InfiniteFuture();
};

struct RequestHandle {
  std::string id;
  uint64_t seed = 0;  // the one in use
};

using FinishReason = scheduler::FinishReason;

// What is new of one sample.
struct SampleOutput {
  int sample_index = 0;
  // One per token, in order. The eos or stop id that ended a sample is among them; its text isn't
  // in `text`.
  std::vector<scheduler::TokenLogprobs> tokens;
  // Valid UTF-8. Text that may be the beginning of a stop string comes later or never: the stop
  // string itself is never part of it.
  std::string text;
  FinishReason finish = FinishReason::kNone;  // else: the sample's last output
  int32_t stop_token_id = -1;                 // kStop: the eos or stop id that ended it, or
  std::string stop_string;                    // the stop string
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;      // prompt tokens that a prefix hit saved at first admission
  int64_t completion_tokens = 0;  // over all samples, eos and stop ids included
  int64_t preemptions = 0;
  absl::Duration queue_time;           // from Submit to the first plan that holds the request
  absl::Duration time_to_first_token;  // from Submit; zero if there is none
  absl::Duration total_time;
};

struct Event {
  std::string request_id;
  uint64_t seed = 0;
  std::vector<SampleOutput> outputs;  // rising sample_index
  // In the first event that holds tokens, when asked for: entry i is of prompt token i + 1.
  std::vector<scheduler::TokenLogprobs> prompt_logprobs;
  bool done = false;    // the last event; exactly one per accepted request
  absl::Status status;  // done: OK, or why the request ended early (CANCELLED, DEADLINE_EXCEEDED,
                        // UNAVAILABLE: the ranks are gone, INTERNAL: the model gave no number)
  Usage usage;          // done
};

// Called from the coordinator's loop thread, for one request never twice at once; must not block
// and must not call Stop() or Drain(). May run before Submit() has returned.
using EventCallback = std::function<void(const Event&)>;

// Text of one sample, token by token. Emits only whole characters; used by one thread.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // The text that `token_id` completes; often empty inside a multi-byte character.
  virtual std::string Push(int32_t token_id) = 0;
  // What is left when the sample ends: U+FFFD for bytes that never became a character.
  virtual std::string Flush() = 0;
};
// Makes a decoder for one sample of `request`. Called from the loop thread.
using TextDecoderFactory =
    std::function<std::unique_ptr<TextDecoder>(const GenerateRequest& request)>;

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_REQUEST_H_
