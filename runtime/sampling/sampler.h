// Chooses tokens and computes logprobs from complete rows of logits.
//
// Rule R5 of the design: the order everywhere is logit descending, id ascending; a sample is the
// argmax of logit / T + Gumbel(counter) over the allowed ids (Gumbel-max trick: Maddison et al.,
// arXiv:1411.0030), so the answer depends on nothing but the row, the parameters and the counter.
// Logprobs are of the raw logits, before bias, penalties and temperature.
//
// Order of processing: logit_bias, repetition penalty (over prompt and generated tokens; positive
// logits are divided by it, others multiplied: Keskar et al., arXiv:1909.05858), frequency and
// presence penalty (over generated tokens), suppressed ids out (kernels::LogitEdit), then
// temperature, top_k, top_p (Holtzman et al., arXiv:1904.09751), min_p (arXiv:2407.01082;
// kernels::ChoiceRow says what each leaves).
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

  // Row i of `logits` [uses.size(), vocab_size] F32, raw, which lie on the kernels' device, is for
  // uses[i]. Rows are chosen from where they lie, all together, and may be changed on the way.
  //
  // choices[c], on the device, becomes what the c-th slot of all uses' samples chooses; the id is
  // -1 where no logit is a number above -infinity, or none is left unsuppressed. A slot's result is
  // appended with its sequence and an id of -1, which the caller fills in once the choices
  // are on the host: nobody waits for them here, unless logprobs are wanted. A row whose request
  // has those is copied to the host; they and the id are filled in at once. Of a prompt token's
  // logprob the target must be in the vocabulary.
  void SampleRows(kernels::TensorView logits, absl::Span<const LogitUse> uses,
                  kernels::Choice* choices);

  // The logprob of `target` (0 <= target < vocab_size) and the best k >= 0 of raw `logits`
  // [vocab_size]. Precondition: the device's memory is the host's.
  scheduler::TokenLogprobs Logprobs(absl::Span<const float> logits, int32_t target, int32_t k);

 private:
  // log(sum(exp(row))) as (max, log of the sum), merged over leaves by the tree of R2.
  struct Normalizer {
    float max = 0;
    float log_sum = 0;
  };
  // A raw row whose logprobs are wanted.
  struct RawRow {
    Normalizer normalizer;
    absl::Span<const float> logits;
    std::vector<float> copy;  // what `logits` names, where that isn't the device's own
  };
  enum class Wanted : uint8_t { kNo, kRow, kCopy };  // kCopy: the row is about to change
  // raw[i] is row i as it is now, where it is wanted; until the next call. Rows that lie side by
  // side are waited for together.
  void KeepRows(kernels::TensorView logits, absl::Span<const Wanted> wanted,
                std::vector<RawRow>& raw);
  // Of every row, at least one.
  std::vector<Normalizer> Normalize(kernels::TensorView rows);
  // Memory of the host that the device copies to fast.
  float* HostRows(int64_t floats);
  void FillLogprobs(const RawRow& row, int32_t k, scheduler::TokenLogprobs& out) const;
  // Adds to edits_ what bias, penalties and suppressed ids make of row `row`.
  void AddEdits(const scheduler::SequenceStep& step, int64_t row);
  // The edit of `id` in row `row`, the one at hand; null for an id that there isn't.
  kernels::LogitEdit* EditOf(int32_t id, int64_t row);

  kernels::Kernels* const kernels_;
  const int64_t vocab_size_;
  std::vector<std::pair<int64_t, int64_t>> leaves_;
  std::vector<int> program_;
  std::vector<kernels::MaxSum> leaf_sums_;
  kernels::Buffer host_rows_;
  std::vector<float> plain_host_rows_;  // where there is no more memory of that kind
  std::vector<kernels::LogitEdit> edits_;
  std::vector<int32_t> edit_of_;  // [vocab_size] index in edits_ of the row at hand, or -1
  std::vector<kernels::ChoiceRow> rows_;
  std::vector<kernels::Choice> fetched_;
};

}  // namespace phalanx::sampling

#endif  // PHALANX_RUNTIME_SAMPLING_SAMPLER_H_
