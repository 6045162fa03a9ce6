// Chooses tokens and computes logprobs from complete rows of logits.
//
// Rule R5 of the design: the order everywhere is logit descending, id ascending; a sample is the
// argmax of logit / T + Gumbel(counter) over the allowed ids (Gumbel-max trick: Maddison et al.,
// arXiv:1411.0030), so the answer depends on nothing but the row, the parameters and the counter.
// Logprobs are of the raw logits, before bias, penalties and temperature.
//
// Order of processing: logit_bias, repetition penalty (over prompt and generated tokens; positive
// logits are divided by it, others multiplied: Keskar et al., arXiv:1909.05858), frequency and
// presence penalty (over generated tokens), suppressed ids out, then temperature, top_k, top_p
// (the shortest prefix of the order whose share of the softmax that top_k left is at least top_p;
// Holtzman et al., arXiv:1904.09751), min_p (ids whose probability is at least min_p times the
// greatest; arXiv:2407.01082).
#ifndef PHALANX_RUNTIME_SAMPLING_SAMPLER_H_
#define PHALANX_RUNTIME_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/kernels.h"
#include "runtime/sampling/sampling_params.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::sampling {

// Below this a temperature means greedy: logit / T would leave the range of floats.
inline constexpr float kGreedyTemperature = 1e-5f;

// One choice. Borrows; valid during the call.
struct SampleRequest {
  const SamplingParams* params = nullptr;
  absl::Span<const int32_t> suppressed;  // ids that may not be chosen
  // Tokens so far, prompt first; read only when params->has_penalties().
  absl::Span<const int32_t> history;
  int32_t prompt_length = 0;  // how many of `history` are the prompt's
  int32_t position = 0;       // absolute position of the token being chosen
  uint32_t sample_index = 0;  // 0 .. n - 1
};

// One row of a step's logits, and what it is for. Borrows.
struct LogitUse {
  const scheduler::SequenceStep* step = nullptr;
  int32_t target = -1;  // a prompt token whose logprob is wanted; -1: tokens for step->samples
  scheduler::SequenceResult* result = nullptr;  // what the row gives is appended here
};

// Not thread-safe: one thread at a time, the one that owns `kernels`. Keeps a few rows of scratch.
class Sampler {
 public:
  // `kernels` is borrowed and must outlive the sampler. `vocab_size` >= 1 ids in a row;
  // `num_leaves`: the profile's reduction_leaves L (>= 1).
  Sampler(kernels::Kernels* kernels, int64_t vocab_size, int num_leaves);

  // Chooses from `logits` [vocab_size] (F32, raw). logprob and top are filled when
  // params->logprobs >= 0 (top holds that many, or the whole vocabulary if it is smaller), else
  // logprob is 0. id is -1 when no logit is a number above -infinity, or none is left unsuppressed.
  // Greedy without bias, penalties and suppressed ids is one pass and copies nothing.
  scheduler::TokenLogprobs Choose(absl::Span<const float> logits, const SampleRequest& request);

  // The logprob of `target` (0 <= target < vocab_size) and the best k >= 0 of raw `logits`.
  scheduler::TokenLogprobs Logprobs(absl::Span<const float> logits, int32_t target, int32_t k);

  // All slots of one sequence's step from its last row: equals Choose for each of step.samples with
  // position step.start + step.token_ids.size().
  std::vector<scheduler::SampleResult> SampleStep(absl::Span<const float> logits,
                                                  const scheduler::SequenceStep& step);

  // The worker's one call: row i of `logits` [uses.size(), vocab_size] F32, which lie on the
  // kernels' device, is for uses[i]. Equals SampleStep or Logprobs row by row. A row leaves the
  // device only where its request has logprobs, penalties, a bias, suppressed ids or a cut; the
  // other rows' tokens are chosen there, together.
  void SampleRows(kernels::TensorView logits, absl::Span<const LogitUse> uses);

 private:
  // log(sum(exp(row))) as (max, log of the sum), merged over leaves by the tree of R2.
  struct Normalizer {
    float max = 0;
    float log_sum = 0;
  };
  // Row `row` of `logits` on the host: itself, or a copy in host_row_.
  absl::Span<const float> OnHost(kernels::TensorView logits, int64_t row);
  kernels::MaxSum MergedMaxSum(absl::Span<const float> row);
  Normalizer Normalize(absl::Span<const float> row);
  void FillLogprobs(absl::Span<const float> logits, const Normalizer& normalizer, int32_t k,
                    scheduler::TokenLogprobs& out);
  // The row to choose from: `logits` itself, or the scratch row with bias, penalties and
  // suppressed ids applied. `must_copy`: the caller is going to exclude ids.
  absl::Span<const float> Prepare(absl::Span<const float> logits, const SampleRequest& request,
                                  bool must_copy);
  void ApplyPenalties(const SampleRequest& request);
  // Cuts scratch_ by top_k, top_p and min_p; returns the least logit allowed. Ids that tie with it
  // but come after the cut are excluded from scratch_.
  float Cut(const SamplingParams& params);
  int32_t ChooseId(absl::Span<const float> logits, const SampleRequest& request);

  kernels::Kernels* const kernels_;
  const int64_t vocab_size_;
  std::vector<std::pair<int64_t, int64_t>> leaves_;
  std::vector<int> program_;
  std::vector<kernels::MaxSum> leaf_sums_;
  std::vector<float> host_row_;  // [vocab_size], where rows lie on a device
  std::vector<kernels::GumbelRow> plain_rows_;
  std::vector<kernels::Choice> choices_;
  std::vector<float> scratch_;  // [vocab_size], allocated when first needed
  std::vector<float> scaled_;   // [vocab_size], allocated when first needed
  std::vector<int32_t> candidates_;
  std::vector<int32_t> counts_;  // [vocab_size] occurrences of a token in the text; kept at zero
};

}  // namespace phalanx::sampling

#endif  // PHALANX_RUNTIME_SAMPLING_SAMPLER_H_
