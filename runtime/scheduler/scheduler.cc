#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "runtime/scheduler/state.h"

namespace phalanx::scheduler {
absl::Status ValidateOptions(const SchedulerOptions& options) {
  const auto at_least = [](absl::string_view name, int64_t value, int64_t least) -> absl::Status {
    if (value >= least) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, "; it must be at least ", least));
  };
  absl::Status status;
  status.Update(at_least("max_batch_tokens", options.max_batch_tokens, 1));
  status.Update(at_least("max_batch_sequences", options.max_batch_sequences, 1));
  status.Update(at_least("prefill_chunk", options.prefill_chunk, 0));
  status.Update(at_least("min_prefill_chunk", options.min_prefill_chunk, 1));
  status.Update(at_least("max_queued_requests", options.max_queued_requests, 1));
  status.Update(at_least("max_plans_in_flight", options.max_plans_in_flight, 1));
  status.Update(at_least("num_blocks", options.num_blocks, 1));
  status.Update(at_least("block_tokens", options.block_tokens, 1));
  status.Update(at_least("max_context", options.max_context, 2));
  status.Update(at_least("sequence_ranks", options.sequence_ranks, 1));
  status.Update(at_least("sequence_stripes", options.sequence_stripes, 1));
  if (!status.ok()) return status;
  if (options.sequence_ranks > options.sequence_stripes) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence_ranks is ", options.sequence_ranks, ", but the profile has only ",
                     options.sequence_stripes, " sequence_stripes; use sp of at most ",
                     options.sequence_stripes, " or a profile with more stripes"));
  }
  if (options.num_blocks > std::numeric_limits<int32_t>::max() / options.sequence_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks is ", options.num_blocks, " on each of ", options.sequence_ranks,
                     " sequence ranks; all of them together must fit 31 bits"));
  }
  return status;
}

Scheduler::Scheduler(SchedulerOptions options, uint64_t epoch)
    : options_(std::move(options)), striping_(1, 1), epoch_(epoch) {
  MakePool();
}

void Scheduler::MakePool() {
  const absl::Status status = ValidateOptions(options_);
  PHALANX_CHECK(status.ok()) << status.message();
  striping_ = cache::BlockStriping(options_.sequence_ranks, options_.sequence_stripes);
  if (pool_ != nullptr) counted_before_.Add(pool_->stats().Counted());
  pool_ = std::make_unique<cache::BlockPool>(
      cache::BlockPoolOptions{static_cast<int32_t>(options_.num_blocks), options_.block_tokens,
                              nullptr, options_.sequence_ranks});
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::CheckFits(const SchedulerOptions& options, const RequestSpec& spec) {
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t longest =
      prompt + std::min(spec.max_tokens, std::max<int64_t>(options.max_context - prompt, 0));
  // The last token is never fed, so it needs no slot.
  const int64_t needed = CeilDiv(longest - 1, options.block_tokens);
  const cache::BlockStriping striping(options.sequence_ranks, options.sequence_stripes);
  const cache::BlockStriping::Limit limit = striping.LimitOf(options.num_blocks);
  if (needed <= limit.num_blocks) return absl::OkStatus();
  const int64_t room = limit.num_blocks * options.block_tokens + 1 - prompt;
  std::string found = absl::StrCat("the workers hold only ", options.num_blocks);
  if (options.sequence_ranks > 1) {
    found = absl::StrCat(striping.BlocksOn(limit.rank, needed), " of them fall to sequence rank ",
                         limit.rank, " of ", options.sequence_ranks, ", and each rank holds only ",
                         options.num_blocks);
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the request needs ", needed, " KV blocks of ", options.block_tokens, " tokens (prompt ",
      prompt, " + up to ", longest - prompt, " new tokens), but ", found, "; ",
      room > 0 ? absl::StrCat("ask for at most ", room, " new tokens")
               : std::string("shorten the prompt"),
      options.sequence_ranks < options.sequence_stripes
          ? ", give the workers more KV memory or use more sequence ranks"
          : " or give the workers more KV memory"));
}

absl::Status Scheduler::Add(RequestSpec spec) {
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  if (prompt < 1 || prompt >= options_.max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt, " tokens; allowed are 1 to ",
                     options_.max_context - 1, " (the context less one token to generate)"));
  }
  if (spec.max_tokens < 1 || spec.n < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", spec.max_tokens, ", n is ",
                                                   spec.n, "; both must be at least 1"));
  }
  if (requests_.contains(spec.request_id)) {
    return absl::AlreadyExistsError(absl::StrCat("request ", spec.request_id, " is unfinished"));
  }
  if (counters_.queued_requests >= options_.max_queued_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", counters_.queued_requests,
                     " requests are waiting; try again later"));
  }
  if (absl::Status fits = CheckFits(options_, spec); !fits.ok()) return fits;

  auto request = std::make_shared<Request>();
  request->spec = std::move(spec);
  request->arrival = next_arrival_++;
  request->unfinished = request->spec.n;
  for (int32_t i = 0; i < request->spec.n; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_sequence_++;
    sequence->request = request.get();
    sequence->sample_index = i;
    sequence->state = i == 0 ? SequenceState::kWaiting : SequenceState::kForkPending;
    request->samples.push_back(std::move(sequence));
  }
  waiting_.emplace(Order{request->arrival, 0}, request->samples[0].get());
  if (request->spec.deadline != absl::InfiniteFuture()) {
    deadlines_.emplace(request->spec.deadline, request->spec.request_id);
  }
  ++counters_.queued_requests;
  const uint64_t id = request->spec.request_id;
  requests_.emplace(id, std::move(request));
  return absl::OkStatus();
}

