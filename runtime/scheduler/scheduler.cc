#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "runtime/scheduler/state.h"

namespace phalanx::scheduler {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

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
  status.Update(at_least("max_queued_requests", options.max_queued_requests, 1));
  status.Update(at_least("max_plans_in_flight", options.max_plans_in_flight, 1));
  status.Update(at_least("num_blocks", options.num_blocks, 1));
  status.Update(at_least("block_tokens", options.block_tokens, 1));
  status.Update(at_least("max_context", options.max_context, 2));
  if (status.ok() && options.num_blocks > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks is ", options.num_blocks, "; it must fit 31 bits"));
  }
  return status;
}

Scheduler::Scheduler(SchedulerOptions options, uint64_t epoch)
    : options_(std::move(options)), epoch_(epoch) {
  const absl::Status status = ValidateOptions(options_);
  PHALANX_CHECK(status.ok()) << status.message();
  pool_ = std::make_unique<cache::BlockPool>(cache::BlockPoolOptions{
      static_cast<int32_t>(options_.num_blocks), options_.block_tokens, nullptr});
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::CheckFits(const SchedulerOptions& options, const RequestSpec& spec) {
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t longest =
      prompt + std::min(spec.max_tokens, std::max<int64_t>(options.max_context - prompt, 0));
  // The last token is never fed, so it needs no slot.
  const int64_t needed = CeilDiv(longest - 1, options.block_tokens);
  if (needed <= options.num_blocks) return absl::OkStatus();
  const int64_t room = options.num_blocks * options.block_tokens + 1 - prompt;
  return absl::ResourceExhaustedError(
      absl::StrCat("the request needs ", needed, " KV blocks of ", options.block_tokens,
                   " tokens (prompt ", prompt, " + up to ", longest - prompt,
                   " new tokens), but the workers hold only ", options.num_blocks, "; ",
                   room > 0 ? absl::StrCat("ask for at most ", room, " new tokens")
                            : std::string("shorten the prompt"),
                   " or give the workers more KV memory"));
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
  sequence.published = 0;
}

void Scheduler::FinishSequence(Sequence& sequence) {
  const Order order{sequence.request->arrival, sequence.sample_index};
  waiting_.erase(order);
  running_.erase(order);
  sequence.state = SequenceState::kFinished;
  --sequence.request->unfinished;
  if (!sequence.in_flight) ReleaseBlocks(sequence);
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
  PHALANX_CHECK(!sequence.in_flight) << "sample " << sample_index << " is in flight";
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

void Scheduler::Preempt(Sequence& sequence) {
  const Order order{sequence.request->arrival, sequence.sample_index};
  running_.erase(order);
  ReleaseBlocks(sequence);
  sequence.state = SequenceState::kWaiting;
  waiting_.emplace(order, &sequence);
  ++counters_.preemptions;
  ++sequence.request->preemptions;
}

bool Scheduler::PreemptYoungerThan(const Sequence& sequence) {
  for (auto it = running_.rbegin(); it != running_.rend() && it->second != &sequence; ++it) {
    // What is in a plan, this one included, can't be taken back.
    if (it->second->in_flight) continue;
    Preempt(*it->second);
    return true;
  }
  return false;
}

// Makes the slot of the next token one that only `sequence` writes to: a new block at a block
// border, a copy of a tail that samples still share. False: no memory now. The sequence then keeps
// what it holds; older ones can take it, and the oldest of all can take from everybody, so somebody
// always goes on.
bool Scheduler::MakeWritable(Sequence& sequence, StepPlan& plan, std::vector<int32_t>& pinned) {
  const int64_t index = sequence.computed / options_.block_tokens;
  while (true) {
    const bool has_block = index < static_cast<int64_t>(sequence.blocks.size());
    if (has_block) {
      const int32_t block = sequence.blocks[index];
      const auto pins = std::count(pinned.begin(), pinned.end(), block);
      if (pool_->references(block) - pins <= 1) return true;
    }
    if (const std::optional<int32_t> block = pool_->Allocate(); block.has_value()) {
      if (!has_block) {
        sequence.blocks.push_back(*block);
        return true;
      }
      // The source keeps this reference until the plan is complete, lest a later part of the same
      // plan should make it a destination.
      pinned.push_back(sequence.blocks[index]);
      plan.copies.push_back({sequence.blocks[index], *block});
      sequence.blocks[index] = *block;
      return true;
    }
    if (!PreemptYoungerThan(sequence)) return false;
  }
}

bool Scheduler::Admit(Sequence& sequence) {
  Request& request = *sequence.request;
  const int64_t size = sequence.size();
  // The last row is always computed: a token is chosen from it. So are rows whose prompt logprob
  // is still wanted.
  int64_t reusable = size - 1;
  if (request.wants_prompt_logprobs()) reusable = std::min(reusable, request.prompt_rows_done);
  std::vector<int32_t> hits;
  if (options_.prefix_reuse) {
    hits = pool_->MatchPrefix(request.spec.cache_salt, sequence.Tokens(0, reusable), reusable);
  }
  const int64_t num_hits = static_cast<int64_t>(hits.size());
  const int64_t fresh = CeilDiv(size, options_.block_tokens) - num_hits;
  // Some room to grow spares running sequences a preemption right after.
  const int64_t reserve = running_.empty() ? 0 : std::max<int64_t>(1, options_.num_blocks / 100);
  if (fresh + pool_->CachedAmong(hits) + reserve > pool_->available()) return false;
  pool_->Acquire(hits);
  if (options_.prefix_reuse) pool_->CountLookup(reusable / options_.block_tokens, num_hits);
  sequence.blocks = std::move(hits);
  for (int64_t i = 0; i < fresh; ++i) sequence.blocks.push_back(*pool_->Allocate());
  sequence.computed = num_hits * options_.block_tokens;
  sequence.published = num_hits;
  counters_.cached_tokens += sequence.computed;

  const Order order{request.arrival, sequence.sample_index};
  waiting_.erase(order);
  running_.emplace(order, &sequence);
  sequence.state = SequenceState::kRunning;
  if (!request.admitted) {
    request.admitted = true;
    --counters_.queued_requests;
    ++counters_.running_requests;
    RequestOutput& output = OutputOf(request);
    output.admitted = true;
    output.cached_tokens = sequence.computed;
  }
  return true;
}

void Scheduler::AddToPlan(Sequence& sequence, int64_t count, StepPlan& plan, InFlight& in_flight) {
  Request& request = *sequence.request;
  const RequestSpec& spec = request.spec;
  const int64_t end = sequence.computed + count;
  const bool is_last = end == sequence.size();
  SequenceStep step;
  step.sequence_id = sequence.id;
  step.token_ids = sequence.Tokens(sequence.computed, end);
  step.start = static_cast<int32_t>(sequence.computed);
  step.block_table.assign(sequence.blocks.begin(),
                          sequence.blocks.begin() + CeilDiv(end, options_.block_tokens));
  step.sampling = spec.sampling;
  step.prompt_length = static_cast<int32_t>(request.prompt_size());
  int64_t prompt_rows = 0;
  if (request.wants_prompt_logprobs()) {
    prompt_rows =
        std::max<int64_t>(0, std::min(end, request.prompt_size() - 1) - sequence.computed);
    if (end < request.prompt_size()) step.next_prompt_token = spec.prompt[end];
  } else {
    step.sampling.prompt_logprobs = -1;
  }
  if (is_last) {
    const size_t slots = request.fork_pending() ? request.samples.size() : 1;
    for (size_t i = 0; i < slots; ++i) {
      const Sequence& chosen = slots > 1 ? *request.samples[i] : sequence;
      step.samples.push_back({chosen.id, static_cast<uint32_t>(chosen.sample_index)});
    }
    if (static_cast<int64_t>(sequence.generated.size()) < spec.min_tokens) {
      step.suppressed = spec.stop_token_ids;
      if (!spec.ignore_eos) {
        step.suppressed.insert(step.suppressed.end(), options_.eos_token_ids.begin(),
                               options_.eos_token_ids.end());
      }
    }
    if (spec.sampling.has_penalties()) step.history = sequence.Tokens(0, end);
  }
  const bool is_decode = count == 1 && is_last && !sequence.generated.empty();
  if (!is_decode) counters_.prompt_tokens += count;
  sequence.in_flight = true;
  in_flight.parts.push_back(
      {requests_.at(spec.request_id), &sequence, count, step.samples, prompt_rows});
  plan.sequences.push_back(std::move(step));
}

std::optional<StepPlan> Scheduler::Schedule() {
  const int64_t free_plans = options_.max_plans_in_flight - static_cast<int64_t>(in_flight_.size());
  if (free_plans <= 0) return std::nullopt;
  StepPlan plan;
  InFlight in_flight;
  std::vector<int32_t> pinned;
  int64_t budget = options_.max_batch_tokens;
  const auto room = [&] {
    return budget > 0 && static_cast<int64_t>(plan.sequences.size()) < options_.max_batch_sequences;
  };
  const auto add = [&](Sequence& sequence, int64_t count) {
    AddToPlan(sequence, count, plan, in_flight);
    budget -= count;
  };

  // Decodes first. Where several plans may be out, they share the decodes evenly, so that no
  // pipeline stage waits for one big plan.
  std::vector<Sequence*> decodes;
  std::vector<Sequence*> prefills;
  for (const auto& [order, sequence] : running_) {
    if (sequence->in_flight) continue;
    (sequence->size() - sequence->computed == 1 ? decodes : prefills).push_back(sequence);
  }
  int64_t share = CeilDiv(static_cast<int64_t>(decodes.size()), free_plans);
  for (Sequence* sequence : decodes) {
    if (!room() || share == 0) break;
    if (sequence->state != SequenceState::kRunning) continue;  // preempted just now
    if (!MakeWritable(*sequence, plan, pinned)) continue;
    add(*sequence, 1);
    --share;
  }

  const int64_t chunk =
      options_.prefill_chunk > 0 ? options_.prefill_chunk : options_.max_batch_tokens;
  const auto add_chunk = [&](Sequence& sequence) {
    add(sequence, std::min({sequence.size() - sequence.computed, budget, chunk}));
  };
  for (Sequence* sequence : prefills) {
    if (!room()) break;
    if (sequence->state == SequenceState::kRunning) add_chunk(*sequence);
  }

  const int64_t max_running = options_.max_batch_sequences * options_.max_plans_in_flight;
  while (room() && !waiting_.empty()) {
    Sequence& head = *waiting_.begin()->second;
    const int64_t samples = head.request->fork_pending() ? head.request->spec.n : 1;
    if (!running_.empty() && static_cast<int64_t>(running_.size()) + samples > max_running) break;
    if (!Admit(head)) break;
    add_chunk(head);
  }

  pool_->Release(pinned);
  if (plan.sequences.empty()) return std::nullopt;
  plan.epoch = epoch_;
  plan.number = in_flight.number = next_plan_++;
  in_flight_.push_back(std::move(in_flight));
  return plan;
}

}  // namespace phalanx::scheduler
