#include "runtime/serving/response.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/serving/request.h"

namespace phalanx::serving {
namespace {

// Prompt logprobs in one message: at 128 alternatives each it stays well under the 4 MiB that a
// gRPC client receives by default.
constexpr size_t kPromptLogprobsPerMessage = 256;

void ToProto(const scheduler::TokenLogprobs& from, v1::TokenLogprobs* to) {
  to->set_id(from.id);
  to->set_logprob(from.logprob);
  for (const scheduler::RankedToken& token : from.top) {
    v1::RankedToken* ranked = to->add_top();
    ranked->set_id(token.id);
    ranked->set_logprob(token.logprob);
  }
}

v1::FinishReason ToProto(coordinator::FinishReason reason) {
  switch (reason) {
    case coordinator::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case coordinator::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case coordinator::FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::ServerState ToProto(coordinator::CoordinatorState state) {
  switch (state) {
    case coordinator::CoordinatorState::kLoading:
      return v1::SERVER_STATE_LOADING;
    case coordinator::CoordinatorState::kServing:
      return v1::SERVER_STATE_SERVING;
    case coordinator::CoordinatorState::kDraining:
    case coordinator::CoordinatorState::kStopped:
      return v1::SERVER_STATE_DRAINING;
    case coordinator::CoordinatorState::kFailed:
      return v1::SERVER_STATE_FAILED;
    case coordinator::CoordinatorState::kRecovering:
      return v1::SERVER_STATE_RECOVERING;
  }
  return v1::SERVER_STATE_UNSPECIFIED;
}

void FillEngine(const coordinator::EngineCounters& status, v1::EngineStatus* engine) {
  engine->set_running_requests(status.running_requests);
  engine->set_queued_requests(status.queued_requests);
  engine->set_running_sequences(status.running_sequences);
  engine->set_kv_blocks_total(status.blocks.total);
  engine->set_kv_blocks_free(status.blocks.free);
  engine->set_kv_blocks_in_use(status.blocks.in_use);
  engine->set_kv_blocks_cached(status.blocks.cached);
  engine->set_steps(status.steps);
  engine->set_prompt_tokens(status.prompt_tokens);
  engine->set_cached_prompt_tokens(status.cached_prompt_tokens);
  engine->set_generated_tokens(status.generated_tokens);
  engine->set_finished_requests(status.finished_requests);
  engine->set_preemptions(status.preemptions);
  engine->set_prefix_blocks_queried(status.blocks.queried_blocks);
  engine->set_prefix_blocks_hit(status.blocks.hit_blocks);
  engine->set_kv_blocks_evicted(status.blocks.evictions);
  engine->set_compute_us(status.compute_us);
  engine->set_prompt_tokens_per_second(status.prompt_tokens_per_second);
  engine->set_generated_tokens_per_second(status.generated_tokens_per_second);
  engine->set_reckoned_tokens(status.reckoned_tokens);
  engine->mutable_expert_tokens()->Add(status.expert_tokens.begin(), status.expert_tokens.end());
  engine->set_expert_imbalance(status.ExpertImbalance());
}

void FillRecovery(const coordinator::ReplicaStatus& replica, v1::Recovery* to) {
  const coordinator::Recovery& recovery = *replica.last_recovery;
  const auto ms = [&](absl::Time time) {
    return time == absl::InfinitePast() ? 0 : absl::ToDoubleMilliseconds(time - recovery.noticed);
  };
  to->set_epoch(recovery.epoch);
  to->set_cause(recovery.cause);
  to->set_fenced_ms(ms(recovery.fenced));
  to->set_started_ms(ms(recovery.started));
  to->set_registered_ms(ms(replica.group.registered));
  to->set_loaded_ms(ms(replica.group.loaded));
  to->set_up_ms(ms(recovery.up));
  to->set_first_step_ms(ms(replica.first_result));
}

}  // namespace

std::vector<v1::GenerateResponse> ResponseWriter::Write(const coordinator::Event& event) {
  std::vector<v1::GenerateResponse> responses;
  const auto& prompt = event.prompt_logprobs;
  for (size_t begin = 0; begin < prompt.size(); begin += kPromptLogprobsPerMessage) {
    v1::PromptLogprobs* message = responses.emplace_back().mutable_prompt_logprobs();
    message->set_start(static_cast<int32_t>(begin + 1));
    const size_t end = std::min(prompt.size(), begin + kPromptLogprobsPerMessage);
    for (size_t i = begin; i < end; ++i) ToProto(prompt[i], message->add_tokens());
  }
  for (const coordinator::SampleOutput& output : event.outputs) {
    if (!output.tokens.empty() || !output.text.empty()) {
      v1::Delta* delta = responses.emplace_back().mutable_delta();
      delta->set_index(output.sample_index);
      delta->set_text(output.text);
      for (const scheduler::TokenLogprobs& token : output.tokens) {
        delta->add_token_ids(token.id);
        if (logprobs_) ToProto(token, delta->add_logprobs());
      }
      num_tokens_[output.sample_index] += static_cast<int32_t>(output.tokens.size());
    }
    if (output.finish != coordinator::FinishReason::kNone) {
      v1::Finished* finished = responses.emplace_back().mutable_finished();
      finished->set_index(output.sample_index);
      finished->set_finish_reason(ToProto(output.finish));
      if (output.stop_token_id >= 0) {
        finished->set_stop_token_id(output.stop_token_id);
      } else if (!output.stop_string.empty()) {
        finished->set_stop_string(output.stop_string);
      }
      finished->set_num_tokens(num_tokens_[output.sample_index]);
    }
  }
  if (event.done && event.status.ok()) {
    v1::Summary* summary = responses.emplace_back().mutable_summary();
    summary->mutable_usage()->set_prompt_tokens(static_cast<int32_t>(event.usage.prompt_tokens));
    summary->mutable_usage()->set_cached_tokens(static_cast<int32_t>(event.usage.cached_tokens));
    summary->mutable_usage()->set_completion_tokens(
        static_cast<int32_t>(event.usage.completion_tokens));
    v1::Timings* timings = summary->mutable_timings();
    timings->set_queue_ms(absl::ToDoubleMilliseconds(event.usage.queue_time));
    timings->set_time_to_first_token_ms(
        absl::ToDoubleMilliseconds(event.usage.time_to_first_token));
    timings->set_total_ms(absl::ToDoubleMilliseconds(event.usage.total_time));
    timings->set_preemptions(static_cast<int32_t>(event.usage.preemptions));
  }
  return responses;
}

v1::Profile ToProto(const ModelInfo& model) {
  v1::Profile profile;
  profile.set_description(model.profile);
  profile.set_digest(model.profile_digest);
  return profile;
}

v1::GetModelResponse ModelResponse(const ModelInfo& model) {
  v1::GetModelResponse response;
  response.set_name(model.name);
  response.set_family(model.family);
  response.set_context_length(static_cast<int32_t>(model.context_length));
  response.set_vocab_size(static_cast<int32_t>(model.vocab_size));
  response.mutable_eos_token_ids()->Add(model.eos_token_ids.begin(), model.eos_token_ids.end());
  if (model.bos_token_id.has_value()) response.set_bos_token_id(*model.bos_token_id);
  response.set_weight_type(model.weight_type);
  response.set_num_parameters(model.num_parameters);
  *response.mutable_profile() = ToProto(model);
  response.set_checkpoint_digest(model.checkpoint_digest);
  *response.mutable_default_sampling() = DefaultSampling(model);
  return response;
}

void FillStatus(const coordinator::CoordinatorStatus& status, v1::GetStatusResponse* response) {
  response->set_state(ToProto(status.state));
  if (!status.failure.ok()) response->set_status_message(std::string(status.failure.message()));
  response->set_layout(status.layout);
  response->set_epoch(status.group.epoch);
  FillEngine(status, response->mutable_engine());
  for (const coordinator::ReplicaStatus& replica : status.replicas) {
    v1::ReplicaStatus* to = response->add_replicas();
    to->set_replica(replica.replica);
    to->set_state(ToProto(replica.state));
    if (!replica.failure.ok()) to->set_status_message(std::string(replica.failure.message()));
    to->set_layout(replica.group.layout);
    to->set_epoch(replica.group.epoch);
    FillEngine(replica, to->mutable_engine());
    to->set_recoveries(replica.recoveries);
    if (replica.last_recovery.has_value()) FillRecovery(replica, to->mutable_last_recovery());
    // Those of a group that has died are gone.
    if (replica.state == coordinator::CoordinatorState::kRecovering ||
        replica.state == coordinator::CoordinatorState::kFailed) {
      continue;
    }
    for (const coordinator::RankInfo& rank : replica.group.ranks) {
      v1::RankStatus* rank_status = response->add_ranks();
      rank_status->set_replica(replica.replica);
      rank_status->set_rank(rank.rank);
      rank_status->set_host(rank.host);
      rank_status->set_pid(rank.pid);
      rank_status->set_device(rank.device);
      rank_status->set_weight_bytes(rank.weight_bytes);
      rank_status->set_kv_bytes(rank.kv_block_bytes * rank.kv_blocks);
    }
  }
}

}  // namespace phalanx::serving
