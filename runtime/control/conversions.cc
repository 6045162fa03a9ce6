#include "runtime/control/conversions.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::control {
namespace {

void ToProto(const sampling::SamplingParams& from, v1::StepSampling* to) {
  to->set_temperature(from.temperature);
  to->set_top_p(from.top_p);
  to->set_top_k(from.top_k);
  to->set_min_p(from.min_p);
  to->set_repetition_penalty(from.repetition_penalty);
  to->set_frequency_penalty(from.frequency_penalty);
  to->set_presence_penalty(from.presence_penalty);
  to->set_seed(from.seed);
  for (const auto& [id, bias] : from.logit_bias) {
    to->add_logit_bias_ids(id);
    to->add_logit_bias_values(bias);
  }
  to->set_logprobs(from.logprobs);
  to->set_prompt_logprobs(from.prompt_logprobs);
}

absl::Status FromProto(const v1::StepSampling& from, sampling::SamplingParams* to) {
  to->temperature = from.temperature();
  to->top_p = from.top_p();
  to->top_k = from.top_k();
  to->min_p = from.min_p();
  to->repetition_penalty = from.repetition_penalty();
  to->frequency_penalty = from.frequency_penalty();
  to->presence_penalty = from.presence_penalty();
  to->seed = from.seed();
  if (from.logit_bias_ids_size() != from.logit_bias_values_size()) {
    return absl::InternalError(absl::StrCat("control message: logit_bias has ",
                                            from.logit_bias_ids_size(), " ids but ",
                                            from.logit_bias_values_size(), " values"));
  }
  to->logit_bias.reserve(from.logit_bias_ids_size());
  for (int i = 0; i < from.logit_bias_ids_size(); ++i) {
    to->logit_bias.emplace_back(from.logit_bias_ids(i), from.logit_bias_values(i));
  }
  to->logprobs = from.logprobs();
  to->prompt_logprobs = from.prompt_logprobs();
  return absl::OkStatus();
}

void ToProto(const scheduler::TokenLogprobs& from, v1::StepTokenLogprobs* to) {
  to->set_id(from.id);
  to->set_logprob(from.logprob);
  for (const scheduler::RankedToken& token : from.top) {
    to->add_top_ids(token.id);
    to->add_top_logprobs(token.logprob);
  }
}

absl::Status FromProto(const v1::StepTokenLogprobs& from, scheduler::TokenLogprobs* to) {
  to->id = from.id();
  to->logprob = from.logprob();
  if (from.top_ids_size() != from.top_logprobs_size()) {
    return absl::InternalError(absl::StrCat("control message: a token has ", from.top_ids_size(),
                                            " ranked ids but ", from.top_logprobs_size(),
                                            " ranked logprobs"));
  }
  to->top.reserve(from.top_ids_size());
  for (int i = 0; i < from.top_ids_size(); ++i) {
    to->top.push_back({from.top_ids(i), from.top_logprobs(i)});
  }
  return absl::OkStatus();
}

void ToProto(const scheduler::SequenceStep& from, v1::SequenceStep* to) {
  to->set_sequence_id(from.sequence_id);
  to->mutable_token_ids()->Add(from.token_ids.begin(), from.token_ids.end());
  to->set_start(from.start);
  to->mutable_block_table()->Add(from.block_table.begin(), from.block_table.end());
  for (const scheduler::SampleSlot& slot : from.samples) {
    v1::SampleSlot* proto = to->add_samples();
    proto->set_sequence_id(slot.sequence_id);
    proto->set_sample_index(slot.sample_index);
  }
  ToProto(from.sampling, to->mutable_sampling());
  to->mutable_suppressed()->Add(from.suppressed.begin(), from.suppressed.end());
  to->mutable_history()->Add(from.history.begin(), from.history.end());
  to->set_prompt_length(from.prompt_length);
  to->set_next_prompt_token(from.next_prompt_token);
  to->set_pending_slot(from.pending_slot);
}

absl::Status FromProto(const v1::SequenceStep& from, scheduler::SequenceStep* to) {
  to->sequence_id = from.sequence_id();
  to->token_ids.assign(from.token_ids().begin(), from.token_ids().end());
  to->start = from.start();
  to->block_table.assign(from.block_table().begin(), from.block_table().end());
  to->samples.reserve(from.samples_size());
  for (const v1::SampleSlot& slot : from.samples()) {
    to->samples.push_back({slot.sequence_id(), slot.sample_index()});
  }
  to->suppressed.assign(from.suppressed().begin(), from.suppressed().end());
  to->history.assign(from.history().begin(), from.history().end());
  to->prompt_length = from.prompt_length();
  to->next_prompt_token = from.next_prompt_token();
  to->pending_slot = from.pending_slot();
  return FromProto(from.sampling(), &to->sampling);
}

}  // namespace

