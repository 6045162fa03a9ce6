// A stand-in for the ranks' compute that keeps a KV memory: the token it gives depends on the
// content of every slot that the block table names, so wrong accounting changes the answer.
#ifndef PHALANX_TESTS_TESTING_FAKE_MODEL_H_
#define PHALANX_TESTS_TESTING_FAKE_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::testing {

class FakeModel {
 public:
  FakeModel(int64_t num_blocks, int32_t block_tokens, int32_t vocab_size)
      : block_tokens_(block_tokens),
        vocab_size_(vocab_size),
        kv_(num_blocks * block_tokens, 0),
        written_in_(num_blocks * block_tokens, 0) {}

  // Empty: every plan so far was sound. Else the first thing wrong.
  const std::string& error() const { return error_; }

  scheduler::StepResult Run(const scheduler::StepPlan& plan) {
    ++step_;
    scheduler::StepResult result;
    result.epoch = plan.epoch;
    result.number = plan.number;
    std::vector<char> copied(kv_.size() / block_tokens_, 0);
    for (const scheduler::BlockCopy& copy : plan.copies) {
      // Ranks may copy in any order.
      if (copied[copy.source] == 2 || copied[copy.destination] != 0) Wrong("copies overlap");
      copied[copy.source] = 1;
      copied[copy.destination] = 2;
      std::copy_n(kv_.begin() + copy.source * block_tokens_, block_tokens_,
                  kv_.begin() + copy.destination * block_tokens_);
    }
    std::vector<scheduler::SequenceStep> steps = plan.sequences;
    for (scheduler::SequenceStep& s : steps) Resolve(plan, s);
    for (const scheduler::SequenceStep& s : steps) Write(s);
    for (const scheduler::SequenceStep& s : steps) result.sequences.push_back(Read(s));
    chosen_.clear();
    for (const scheduler::SequenceResult& s : result.sequences) {
      for (const scheduler::SampleResult& sample : s.samples) chosen_.push_back(sample);
    }
    last_number_ = plan.number;
    return result;
  }

  // The token that the model gives after `tokens`, computed from nothing but the rule.
  static scheduler::TokenLogprobs Next(const std::vector<int32_t>& tokens,
                                       const sampling::SamplingParams& params,
                                       uint32_t sample_index, int64_t prompt_length,
                                       const std::vector<int32_t>& suppressed, int32_t vocab_size) {
    std::vector<uint64_t> values;
    for (const int32_t t : tokens) values.push_back(Value(values.empty() ? 0 : values.back(), t));
    return Choose(Fold(values), params, sample_index, prompt_length,
                  static_cast<int64_t>(tokens.size()), suppressed, vocab_size);
  }

  // The logprob of prompt token `position`.
  static float PromptLogprob(const std::vector<int32_t>& prompt, int64_t position) {
    uint64_t value = 0;
    for (int64_t i = 0; i < position; ++i) value = Value(value, prompt[i]);
    return -static_cast<float>(Mix(value, prompt[position]) % 1000);
  }

 private:
  static uint64_t Mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9e3779b97f4a7c15 + b + 0x7f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  static uint64_t Value(uint64_t before, int32_t token) {
    return Mix(before, static_cast<uint64_t>(token) + 1);
  }
  static uint64_t Fold(const std::vector<uint64_t>& values) {
    uint64_t sum = 0;
    for (const uint64_t v : values) sum = Mix(sum, v);
    return sum;
  }
  static scheduler::TokenLogprobs Choose(uint64_t state, const sampling::SamplingParams& params,
                                         uint32_t sample_index, int64_t prompt_length,
                                         int64_t position, const std::vector<int32_t>& suppressed,
                                         int32_t vocab_size) {
    state = Mix(Mix(Mix(state, params.seed), sample_index), position);
    if (params.has_penalties()) state = Mix(state, prompt_length);
    scheduler::TokenLogprobs token;
    token.id = static_cast<int32_t>(state % vocab_size);
    while (std::find(suppressed.begin(), suppressed.end(), token.id) != suppressed.end()) {
      token.id = (token.id + 1) % vocab_size;
    }
    if (params.logprobs >= 0) token.logprob = -static_cast<float>(state >> 44);
    return token;
  }

