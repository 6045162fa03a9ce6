#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/check.h"
#include "kernels/order.h"
#include "kernels/scalar_math.h"
#include "parallel/leaves.h"

namespace phalanx::sampling {
namespace {

using kernels::MaxSum;
using scheduler::TokenLogprobs;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kVocabularyGranule = 32;

MaxSum Merge(MaxSum a, MaxSum b) {
  if (a.max == kNegativeInfinity) return b;
  if (b.max == kNegativeInfinity) return a;
  const float max = std::max(a.max, b.max);
  const float right = b.sum * kernels::ExpScalar(b.max - max);
  return {max, __builtin_fmaf(a.sum, kernels::ExpScalar(a.max - max), right)};
}

float TemperatureOf(const SamplingParams& p) {
  return p.temperature < kGreedyTemperature ? 0.0f : p.temperature;
}

kernels::ChoiceRow ChoiceOf(const scheduler::SequenceStep& step, int64_t row,
                            uint32_t sample_index) {
  const SamplingParams& p = step.sampling;
  const auto position = static_cast<uint32_t>(step.start + step.token_ids.size());
  return {row, TemperatureOf(p), p.top_k, p.top_p, p.min_p, {p.seed, position, sample_index, 0}};
}

bool HasEdits(const scheduler::SequenceStep& step) {
  return !step.sampling.logit_bias.empty() || step.sampling.has_penalties() ||
         !step.suppressed.empty();
}

}  // namespace

Sampler::Sampler(kernels::Kernels* kernels, int64_t vocab_size, int num_leaves)
    : kernels_(kernels), vocab_size_(vocab_size) {
  PHALANX_CHECK(vocab_size >= 1 && num_leaves >= 1) << vocab_size << " ids, leaves " << num_leaves;
  const parallel::LeafPartition partition(vocab_size, kVocabularyGranule, num_leaves);
  for (int i = 0; i < num_leaves; ++i) {
    const parallel::Range leaf = partition.leaf(i);
    leaves_.emplace_back(leaf.begin, leaf.end);
  }
  program_ = parallel::LeafProgram({0, num_leaves}, 0);
}

std::vector<Sampler::Normalizer> Sampler::Normalize(kernels::TensorView rows) {
  const size_t leaves = leaves_.size();
  leaf_sums_.resize(static_cast<size_t>(rows.rows) * leaves);
  kernels_->LogSumExpLeaves(rows, leaves_, absl::MakeSpan(leaf_sums_));
  std::vector<Normalizer> out;
  for (const MaxSum* sums = leaf_sums_.data(); out.size() < static_cast<size_t>(rows.rows);
       sums += leaves) {
    const MaxSum merged = parallel::RunTree<MaxSum>(
        program_, [sums](int i) { return sums[i]; }, Merge);
    out.push_back({merged.max, kernels::LogScalar(merged.sum)});
  }
  return out;
}

float* Sampler::HostRows(int64_t floats) {
  const auto bytes = static_cast<size_t>(floats) * sizeof(float);
  if (host_rows_.bytes() < bytes) {
    // More than is asked for, lest a batch that grows by a row at a time has it made anew each
    // time.
    const size_t room = std::max(bytes, 2 * host_rows_.bytes());
    host_rows_ = {};
    absl::StatusOr<kernels::Buffer> host = kernels_->AllocateHost(static_cast<int64_t>(room));
    if (host.ok()) host_rows_ = *std::move(host);
  }
  if (host_rows_.bytes() >= bytes) return host_rows_.as<float>();
  plain_host_rows_.resize(static_cast<size_t>(floats));
  return plain_host_rows_.data();
}

void Sampler::KeepRows(kernels::TensorView logits, absl::Span<const Wanted> wanted,
                       std::vector<RawRow>& raw) {
  const bool near = kernels_->host_accessible();
  const auto kept =
      std::count_if(wanted.begin(), wanted.end(), [](Wanted row) { return row != Wanted::kNo; });
  if (kept == 0) return;
  float* host = near ? nullptr : HostRows(kept * logits.stride);
  for (size_t begin = 0, end = 0; begin < wanted.size(); begin = end) {
    end = begin + 1;
    if (wanted[begin] == Wanted::kNo) continue;
    while (end < wanted.size() && wanted[end] != Wanted::kNo) ++end;
    const auto rows = static_cast<int64_t>(end - begin);
    float* const data = logits.f32() + static_cast<int64_t>(begin) * logits.stride;
    const std::vector<Normalizer> normalizers =
        Normalize({data, kernels::DType::kF32, rows, vocab_size_, logits.stride});
    const float* from = data;
    if (!near) {
      const int64_t floats = (rows - 1) * logits.stride + vocab_size_;
      kernels_->CopyOut(host, data, floats * static_cast<int64_t>(sizeof(float)));
      from = std::exchange(host, host + rows * logits.stride);
    }
    for (size_t i = begin; i < end; ++i, from += logits.stride) {
      raw[i].normalizer = normalizers[i - begin];
      raw[i].logits = absl::MakeConstSpan(from, static_cast<size_t>(vocab_size_));
      if (!near || wanted[i] != Wanted::kCopy) continue;
      raw[i].copy.assign(raw[i].logits.begin(), raw[i].logits.end());
      raw[i].logits = raw[i].copy;
    }
  }
}

void Sampler::FillLogprobs(const RawRow& row, int32_t k, TokenLogprobs& out) const {
  const auto logprob = [&](int32_t id) {
    return (row.logits[id] - row.normalizer.max) - row.normalizer.log_sum;
  };
  out.logprob = logprob(out.id);
  out.top.clear();
  for (const int32_t id : kernels::BestIds(row.logits, k)) out.top.push_back({id, logprob(id)});
  // Different logits may have one logprob, and the lower id is first: also where that is the last
  // place, for which others then stand.
  const auto before = [](const scheduler::RankedToken& a, const scheduler::RankedToken& b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
  };
  const size_t size = out.top.size();
  if (size > 0 && size < row.logits.size()) {
    const scheduler::RankedToken last = out.top.back();
    const kernels::BetterId better = {row.logits.data()};
    for (int32_t id = 0; id < static_cast<int32_t>(row.logits.size()); ++id) {
      if (logprob(id) == last.logprob && better(last.id, id)) out.top.push_back({id, last.logprob});
    }
  }
  std::sort(out.top.begin(), out.top.end(), before);
  out.top.resize(size);
}

TokenLogprobs Sampler::Logprobs(absl::Span<const float> logits, int32_t target, int32_t k) {
  PHALANX_CHECK(static_cast<int64_t>(logits.size()) == vocab_size_ && target >= 0 &&
                target < vocab_size_)
      << logits.size() << " logits, target " << target;
  // The op only reads its operand; views have no const form.
  const kernels::TensorView view{const_cast<float*>(logits.data()), kernels::DType::kF32, 1,
                                 vocab_size_, vocab_size_};
  TokenLogprobs out;
  out.id = target;
  FillLogprobs({Normalize(view)[0], logits, {}}, k, out);
  return out;
}

kernels::LogitEdit* Sampler::EditOf(int32_t id, int64_t row) {
  if (id < 0 || id >= vocab_size_) return nullptr;
  int32_t& index = edit_of_[id];
  if (index < 0) {
    index = static_cast<int32_t>(edits_.size());
    kernels::LogitEdit& edit = edits_.emplace_back();
    edit.row = row;
    edit.id = id;
  }
  return &edits_[index];
}

void Sampler::AddEdits(const scheduler::SequenceStep& step, int64_t row) {
  const SamplingParams& p = step.sampling;
  edit_of_.resize(vocab_size_, -1);
  const size_t first = edits_.size();
  for (const auto& [id, bias] : p.logit_bias) {
    if (kernels::LogitEdit* edit = EditOf(id, row)) edit->bias += bias;
  }
  if (p.has_penalties()) {
    const auto prompt_length = static_cast<size_t>(std::max(step.prompt_length, 0));
    for (size_t i = 0; i < step.history.size(); ++i) {
      kernels::LogitEdit* edit = EditOf(step.history[i], row);
      if (edit == nullptr) continue;
      edit->repetition = p.repetition_penalty;
      if (i < prompt_length) continue;
      edit->frequency += 1;  // counted here, weighed below
      edit->presence = p.presence_penalty;
    }
    for (size_t i = first; i < edits_.size(); ++i) edits_[i].frequency *= p.frequency_penalty;
  }
  for (const int32_t id : step.suppressed) {
    if (kernels::LogitEdit* edit = EditOf(id, row)) edit->suppressed = true;
  }
  for (size_t i = first; i < edits_.size(); ++i) edit_of_[edits_[i].id] = -1;
}

void Sampler::SampleRows(kernels::TensorView logits, absl::Span<const LogitUse> uses,
                         kernels::Choice* choices) {
  PHALANX_CHECK(logits.cols == vocab_size_ && logits.rows == static_cast<int64_t>(uses.size()))
      << logits.rows << " rows of " << logits.cols << " logits for " << uses.size()
      << " uses, vocabulary " << vocab_size_;
  edits_.clear();
  rows_.clear();
  std::vector<Wanted> wanted(uses.size(), Wanted::kNo);
  for (size_t i = 0; i < uses.size(); ++i) {
    const scheduler::SequenceStep& step = *uses[i].step;
    if (uses[i].target >= 0) {
      wanted[i] = Wanted::kRow;
    } else if (step.sampling.logprobs >= 0) {
      wanted[i] = HasEdits(step) ? Wanted::kCopy : Wanted::kRow;
    }
  }
  std::vector<RawRow> raw(uses.size());
  KeepRows(logits, wanted, raw);
  bool wants_ids = false;
  for (size_t i = 0; i < uses.size(); ++i) {
    const scheduler::SequenceStep& step = *uses[i].step;
    const auto row = static_cast<int64_t>(i);
    if (uses[i].target >= 0) continue;
    wants_ids |= step.sampling.logprobs >= 0;
    if (HasEdits(step)) AddEdits(step, row);
    for (const scheduler::SampleSlot& slot : step.samples) {
      rows_.push_back(ChoiceOf(step, row, slot.sample_index));
    }
  }
  kernels_->EditLogits(logits, edits_);
  kernels_->ChooseRows(logits, rows_, choices);
  if (wants_ids) {
    fetched_.resize(rows_.size());
    kernels_->CopyOut(fetched_.data(), choices,
                      static_cast<int64_t>(fetched_.size() * sizeof(kernels::Choice)));
  }
  size_t slots = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    const LogitUse& use = uses[i];
    const SamplingParams& p = use.step->sampling;
    if (use.target >= 0) {
      TokenLogprobs& out = use.result->prompt_logprobs.emplace_back();
      out.id = use.target;
      FillLogprobs(raw[i], p.prompt_logprobs, out);
      continue;
    }
    for (const scheduler::SampleSlot& slot : use.step->samples) {
      TokenLogprobs token;
      if (p.logprobs >= 0) {
        token.id = fetched_[slots].id;
        if (token.id >= 0) FillLogprobs(raw[i], p.logprobs, token);
      }
      use.result->samples.push_back({slot.sequence_id, std::move(token)});
      ++slots;
    }
  }
}

}  // namespace phalanx::sampling
