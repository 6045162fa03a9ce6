// What goes into the next plan: which sequences, how many rows of each, and the KV blocks for them.
#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/state.h"

namespace phalanx::scheduler {

void Scheduler::Preempt(Sequence& sequence) {
  const Order order = OrderOf(sequence);
  running_.erase(order);
  ReleaseBlocks(sequence);
  sequence.state = SequenceState::kWaiting;
  waiting_.emplace(order, &sequence);
  ++counters_.preemptions;
  ++sequence.request->preemptions;
}

// Preempts the youngest sequence that is younger than `sequence` and whose leaving helps to make
// block `index` of `sequence` writable: because a block of that rank becomes free, at once or when
// others that may be preempted leave too, or because it shares the block itself. False: there is
// none.
bool Scheduler::PreemptFor(const Sequence& sequence, int64_t index) {
  const int rank = striping_.RankOf(index);
  std::vector<Sequence*> candidates;  // youngest first
  std::unordered_map<int32_t, int32_t> holders;
  for (auto it = running_.rbegin(); it != running_.rend() && it->second != &sequence; ++it) {
    // What is in a plan, this one included, can't be taken back.
    if (it->second->in_flight > 0) continue;
    candidates.push_back(it->second);
    for (const int32_t block : it->second->blocks) {
      if (pool_->PartitionOf(block) == rank) ++holders[block];
    }
  }
  const int32_t wanted =
      index < static_cast<int64_t>(sequence.blocks.size()) ? sequence.blocks[index] : -1;
  for (Sequence* candidate : candidates) {
    const bool helps =
        std::any_of(candidate->blocks.begin(), candidate->blocks.end(), [&](int32_t block) {
          if (block == wanted) return true;
          const auto it = holders.find(block);
          return it != holders.end() && it->second == pool_->references(block);
        });
    if (!helps) continue;
    Preempt(*candidate);
    return true;
  }
  return false;
}

// Makes the slot of the next token one that only `sequence` writes to: a new block at a block
// border, a copy of a tail that samples still share. False: no memory now on the rank of that
// block. The sequence then keeps what it holds; older ones can take it, and the oldest of all can
// take from everybody. With everybody else gone it holds fewer blocks of that rank than CheckFits
// has allowed for, so somebody always goes on.
bool Scheduler::MakeWritable(Sequence& sequence, StepPlan& plan) {
  const int64_t index = sequence.scheduled / options_.block_tokens;
  while (true) {
    const bool has_block = index < static_cast<int64_t>(sequence.blocks.size());
    if (has_block && !pool_->IsShared(sequence.blocks[index])) return true;
    if (const auto block = pool_->Allocate(striping_.RankOf(index)); block.has_value()) {
      if (!has_block) {
        sequence.blocks.push_back(*block);
        return true;
      }
      // Only samples of one request share a tail, and whoever is the last of them to come to its
      // turn keeps the source and writes to it in place. So no copy of this plan gets the source as
      // its destination, and ranks may copy in any order; Schedule checks that.
      const int32_t source = std::exchange(sequence.blocks[index], *block);
      pool_->Release({&source, 1});
      plan.copies.push_back({source, *block});
      return true;
    }
    if (!PreemptFor(sequence, index)) return false;
  }
}

bool Scheduler::Admit(Sequence& sequence) {
  Request& request = *sequence.request;
  const int64_t size = sequence.size();
  // The last row is always computed: a token is chosen from it. So are rows whose prompt logprob is
  // still wanted.
  int64_t reusable = size - 1;
  if (request.wants_prompt_logprobs()) reusable = std::min(reusable, request.prompt_rows_done);
  std::vector<int32_t> hits;
  if (options_.prefix_reuse) {
    hits = pool_->MatchPrefix(request.spec.cache_salt, sequence.Tokens(0, reusable), reusable);
  }
  const int64_t num_hits = static_cast<int64_t>(hits.size());
  const int64_t num_blocks = CeilDiv(size, options_.block_tokens);
  // Some room to grow spares running sequences a preemption right after.
  const int64_t reserve = running_.empty() ? 0 : std::max<int64_t>(1, options_.num_blocks / 100);
  for (int rank = 0; rank < striping_.ranks(); ++rank) {
    const int64_t taken = striping_.BlocksOn(rank, num_blocks) -
                          striping_.BlocksOn(rank, num_hits) + pool_->CachedAmong(hits, rank);
    if (taken > 0 && taken + reserve > pool_->available(rank)) return false;
  }
  pool_->Acquire(hits);
  if (options_.prefix_reuse) pool_->CountLookup(reusable / options_.block_tokens, num_hits);
  sequence.blocks = std::move(hits);
  for (int64_t i = num_hits; i < num_blocks; ++i) {
    sequence.blocks.push_back(*pool_->Allocate(striping_.RankOf(i)));
  }
  sequence.computed = num_hits * options_.block_tokens;
  sequence.scheduled = sequence.computed;
  sequence.published = num_hits;
  counters_.cached_tokens += sequence.computed;

  const Order order = OrderOf(sequence);
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

// Where the plan chooses the sequence's token, counting the slots of all its parts; -1: it doesn't,
// or chooses for others, too.
int32_t Scheduler::SlotOf(const InFlight& plan, const Sequence& sequence) {
  int32_t slot = 0;
  for (const InFlight::Part& part : plan.parts) {
    if (part.sequence == &sequence) return part.slots.size() == 1 ? slot : -1;
    slot += static_cast<int32_t>(part.slots.size());
  }
  return -1;
}

void Scheduler::AddToPlan(Sequence& sequence, int64_t count, StepPlan& plan, InFlight& in_flight) {
  Request& request = *sequence.request;
  const RequestSpec& spec = request.spec;
  const int64_t end = sequence.scheduled + count;
  const bool is_last = end == sequence.coming_size();
  SequenceStep step;
  step.sequence_id = sequence.id;
  if (sequence.choosing == 0) {
    step.token_ids = sequence.Tokens(sequence.scheduled, end);
  } else {
    step.token_ids = {0};
    step.pending_slot = SlotOf(in_flight_.back(), sequence);
  }
  step.start = static_cast<int32_t>(sequence.scheduled);
  step.block_table.assign(sequence.blocks.begin(),
                          sequence.blocks.begin() + CeilDiv(end, options_.block_tokens));
  step.sampling = spec.sampling;
  step.prompt_length = static_cast<int32_t>(request.prompt_size());
  int64_t prompt_rows = 0;
  if (request.wants_prompt_logprobs()) {
    prompt_rows =
        std::max<int64_t>(0, std::min(end, request.prompt_size() - 1) - sequence.scheduled);
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
    if (static_cast<int64_t>(sequence.generated.size()) + sequence.choosing < spec.min_tokens) {
      step.suppressed = spec.stop_token_ids;
      if (!spec.ignore_eos) {
        step.suppressed.insert(step.suppressed.end(), options_.eos_token_ids.begin(),
                               options_.eos_token_ids.end());
      }
    }
    if (spec.sampling.has_penalties()) step.history = sequence.Tokens(0, end);
  }
  const bool is_decode = count == 1 && is_last && sequence.coming_size() > request.prompt_size();
  if (!is_decode) counters_.prompt_tokens += count;
  ++sequence.in_flight;
  if (step.samples.size() == 1) ++sequence.choosing;
  sequence.scheduled = end;
  in_flight.parts.push_back(
      {requests_.at(spec.request_id), &sequence, count, step.samples, prompt_rows});
  plan.sequences.push_back(std::move(step));
}

// How many of the sequences that feed one row at a time the next plan takes. Each of them is in at
// most one plan, so with P plans a pipeline of P stages has no idle one as long as every plan holds
// some. The sizes differ by at most one where nothing comes or goes: of P plans the first D mod P
// that are short of it get one more than floor(D / P).
int64_t Scheduler::DecodeShare(int64_t decoding) const {
  const int64_t least = decoding / options_.max_plans_in_flight;
  int64_t larger = 0;
  for (const InFlight& plan : in_flight_) {
    const auto decodes = std::count_if(plan.parts.begin(), plan.parts.end(), [](const auto& part) {
      return !part.slots.empty() && part.sequence->state == SequenceState::kRunning;
    });
    if (decodes > least) ++larger;
  }
  return least + (larger < decoding % options_.max_plans_in_flight ? 1 : 0);
}

// How many prefill rows one plan should hold while `rows` of them wait: all that fit where one plan
// at a time is out. A pipeline of P stages needs time for all rows and P - 1 times that for the
// largest plan, so less than the budget is cut into up to 2 P plans of equal size; more would not
// pay for reading the weights once more.
int64_t Scheduler::PrefillShare(int64_t rows) const {
  const int64_t plans = options_.max_plans_in_flight;
  if (plans == 1) return options_.max_batch_tokens;
  return CeilDiv(rows, std::clamp<int64_t>(rows / options_.min_prefill_chunk, 1, 2 * plans));
}

Scheduler::Request* Scheduler::Isolated() const {
  for (const auto* sequences : {&running_, &waiting_}) {
    for (const auto& [order, sequence] : *sequences) {
      if (sequence->request->isolated) return sequence->request;
    }
  }
  return nullptr;
}

// One plan at a time with nothing but this request in it: a death is then this request's own.
std::optional<StepPlan> Scheduler::ScheduleIsolated(Request& request) {
  if (!in_flight_.empty()) return std::nullopt;
  // Nothing is in flight, so the others' memory can be taken, the youngest's first.
  const auto preempt_another = [&] {
    const auto other = std::find_if(running_.rbegin(), running_.rend(), [&](const auto& entry) {
      return entry.second->request != &request;
    });
    if (other == running_.rend()) return false;
    Preempt(*other->second);
    return true;
  };
  StepPlan plan;
  InFlight in_flight;
  int64_t budget = options_.max_batch_tokens;
  const int64_t chunk =
      options_.prefill_chunk > 0 ? options_.prefill_chunk : options_.max_batch_tokens;
  for (const auto& sample : request.samples) {
    if (budget == 0 ||
        static_cast<int64_t>(plan.sequences.size()) >= options_.max_batch_sequences) {
      break;
    }
    Sequence& sequence = *sample;
    if (sequence.state == SequenceState::kWaiting) {
      while (!Admit(sequence) && preempt_another()) continue;
    }
    if (sequence.state != SequenceState::kRunning) continue;
    const int64_t rest = sequence.size() - sequence.scheduled;
    if (rest == 1) {
      bool writable = false;
      while (!(writable = MakeWritable(sequence, plan)) && preempt_another()) continue;
      if (!writable) continue;
    }
    const int64_t count = std::min({rest, budget, chunk});
    AddToPlan(sequence, count, plan, in_flight);
    budget -= count;
  }
  return Finish(std::move(plan), std::move(in_flight));
}

std::optional<StepPlan> Scheduler::Schedule() {
  const int64_t max_plans = options_.max_plans_in_flight;
  if (static_cast<int64_t>(in_flight_.size()) >= max_plans) return LookAhead();
  if (Request* request = Isolated(); request != nullptr) return ScheduleIsolated(*request);
  StepPlan plan;
  InFlight in_flight;
  int64_t budget = options_.max_batch_tokens;
  const auto room = [&] {
    return budget > 0 && static_cast<int64_t>(plan.sequences.size()) < options_.max_batch_sequences;
  };

  std::vector<Sequence*> decodes;   // one row is left to feed
  std::vector<Sequence*> prefills;  // more are; earlier chunks may be in flight
  int64_t decoding = 0;             // `decodes` and those that are in flight with their last row
  int64_t prefill_rows = 0;
  for (const auto& [order, sequence] : running_) {
    const int64_t rest = sequence->size() - sequence->scheduled;
    if (rest <= 1) ++decoding;
    if (rest == 1) decodes.push_back(sequence);
    if (rest > 1) {
      prefills.push_back(sequence);
      prefill_rows += rest;
    }
  }

  // Decodes first.
  const Sequence* starved = nullptr;
  int64_t share = DecodeShare(decoding);
  for (Sequence* sequence : decodes) {
    if (!room() || share == 0) break;
    if (sequence->state != SequenceState::kRunning) continue;  // preempted just now
    if (!MakeWritable(*sequence, plan)) {
      if (starved == nullptr) starved = sequence;
      continue;
    }
    AddToPlan(*sequence, 1, plan, in_flight);
    --budget;
    --share;
  }

  // The oldest prefill sets what this plan gives to prefills, once for all its chunks.
  const int64_t chunk =
      options_.prefill_chunk > 0 ? options_.prefill_chunk : options_.max_batch_tokens;
  int64_t prefill_budget = -1;
  const auto add_chunk = [&](Sequence& sequence) {
    if (prefill_budget < 0) {
      if (sequence.prefill_share == 0) {
        for (const auto& [order, waiting] : waiting_) {
          if (prefill_rows >= 2 * max_plans * options_.max_batch_tokens) break;
          prefill_rows += waiting->size();
        }
        sequence.prefill_share = PrefillShare(prefill_rows);
      }
      prefill_budget = sequence.prefill_share;
    }
    const int64_t count =
        std::min({sequence.size() - sequence.scheduled, budget, prefill_budget, chunk});
    AddToPlan(sequence, count, plan, in_flight);
    budget -= count;
    prefill_budget -= count;
  };
  for (Sequence* sequence : prefills) {
    if (!room() || prefill_budget == 0) break;
    if (sequence->state != SequenceState::kRunning) continue;
    // An older sequence may want its blocks, which can't be taken while it is in flight.
    if (starved != nullptr && sequence->in_flight > 0 && OrderOf(*starved) < OrderOf(*sequence)) {
      continue;
    }
    add_chunk(*sequence);
  }

  const int64_t max_running = options_.max_batch_sequences * max_plans;
  while (room() && prefill_budget != 0 && !waiting_.empty()) {
    Sequence& head = *waiting_.begin()->second;
    const int64_t samples = head.request->fork_pending() ? head.request->spec.n : 1;
    if (!running_.empty() && static_cast<int64_t>(running_.size()) + samples > max_running) break;
    if (!Admit(head)) break;
    prefill_rows += head.size() - head.scheduled;
    add_chunk(head);
  }

  return Finish(std::move(plan), std::move(in_flight));
}

std::optional<StepPlan> Scheduler::LookAhead() {
  if (!options_.look_ahead || options_.max_plans_in_flight != 1 || in_flight_.size() != 1 ||
      !waiting_.empty() || Isolated() != nullptr) {
    return std::nullopt;
  }
  std::vector<Sequence*> going_on;
  for (const auto& [order, sequence] : running_) {
    if (sequence->request->spec.sampling.has_penalties() ||
        SlotOf(in_flight_.back(), *sequence) < 0) {
      return std::nullopt;
    }
    if (!EndsByLength(*sequence, sequence->coming_size())) going_on.push_back(sequence);
  }
  for (Sequence* sequence : going_on) {
    const int64_t index = sequence->scheduled / options_.block_tokens;
    if (index < static_cast<int64_t>(sequence->blocks.size())) continue;
    const auto block = pool_->Allocate(striping_.RankOf(index));
    // Memory is short: the next Schedule() may preempt somebody. The blocks so far are used then.
    if (!block.has_value()) return std::nullopt;
    sequence->blocks.push_back(*block);
  }
  StepPlan plan;
  InFlight in_flight;
  for (Sequence* sequence : going_on) AddToPlan(*sequence, 1, plan, in_flight);
  return Finish(std::move(plan), std::move(in_flight));
}

std::optional<StepPlan> Scheduler::Finish(StepPlan plan, InFlight in_flight) {
  if (plan.sequences.empty()) return std::nullopt;
  for (const BlockCopy& copy : plan.copies) {
    for (const BlockCopy& other : plan.copies) {
      PHALANX_CHECK(copy.source != other.destination) << "block " << copy.source << " is both";
    }
  }
  plan.epoch = epoch_;
  plan.number = in_flight.number = next_plan_++;
  in_flight_.push_back(std::move(in_flight));
  return plan;
}

}  // namespace phalanx::scheduler
