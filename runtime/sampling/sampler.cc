#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/check.h"
#include "kernels/scalar_math.h"
#include "parallel/leaves.h"

namespace phalanx::sampling {
namespace {

using kernels::MaxSum;
using scheduler::TokenLogprobs;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kVocabularyGranule = 32;

// The order of R5 over ids of one row.
struct Better {
  const float* row;
  bool operator()(int32_t a, int32_t b) const { return row[a] != row[b] ? row[a] > row[b] : a < b; }
};

MaxSum Merge(MaxSum a, MaxSum b) {
  if (a.max == kNegativeInfinity) return b;
  if (b.max == kNegativeInfinity) return a;
  const float max = std::max(a.max, b.max);
  const float right = b.sum * kernels::ExpScalar(b.max - max);
  return {max, __builtin_fmaf(a.sum, kernels::ExpScalar(a.max - max), right)};
}

// The k best ids of a row, best first; NaN and -infinity are never among them. Rising ids, so that
// an equal logit that comes later never displaces an earlier one.
std::vector<int32_t> BestIds(absl::Span<const float> row, int64_t k) {
  std::vector<int32_t> heap;  // the worst in front
  if (k <= 0) return heap;
  heap.reserve(std::min<int64_t>(k, static_cast<int64_t>(row.size())));
  const Better better{row.data()};
  float worst = kNegativeInfinity;
  for (int32_t id = 0; id < static_cast<int32_t>(row.size()); ++id) {
    if (!(row[id] > worst)) continue;
    if (static_cast<int64_t>(heap.size()) == k) {
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.pop_back();
    }
    heap.push_back(id);
    std::push_heap(heap.begin(), heap.end(), better);
    if (static_cast<int64_t>(heap.size()) == k) worst = row[heap.front()];
  }
  std::sort(heap.begin(), heap.end(), better);
  return heap;
}

bool NeedsCut(const SamplingParams& p) { return p.top_k > 0 || p.top_p < 1.0f || p.min_p > 0.0f; }

float TemperatureOf(const SamplingParams& p) {
  return p.temperature < kGreedyTemperature ? 0.0f : p.temperature;
}

kernels::GumbelKey KeyOf(const SamplingParams& p, int32_t position, uint32_t sample_index) {
  return {p.seed, static_cast<uint32_t>(position), sample_index, 0};
}

int32_t PositionOf(const scheduler::SequenceStep& step) {
  return step.start + static_cast<int32_t>(step.token_ids.size());
}

// Whether the row itself says which ids are allowed: nothing is added to it and nothing cut.
bool IsPlain(const SamplingParams& p, absl::Span<const int32_t> suppressed) {
  return p.logit_bias.empty() && !p.has_penalties() && suppressed.empty() &&
         (TemperatureOf(p) == 0 || !NeedsCut(p));
}

}  // namespace

Sampler::Sampler(kernels::Kernels* kernels, int64_t vocab_size, int num_leaves)
    : kernels_(kernels), vocab_size_(vocab_size), leaf_sums_(num_leaves) {
  PHALANX_CHECK(vocab_size >= 1 && num_leaves >= 1) << vocab_size << " ids, leaves " << num_leaves;
  const parallel::LeafPartition partition(vocab_size, kVocabularyGranule, num_leaves);
  for (int i = 0; i < num_leaves; ++i) {
    const parallel::Range leaf = partition.leaf(i);
    leaves_.emplace_back(leaf.begin, leaf.end);
  }
  program_ = parallel::LeafProgram({0, num_leaves}, 0);
}

MaxSum Sampler::MergedMaxSum(absl::Span<const float> row) {
  // The op only reads its operand; views have no const form.
  const kernels::TensorView view{const_cast<float*>(row.data()), kernels::DType::kF32, 1,
                                 vocab_size_, vocab_size_};
  kernels_->LogSumExpLeaves(view, leaves_, absl::MakeSpan(leaf_sums_));
  return parallel::RunTree<MaxSum>(
      program_, [this](int i) { return leaf_sums_[i]; }, Merge);
}

Sampler::Normalizer Sampler::Normalize(absl::Span<const float> row) {
  const MaxSum merged = MergedMaxSum(row);
  return {merged.max, kernels::LogScalar(merged.sum)};
}

void Sampler::FillLogprobs(absl::Span<const float> logits, const Normalizer& normalizer, int32_t k,
                           TokenLogprobs& out) {
  const auto logprob = [&](int32_t id) {
    return (logits[id] - normalizer.max) - normalizer.log_sum;
  };
  out.logprob = logprob(out.id);
  out.top.clear();
  for (const int32_t id : BestIds(logits, k)) out.top.push_back({id, logprob(id)});
}

TokenLogprobs Sampler::Logprobs(absl::Span<const float> logits, int32_t target, int32_t k) {
  PHALANX_CHECK(static_cast<int64_t>(logits.size()) == vocab_size_ && target >= 0 &&
                target < vocab_size_)
      << logits.size() << " logits, target " << target;
  TokenLogprobs out;
  out.id = target;
  FillLogprobs(logits, Normalize(logits), k, out);
  return out;
}

void Sampler::ApplyPenalties(const SampleRequest& request) {
  const SamplingParams& p = *request.params;
  counts_.resize(vocab_size_);
  // First every token of the text is marked (kSeen), generated ones are counted on top of it; then
  // each is handled once and its mark cleared.
  constexpr int32_t kSeen = 1 << 30;
  const size_t prompt_length =
      std::min<size_t>(std::max(request.prompt_length, 0), request.history.size());
  for (size_t i = 0; i < request.history.size(); ++i) {
    const int32_t id = request.history[i];
    if (id < 0 || id >= vocab_size_) continue;
    counts_[id] |= kSeen;
    if (i >= prompt_length) ++counts_[id];
  }
  for (const int32_t id : request.history) {
    if (id < 0 || id >= vocab_size_ || counts_[id] == 0) continue;
    const int32_t generated = counts_[id] & ~kSeen;
    counts_[id] = 0;
    float& logit = scratch_[id];
    if (p.repetition_penalty != 1.0f) {
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    }
    if (generated > 0) {
      logit -= static_cast<float>(generated) * p.frequency_penalty;
      logit -= p.presence_penalty;
    }
  }
}

absl::Span<const float> Sampler::Prepare(absl::Span<const float> logits,
                                         const SampleRequest& request, bool must_copy) {
  const SamplingParams& p = *request.params;
  if (!must_copy && p.logit_bias.empty() && !p.has_penalties() && request.suppressed.empty()) {
    return logits;
  }
  scratch_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : p.logit_bias) {
    if (id >= 0 && id < vocab_size_) scratch_[id] += bias;
  }
  if (p.has_penalties()) ApplyPenalties(request);
  for (const int32_t id : request.suppressed) {
    if (id >= 0 && id < vocab_size_) scratch_[id] = kNegativeInfinity;
  }
  return scratch_;
}

