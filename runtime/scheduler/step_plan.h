// StepPlan and StepResult: the only two things that cross between control and compute. Plain
// values; workers keep no request state between steps but the tokens that the last one chose, so a
// plan holds all that a step needs and a new worker group can take over at any step.
#ifndef PHALANX_RUNTIME_SCHEDULER_STEP_PLAN_H_
#define PHALANX_RUNTIME_SCHEDULER_STEP_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/sampling/sampling_params.h"

namespace phalanx::scheduler {

// One token to choose from the logits of a sequence's last row. Several where the n samples of a
// request share their prompt's prefill.
struct SampleSlot {
  uint64_t sequence_id = 0;   // the sequence that the chosen token belongs to
  uint32_t sample_index = 0;  // 0 .. n - 1: part of the random counter (R5)
  friend bool operator==(const SampleSlot&, const SampleSlot&) = default;
};

// One sequence's part in a step: a prefill chunk or one decode row.
struct SequenceStep {
  uint64_t sequence_id = 0;
  std::vector<int32_t> token_ids;  // fed at positions start, start + 1, ...; at least one
  // >= 0: the one token to feed is what this slot of the plan before chooses, counting the samples
  // of all its sequences; token_ids is {0}. The plan was made before its result was known.
  int32_t pending_slot = -1;
  int32_t start = 0;  // absolute position of token_ids[0]
  // Physical block of every absolute block up to the last row's. With sequence parallelism ids run
  // over all sp ranks: id g lies on sp rank g / N, there as block g % N, N the blocks of a rank.
  std::vector<int32_t> block_table;
  std::vector<SampleSlot> samples;  // empty: nothing is chosen after this chunk
  sampling::SamplingParams sampling;
  std::vector<int32_t> suppressed;  // ids that may not be chosen now (min_tokens, stop ids)
  // All tokens so far, prompt first, the fed ones included; only when penalties are on.
  std::vector<int32_t> history;
  int32_t prompt_length = 0;  // the boundary in `history` and for prompt logprobs
  // Rows whose position + 1 is < prompt_length yield a prompt logprob when
  // sampling.prompt_logprobs >= 0; the last row's target then is:
  int32_t next_prompt_token = -1;
  friend bool operator==(const SequenceStep&, const SequenceStep&) = default;
};

struct BlockCopy {
  int32_t source = 0;
  int32_t destination = 0;
  friend bool operator==(const BlockCopy&, const BlockCopy&) = default;
};

struct StepPlan {
  uint64_t epoch = 0;             // of the worker group: results of another epoch are discarded
  uint64_t number = 0;            // rising from 1 inside an epoch
  std::vector<BlockCopy> copies;  // done in every layer before anything else
  std::vector<SequenceStep> sequences;

  int64_t num_tokens() const {
    int64_t n = 0;
    for (const SequenceStep& s : sequences) n += static_cast<int64_t>(s.token_ids.size());
    return n;
  }
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

struct RankedToken {
  int32_t id = -1;
  float logprob = 0;
  friend bool operator==(const RankedToken&, const RankedToken&) = default;
};

// A token with the logprob that the raw logits give it and, if asked for, the best K (logit
// descending, id ascending).
struct TokenLogprobs {
  int32_t id = -1;
  float logprob = 0;
  std::vector<RankedToken> top;
  friend bool operator==(const TokenLogprobs&, const TokenLogprobs&) = default;
};

struct SampleResult {
  uint64_t sequence_id = 0;
  TokenLogprobs token;  // id -1: the logits hold no number that could be chosen (NaN)
  friend bool operator==(const SampleResult&, const SampleResult&) = default;
};

struct SequenceResult {
  uint64_t sequence_id = 0;                    // as in the plan
  std::vector<SampleResult> samples;           // one per slot, in the plan's order
  std::vector<TokenLogprobs> prompt_logprobs;  // one per row that yields one, rising
  friend bool operator==(const SequenceResult&, const SequenceResult&) = default;
};

struct StepResult {
  uint64_t epoch = 0;
  uint64_t number = 0;
  std::vector<SequenceResult> sequences;  // in the plan's order
  int64_t compute_us = 0;                 // time that the sampling rank spent on the step
  // Tokens sent to each expert in this step, summed over layers; empty without experts.
  std::vector<int64_t> expert_tokens;
  friend bool operator==(const StepResult&, const StepResult&) = default;
};

}  // namespace phalanx::scheduler

#endif  // PHALANX_RUNTIME_SCHEDULER_STEP_PLAN_H_