  void Wrong(const std::string& what) {
    if (error_.empty()) error_ = absl::StrCat("step ", step_, ": ", what);
  }
  int64_t Slot(const scheduler::SequenceStep& s, int64_t position) {
    const int64_t index = position / block_tokens_;
    if (index >= static_cast<int64_t>(s.block_table.size())) {
      Wrong("a block table is too short");
      return 0;
    }
    return s.block_table[index] * block_tokens_ + position % block_tokens_;
  }

  // Puts the token in that the plan before chose.
  void Resolve(const scheduler::StepPlan& plan, scheduler::SequenceStep& s) {
    if (s.pending_slot < 0) return;
    if (plan.number != last_number_ + 1 || s.token_ids.size() != 1 ||
        s.pending_slot >= static_cast<int32_t>(chosen_.size()) ||
        chosen_[s.pending_slot].sequence_id != s.sequence_id) {
      Wrong("a pending slot that the plan before hasn't");
      return;
    }
    s.token_ids[0] = chosen_[s.pending_slot].token.id;
  }

  void Write(const scheduler::SequenceStep& s) {
    if (s.token_ids.empty()) Wrong("a sequence feeds no token");
    const int64_t end = s.start + static_cast<int64_t>(s.token_ids.size());
    if (static_cast<int64_t>(s.block_table.size()) != (end + block_tokens_ - 1) / block_tokens_) {
      Wrong("a block table hasn't the length of its rows");
    }
    for (size_t i = 0; i < s.token_ids.size(); ++i) {
      const int64_t position = s.start + static_cast<int64_t>(i);
      const uint64_t before = position > 0 ? kv_[Slot(s, position - 1)] : 0;
      const int64_t slot = Slot(s, position);
      if (written_in_[slot] == step_) Wrong("a slot is written twice in a step");
      kv_[slot] = Value(before, s.token_ids[i]);
      written_in_[slot] = step_;
    }
  }

  scheduler::SequenceResult Read(const scheduler::SequenceStep& s) {
    scheduler::SequenceResult result;
    result.sequence_id = s.sequence_id;
    const int64_t end = s.start + static_cast<int64_t>(s.token_ids.size());
    std::vector<uint64_t> values;
    for (int64_t p = 0; p < end; ++p) {
      const int64_t slot = Slot(s, p);
      if (p < s.start && written_in_[slot] == step_) Wrong("a step reads what it also writes");
      values.push_back(kv_[slot]);
    }
    if (s.sampling.prompt_logprobs >= 0) {
      for (int64_t p = s.start; p < end && p + 1 < s.prompt_length; ++p) {
        const int32_t target = p + 1 < end ? s.token_ids[p + 1 - s.start] : s.next_prompt_token;
        scheduler::TokenLogprobs t;
        t.id = target;
        t.logprob = -static_cast<float>(Mix(values[p], target) % 1000);
        result.prompt_logprobs.push_back(t);
      }
    }
    if (!s.samples.empty() && s.sampling.has_penalties()) {
      uint64_t before = 0;
      if (static_cast<int64_t>(s.history.size()) != end) Wrong("history has the wrong length");
      for (size_t i = 0; i < s.history.size() && i < values.size(); ++i) {
        before = Value(before, s.history[i]);
        if (before != values[i]) Wrong("history isn't what the cache holds");
      }
    }
    for (const scheduler::SampleSlot& slot : s.samples) {
      result.samples.push_back(
          {slot.sequence_id, Choose(Fold(values), s.sampling, slot.sample_index, s.prompt_length,
                                    end, s.suppressed, vocab_size_)});
    }
    return result;
  }

  const int64_t block_tokens_;
  const int32_t vocab_size_;
  std::vector<uint64_t> kv_;
  std::vector<uint64_t> written_in_;
  uint64_t step_ = 0;
  uint64_t last_number_ = 0;
  std::vector<scheduler::SampleResult> chosen_;  // by the last plan
  std::string error_;
};

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_FAKE_MODEL_H_