RequestOutput& Scheduler::OutputOf(const Request& request) {
  const uint64_t id = request.spec.request_id;
  const auto [it, inserted] = output_index_.try_emplace(id, outputs_.size());
  if (!inserted && outputs_[it->second].done) it->second = outputs_.size();
  if (it->second == outputs_.size()) {
    outputs_.emplace_back();
    outputs_.back().request_id = id;
  }
  return outputs_[it->second];
}

std::vector<RequestOutput> Scheduler::TakeOutputs() {
  output_index_.clear();
  return std::exchange(outputs_, {});
}

void Scheduler::ReleaseBlocks(Sequence& sequence) {
  pool_->Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.computed = 0;
  sequence.scheduled = 0;
  sequence.published = 0;
  sequence.prefill_share = 0;
}

void Scheduler::FinishSequence(Sequence& sequence) {
  const Order order = OrderOf(sequence);
  waiting_.erase(order);
  running_.erase(order);
  sequence.state = SequenceState::kFinished;
  --sequence.request->unfinished;
  if (sequence.in_flight == 0) ReleaseBlocks(sequence);
}

void Scheduler::EndRequest(Request& request, absl::Status status) {
  request.ended = true;
  for (const auto& sequence : request.samples) {
    if (sequence->state != SequenceState::kFinished) FinishSequence(*sequence);
  }
  --(request.admitted ? counters_.running_requests : counters_.queued_requests);
  RequestOutput& output = OutputOf(request);
  output.done = true;
  output.status = std::move(status);
  output.preemptions = request.preemptions;
  deadlines_.erase({request.spec.deadline, request.spec.request_id});
  requests_.erase(request.spec.request_id);
}

bool Scheduler::Cancel(uint64_t request_id, absl::Status status) {
  const auto it = requests_.find(request_id);
  if (it == requests_.end()) return false;
  const std::shared_ptr<Request> request = it->second;
  EndRequest(*request, std::move(status));
  return true;
}

bool Scheduler::FinishSample(uint64_t request_id, int32_t sample_index) {
  const auto it = requests_.find(request_id);
  if (it == requests_.end()) return false;
  const std::shared_ptr<Request> request = it->second;
  if (sample_index < 0 || sample_index >= request->spec.n) return false;
  Sequence& sequence = *request->samples[sample_index];
  if (sequence.state == SequenceState::kFinished || sequence.state == SequenceState::kForkPending) {
    return false;
  }
  PHALANX_CHECK(sequence.in_flight == sequence.choosing && sequence.choosing <= 1)
      << "sample " << sample_index << " is in " << sequence.in_flight << " plans";
  FinishSequence(sequence);
  if (request->unfinished == 0) EndRequest(*request, absl::OkStatus());
  return true;
}

void Scheduler::Expire(absl::Time now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Cancel(deadlines_.begin()->second,
           absl::DeadlineExceededError("the request's deadline has passed"));
  }
}

absl::Time Scheduler::NextDeadline() const {
  return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
}

}  // namespace phalanx::scheduler