void ToProto(const scheduler::StepPlan& plan, v1::StepPlan* out) {
  out->Clear();
  out->set_epoch(plan.epoch);
  out->set_number(plan.number);
  for (const scheduler::BlockCopy& copy : plan.copies) {
    v1::BlockCopy* proto = out->add_copies();
    proto->set_source(copy.source);
    proto->set_destination(copy.destination);
  }
  out->mutable_sequences()->Reserve(static_cast<int>(plan.sequences.size()));
  for (const scheduler::SequenceStep& sequence : plan.sequences) {
    ToProto(sequence, out->add_sequences());
  }
}

absl::StatusOr<scheduler::StepPlan> FromProto(const v1::StepPlan& proto) {
  scheduler::StepPlan plan;
  plan.epoch = proto.epoch();
  plan.number = proto.number();
  plan.copies.reserve(proto.copies_size());
  for (const v1::BlockCopy& copy : proto.copies()) {
    plan.copies.push_back({copy.source(), copy.destination()});
  }
  plan.sequences.resize(proto.sequences_size());
  for (int i = 0; i < proto.sequences_size(); ++i) {
    absl::Status status = FromProto(proto.sequences(i), &plan.sequences[i]);
    if (!status.ok()) return status;
  }
  return plan;
}

void ToProto(const scheduler::StepResult& result, v1::StepResult* out) {
  out->Clear();
  out->set_epoch(result.epoch);
  out->set_number(result.number);
  out->set_compute_us(result.compute_us);
  out->mutable_expert_tokens()->Add(result.expert_tokens.begin(), result.expert_tokens.end());
  for (const scheduler::SequenceResult& sequence : result.sequences) {
    v1::SequenceResult* to = out->add_sequences();
    to->set_sequence_id(sequence.sequence_id);
    for (const scheduler::SampleResult& sample : sequence.samples) {
      v1::SampleResult* proto = to->add_samples();
      proto->set_sequence_id(sample.sequence_id);
      ToProto(sample.token, proto->mutable_token());
    }
    for (const scheduler::TokenLogprobs& token : sequence.prompt_logprobs) {
      ToProto(token, to->add_prompt_logprobs());
    }
  }
}

absl::StatusOr<scheduler::StepResult> FromProto(const v1::StepResult& proto) {
  scheduler::StepResult result;
  result.epoch = proto.epoch();
  result.number = proto.number();
  result.compute_us = proto.compute_us();
  result.expert_tokens.assign(proto.expert_tokens().begin(), proto.expert_tokens().end());
  result.sequences.resize(proto.sequences_size());
  for (int i = 0; i < proto.sequences_size(); ++i) {
    const v1::SequenceResult& from = proto.sequences(i);
    scheduler::SequenceResult& to = result.sequences[i];
    to.sequence_id = from.sequence_id();
    to.samples.resize(from.samples_size());
    for (int s = 0; s < from.samples_size(); ++s) {
      to.samples[s].sequence_id = from.samples(s).sequence_id();
      absl::Status status = FromProto(from.samples(s).token(), &to.samples[s].token);
      if (!status.ok()) return status;
    }
    to.prompt_logprobs.resize(from.prompt_logprobs_size());
    for (int p = 0; p < from.prompt_logprobs_size(); ++p) {
      absl::Status status = FromProto(from.prompt_logprobs(p), &to.prompt_logprobs[p]);
      if (!status.ok()) return status;
    }
  }
  return result;
}

}  // namespace phalanx::control