float Sampler::Cut(const SamplingParams& p) {
  const Better better{scratch_.data()};
  const int32_t vocab = static_cast<int32_t>(vocab_size_);
  float max = kNegativeInfinity;
  for (const float x : scratch_) max = x > max ? x : max;
  if (!std::isfinite(max)) return max;  // nothing to choose from, or nothing but infinity
  const float scaled_max = max / p.temperature;
  // The share of an id relative to the best one: exp(logit / T - max / T).
  const auto weight = [&](int32_t id) {
    return kernels::ExpScalar(scratch_[id] / p.temperature - scaled_max);
  };

  // candidates_[0, sorted) is in order, what follows is worse and in no order; everything outside
  // candidates_ is worse still.
  size_t sorted = 0;
  const auto sort_more = [&](size_t count) {
    if (count == 0) return;
    const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
    count = std::min(count, candidates_.size() - sorted);
    const auto middle = begin + static_cast<std::ptrdiff_t>(count);
    if (middle != candidates_.end()) std::nth_element(begin, middle, candidates_.end(), better);
    std::sort(begin, middle, better);
    sorted += count;
  };
  // Everything whose logit / T is within `reach` of the best; a wider reach keeps what was sorted,
  // because all of it is better than the new ones.
  const auto collect = [&](float reach) {
    const float least = max - reach * p.temperature;
    candidates_.clear();
    for (int32_t id = 0; id < vocab; ++id) {
      if (scratch_[id] >= least && scratch_[id] > kNegativeInfinity) candidates_.push_back(id);
    }
    const size_t done = std::exchange(sorted, 0);
    sort_more(done);
  };

  size_t kept = 0;
  if (p.top_k > 0 && p.top_k < vocab_size_) {
    candidates_ = BestIds(scratch_, p.top_k);
    sorted = kept = candidates_.size();
    if (p.top_p < 1.0f) {
      double total = 0;
      for (const int32_t id : candidates_) total += weight(id);
      double sum = 0;
      for (kept = 0; kept < sorted && (kept == 0 || sum < p.top_p * total); ++kept) {
        sum += weight(candidates_[kept]);
      }
    }
  } else if (p.top_p < 1.0f) {
    scaled_.resize(vocab_size_);
    for (int32_t id = 0; id < vocab; ++id) scaled_[id] = scratch_[id] / p.temperature;
    const double wanted = p.top_p * static_cast<double>(MergedMaxSum(scaled_).sum);
    double sum = 0;
    constexpr float kEverything = std::numeric_limits<float>::infinity();
    for (const float reach : {8.0f, 16.0f, 32.0f, kEverything}) {
      collect(reach);
      while (kept == 0 || sum < wanted) {
        if (kept == sorted) sort_more(std::max<size_t>(64, 3 * sorted));
        if (kept == sorted) break;
        sum += weight(candidates_[kept++]);
      }
      if (sum >= wanted) break;
    }
  } else {  // min_p alone
    const float reach =
        p.min_p > 0 ? 1.0f - kernels::LogScalar(p.min_p) : std::numeric_limits<float>::infinity();
    collect(reach);
    // No order is needed to find the worst id that min_p leaves.
    int32_t worst = -1;
    for (const int32_t id : candidates_) {
      if (weight(id) >= p.min_p && (worst < 0 || better(worst, id))) worst = id;
    }
    return scratch_[worst];  // all that tie with it stay
  }
  // Shares fall along the order, so min_p cuts a tail of what is kept. The best always stays.
  if (p.min_p > 0) {
    while (kept > 1 && weight(candidates_[kept - 1]) < p.min_p) --kept;
  }
  const int32_t last = candidates_[kept - 1];
  const float threshold = scratch_[last];
  // Those that tie with the last one kept have higher ids.
  for (int32_t id = last + 1; id < vocab; ++id) {
    if (scratch_[id] == threshold) scratch_[id] = kNegativeInfinity;
  }
  return threshold;
}

