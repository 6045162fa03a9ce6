// What happens when results come back, when a group is replaced, and the checks for tests.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/state.h"

namespace phalanx::scheduler {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

absl::Status Scheduler::CheckResult(const InFlight& plan, const StepResult& result) const {
  const auto wrong = [&](const auto&... parts) {
    return absl::InternalError(
        absl::StrCat("result of step ", result.number, " doesn't answer its plan: ", parts...));
  };
  if (result.number != plan.number) return wrong("the oldest plan in flight is ", plan.number);
  if (result.sequences.size() != plan.parts.size()) {
    return wrong(result.sequences.size(), " sequences, expected ", plan.parts.size());
  }
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const InFlight::Part& part = plan.parts[i];
    const SequenceResult& got = result.sequences[i];
    if (got.sequence_id != part.sequence->id) {
      return wrong("sequence ", got.sequence_id, ", expected ", part.sequence->id);
    }
    if (got.samples.size() != part.slots.size()) {
      return wrong(got.samples.size(), " samples, expected ", part.slots.size());
    }
    for (size_t j = 0; j < part.slots.size(); ++j) {
      if (got.samples[j].sequence_id != part.slots[j].sequence_id) {
        return wrong("a sample of sequence ", got.samples[j].sequence_id, ", expected ",
                     part.slots[j].sequence_id);
      }
    }
    if (static_cast<int64_t>(got.prompt_logprobs.size()) != part.prompt_rows) {
      return wrong(got.prompt_logprobs.size(), " prompt logprobs, expected ", part.prompt_rows);
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Commit(const StepResult& result) {
  if (result.epoch != epoch_) return absl::OkStatus();  // a group that is gone: discarded
  if (in_flight_.empty()) {
    return absl::InternalError(
        absl::StrCat("result of step ", result.number, " came, but no plan is in flight"));
  }
  if (absl::Status status = CheckResult(in_flight_.front(), result); !status.ok()) return status;
  const InFlight plan = std::move(in_flight_.front());
  in_flight_.pop_front();
  ++counters_.steps;
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    Sequence& sequence = *plan.parts[i].sequence;
    --sequence.in_flight;
    if (plan.parts[i].slots.size() == 1) --sequence.choosing;
    if (sequence.state == SequenceState::kFinished) {
      if (sequence.in_flight == 0) ReleaseBlocks(sequence);
    } else {
      CommitSequence(sequence, plan.parts[i].count, result.sequences[i]);
    }
  }
  return absl::OkStatus();
}

void Scheduler::PublishFullBlocks(Sequence& sequence) {
  if (!options_.prefix_reuse) return;
  const int64_t size = options_.block_tokens;
  for (; (sequence.published + 1) * size <= sequence.computed; ++sequence.published) {
    const int64_t i = sequence.published;
    sequence.blocks[i] = pool_->Publish(sequence.blocks[i], i > 0 ? sequence.blocks[i - 1] : -1,
                                        sequence.request->spec.cache_salt,
                                        sequence.Tokens(i * size, (i + 1) * size));
  }
}

void Scheduler::CommitSequence(Sequence& sequence, int64_t count, const SequenceResult& result) {
  Request& request = *sequence.request;
  const int64_t start = sequence.computed;
  sequence.computed += count;
  sequence.reached = std::max(sequence.reached, sequence.computed);
  if (request.isolated && ReachedBy(request) > request.reached_at_death) {
    request.isolated = false;
    request.deaths = 0;
  }
  for (size_t i = 0; i < result.prompt_logprobs.size(); ++i) {
    // A recomputed chunk gives some a second time.
    if (start + static_cast<int64_t>(i) != request.prompt_rows_done) continue;
    request.prompt_logprobs.push_back(result.prompt_logprobs[i]);
    ++request.prompt_rows_done;
  }
  PublishFullBlocks(sequence);
  if (result.samples.empty()) return;

  for (const SampleResult& sample : result.samples) {
    if (sample.token.id >= 0 && !std::isnan(sample.token.logprob)) continue;
    EndRequest(request,
               absl::InternalError(absl::StrCat(
                   "the model gave no finite logits after position ", sequence.computed - 1,
                   "; its weights or the request's token ids lead to infinities or NaN")));
    return;
  }
  if (request.fork_pending()) {
    for (const auto& sample : request.samples) {
      if (sample.get() == &sequence) continue;
      sample->state = SequenceState::kRunning;
      sample->blocks = sequence.blocks;
      pool_->Acquire(sample->blocks);
      sample->computed = sequence.computed;
      sample->scheduled = sequence.scheduled;
      sample->published = sequence.published;
      running_.emplace(Order{request.arrival, sample->sample_index}, sample.get());
    }
  }
  if (!request.prompt_logprobs.empty()) {
    OutputOf(request).prompt_logprobs = std::exchange(request.prompt_logprobs, {});
  }
  if (result.samples.size() == 1) {
    AppendToken(sequence, result.samples[0].token);
  } else {
    for (size_t i = 0; i < result.samples.size(); ++i) {
      AppendToken(*request.samples[i], result.samples[i].token);
    }
  }
}

void Scheduler::AppendToken(Sequence& sequence, const TokenLogprobs& token) {
  Request& request = *sequence.request;
  const RequestSpec& spec = request.spec;
  sequence.generated.push_back(token.id);
  ++counters_.generated_tokens;
  SampleToken out;
  out.sample_index = sequence.sample_index;
  out.token = token;
  out.num_generated = static_cast<int64_t>(sequence.generated.size());
  if (Contains(spec.stop_token_ids, token.id) ||
      (!spec.ignore_eos && Contains(options_.eos_token_ids, token.id))) {
    out.finish = FinishReason::kStop;
    out.stop_token_id = token.id;
  } else if (EndsByLength(sequence, sequence.size())) {
    out.finish = FinishReason::kLength;
  }
  const bool finished = out.finish != FinishReason::kNone;
  OutputOf(request).tokens.push_back(std::move(out));
  if (!finished) return;
  FinishSequence(sequence);
  if (request.unfinished == 0) EndRequest(request, absl::OkStatus());
}

bool Scheduler::EndsByLength(const Sequence& sequence, int64_t size) const {
  const Request& request = *sequence.request;
  return size - request.prompt_size() >= request.spec.max_tokens || size >= options_.max_context;
}

int64_t Scheduler::ReachedBy(const Request& request) {
  int64_t reached = 0;
  for (const auto& sample : request.samples) {
    reached += sample->reached + static_cast<int64_t>(sample->generated.size());
  }
  return reached;
}

void Scheduler::OnGroupDeath(const absl::Status& cause, bool newest_was_sent) {
  if (!newest_was_sent) in_flight_.pop_back();
  std::map<uint64_t, std::shared_ptr<Request>> suspects;
  for (const InFlight& plan : in_flight_) {
    for (const InFlight::Part& part : plan.parts) {
      suspects.emplace(part.request->arrival, part.request);
    }
  }
  for (const auto& [arrival, request] : suspects) {
    if (request->ended) continue;
    const int64_t reached = ReachedBy(*request);
    request->deaths = reached > request->reached_at_death ? 1 : request->deaths + 1;
    request->reached_at_death = reached;
    request->isolated = request->deaths > 1;
    if (request->isolated && suspects.size() == 1) {
      EndRequest(*request, absl::InternalError(absl::StrCat(
                               "the workers died ", request->deaths,
                               " times while they computed this request and got no further; it is "
                               "not tried again: ",
                               cause.message())));
    }
  }
  Restart(epoch_ + 1, options_.num_blocks);
}

void Scheduler::Restart(uint64_t epoch, int64_t num_blocks, int sequence_ranks,
                        int64_t max_plans_in_flight) {
  options_.num_blocks = num_blocks;
  if (sequence_ranks != 0) options_.sequence_ranks = sequence_ranks;
  if (max_plans_in_flight != 0) options_.max_plans_in_flight = max_plans_in_flight;
  epoch_ = epoch;
  next_plan_ = 1;
  in_flight_.clear();
  MakePool();
  for (const auto& [order, sequence] : running_) {
    sequence->blocks.clear();
    sequence->computed = 0;
    sequence->scheduled = 0;
    sequence->published = 0;
    sequence->prefill_share = 0;
    sequence->in_flight = 0;
    sequence->choosing = 0;
    sequence->state = SequenceState::kWaiting;
    waiting_.emplace(order, sequence);
  }
  running_.clear();
  const std::map<uint64_t, std::shared_ptr<Request>> requests = requests_;
  for (const auto& [id, request] : requests) {
    if (absl::Status fits = CheckFits(options_, request->spec); !fits.ok()) {
      EndRequest(*request, std::move(fits));
    }
  }
}

uint64_t Scheduler::Departed::request_id() const { return request_->spec.request_id; }

std::vector<Scheduler::Departed> Scheduler::TakeUnfinished() {
  PHALANX_CHECK(in_flight_.empty()) << in_flight_.size() << " plans are in flight";
  std::map<uint64_t, std::shared_ptr<Request>> by_arrival;
  for (const auto& [id, request] : requests_) by_arrival.emplace(request->arrival, request);
  std::vector<Departed> out;
  for (const auto& [arrival, request] : by_arrival) {
    for (const auto& sequence : request->samples) {
      if (sequence->state == SequenceState::kRunning) ReleaseBlocks(*sequence);
      if (sequence->state != SequenceState::kFinished &&
          sequence->state != SequenceState::kForkPending) {
        sequence->state = SequenceState::kWaiting;
      }
    }
    --(request->admitted ? counters_.running_requests : counters_.queued_requests);
    out.push_back(Departed(request));
  }
  requests_.clear();
  waiting_.clear();
  running_.clear();
  deadlines_.clear();
  return out;
}

void Scheduler::Adopt(Departed departed) {
  const std::shared_ptr<Request> request = std::move(departed.request_);
  const RequestSpec& spec = request->spec;
  request->arrival = next_arrival_++;
  for (const auto& sequence : request->samples) {
    sequence->id = next_sequence_++;
    if (sequence->state == SequenceState::kWaiting)
      waiting_.emplace(OrderOf(*sequence), sequence.get());
  }
  ++(request->admitted ? counters_.running_requests : counters_.queued_requests);
  if (spec.deadline != absl::InfiniteFuture()) deadlines_.emplace(spec.deadline, spec.request_id);
  PHALANX_CHECK(requests_.emplace(spec.request_id, request).second) << spec.request_id;
  if (absl::Status fits = CheckFits(options_, spec); !fits.ok()) {
    EndRequest(*request, std::move(fits));
  }
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = counters_;
  stats.running_sequences = static_cast<int64_t>(running_.size());
  stats.plans_in_flight = static_cast<int64_t>(in_flight_.size());
  stats.blocks = pool_->stats();
  stats.blocks.Add(counted_before_);
  return stats;
}

absl::Status Scheduler::CheckInvariants() const {
  if (absl::Status status = pool_->CheckInvariants(); !status.ok()) return status;
  std::vector<int32_t> references(pool_->num_blocks(), 0);
  absl::Status misplaced;
  const auto count = [&](const Sequence& sequence) {
    for (size_t i = 0; i < sequence.blocks.size(); ++i) {
      const int32_t block = sequence.blocks[i];
      ++references[block];
      const int rank = striping_.RankOf(static_cast<int64_t>(i));
      if (pool_->PartitionOf(block) != rank) {
        misplaced.Update(absl::InternalError(
            absl::StrCat("sequence ", sequence.id, " has block ", block, " at index ", i,
                         ", which belongs to sequence rank ", rank)));
      }
    }
  };
  struct InPlans {
    int plans = 0;
    int64_t rows = 0;
    int choosing = 0;
    bool sampled = false;  // by the newest so far
  };
  std::map<const Sequence*, InPlans> out;
  for (const InFlight& plan : in_flight_) {
    for (const InFlight::Part& part : plan.parts) {
      InPlans& in = out[part.sequence];
      if (in.sampled && !options_.look_ahead) {
        return absl::InternalError(absl::StrCat("sequence ", part.sequence->id, " is in plan ",
                                                plan.number, " before its token is known"));
      }
      ++in.plans;
      in.rows += part.count;
      in.sampled = !part.slots.empty();
      if (part.slots.size() == 1) ++in.choosing;
      if (part.sequence->state == SequenceState::kFinished && in.plans == 1) count(*part.sequence);
    }
  }
  for (const auto& [order, sequence] : running_) {
    count(*sequence);
    const int64_t blocks = static_cast<int64_t>(sequence->blocks.size());
    if (sequence->scheduled > blocks * options_.block_tokens) {
      return absl::InternalError(absl::StrCat("sequence ", sequence->id, " lacks blocks"));
    }
    const InPlans& in = out[sequence];
    // Every token but the newest that is being chosen is fed; with none in a plan that chooses
    // several (a fork) nothing is being chosen.
    const int64_t fed = sequence->size() + std::max(in.choosing - 1, 0);
    if (in.plans != sequence->in_flight || in.choosing != sequence->choosing ||
        sequence->computed + in.rows != sequence->scheduled ||
        in.sampled != (sequence->scheduled == fed)) {
      return absl::InternalError(absl::StrCat("sequence ", sequence->id, " is in ", in.plans,
                                              " plans with ", in.rows, " rows, but its state says ",
                                              sequence->in_flight, " plans, ", sequence->computed,
                                              " to ", sequence->scheduled));
    }
  }
  if (!misplaced.ok()) return misplaced;
  for (int32_t block = 0; block < pool_->num_blocks(); ++block) {
    if (references[block] != pool_->references(block)) {
      return absl::InternalError(absl::StrCat("block ", block, " has ", pool_->references(block),
                                              " references, block tables hold ",
                                              references[block]));
    }
  }
  for (const auto& [order, sequence] : waiting_) {
    if (!sequence->blocks.empty()) {
      return absl::InternalError(
          absl::StrCat("sequence ", sequence->id, " waits but holds blocks"));
    }
  }
  if (counters_.queued_requests + counters_.running_requests !=
      static_cast<int64_t>(requests_.size())) {
    return absl::InternalError("request counters don't add up");
  }
  return absl::OkStatus();
}

}  // namespace phalanx::scheduler