int32_t Sampler::ChooseId(absl::Span<const float> logits, const SampleRequest& request) {
  const SamplingParams& p = *request.params;
  const bool cut = TemperatureOf(p) > 0 && NeedsCut(p);
  const absl::Span<const float> row = Prepare(logits, request, cut);
  const float threshold = cut ? Cut(p) : kNegativeInfinity;
  const kernels::Choice choice = kernels_->GumbelArgmax(
      row, 0, TemperatureOf(p), threshold, KeyOf(p, request.position, request.sample_index));
  return choice.value > kNegativeInfinity ? choice.id : -1;
}

TokenLogprobs Sampler::Choose(absl::Span<const float> logits, const SampleRequest& request) {
  PHALANX_CHECK(static_cast<int64_t>(logits.size()) == vocab_size_)
      << logits.size() << " logits, vocabulary " << vocab_size_;
  TokenLogprobs out;
  out.id = ChooseId(logits, request);
  if (out.id >= 0 && request.params->logprobs >= 0) {
    FillLogprobs(logits, Normalize(logits), request.params->logprobs, out);
  }
  return out;
}

std::vector<scheduler::SampleResult> Sampler::SampleStep(absl::Span<const float> logits,
                                                         const scheduler::SequenceStep& step) {
  std::vector<scheduler::SampleResult> results;
  results.reserve(step.samples.size());
  for (const scheduler::SampleSlot& slot : step.samples) {
    SampleRequest request;
    request.params = &step.sampling;
    request.suppressed = step.suppressed;
    request.history = step.history;
    request.prompt_length = step.prompt_length;
    request.position = PositionOf(step);
    request.sample_index = slot.sample_index;
    results.push_back({slot.sequence_id, Choose(logits, request)});
  }
  return results;
}

absl::Span<const float> Sampler::OnHost(kernels::TensorView logits, int64_t row) {
  const float* data = logits.f32() + row * logits.stride;
  if (!kernels_->host_accessible()) {
    host_row_.resize(vocab_size_);
    kernels_->CopyOut(host_row_.data(), data, vocab_size_ * static_cast<int64_t>(sizeof(float)));
    data = host_row_.data();
  }
  return absl::MakeConstSpan(data, vocab_size_);
}

void Sampler::SampleRows(kernels::TensorView logits, absl::Span<const LogitUse> uses) {
  PHALANX_CHECK(logits.cols == vocab_size_ && logits.rows == static_cast<int64_t>(uses.size()))
      << logits.rows << " rows of " << logits.cols << " logits for " << uses.size()
      << " uses, vocabulary " << vocab_size_;
  const auto is_plain = [](const LogitUse& use) {
    const SamplingParams& p = use.step->sampling;
    return use.target < 0 && p.logprobs < 0 && IsPlain(p, use.step->suppressed);
  };
  plain_rows_.clear();
  for (size_t i = 0; i < uses.size(); ++i) {
    if (!is_plain(uses[i])) continue;
    const scheduler::SequenceStep& step = *uses[i].step;
    for (const scheduler::SampleSlot& slot : step.samples) {
      plain_rows_.push_back({static_cast<int64_t>(i), TemperatureOf(step.sampling),
                             kNegativeInfinity,
                             KeyOf(step.sampling, PositionOf(step), slot.sample_index)});
    }
  }
  choices_.resize(plain_rows_.size());
  if (!plain_rows_.empty()) {
    kernels_->GumbelArgmaxRows(logits, plain_rows_, absl::MakeSpan(choices_));
  }
  auto choice = choices_.begin();
  for (size_t i = 0; i < uses.size(); ++i) {
    const LogitUse& use = uses[i];
    if (is_plain(use)) {
      for (const scheduler::SampleSlot& slot : use.step->samples) {
        TokenLogprobs token;
        token.id = choice->value > kNegativeInfinity ? choice->id : -1;
        use.result->samples.push_back({slot.sequence_id, token});
        ++choice;
      }
      continue;
    }
    const absl::Span<const float> row = OnHost(logits, static_cast<int64_t>(i));
    if (use.target >= 0) {
      use.result->prompt_logprobs.push_back(
          Logprobs(row, use.target, use.step->sampling.prompt_logprobs));
    } else {
      for (scheduler::SampleResult& result : SampleStep(row, *use.step)) {
        use.result->samples.push_back(std::move(result));
      }
    }
  }
}

}  // namespace phalanx::sampling
