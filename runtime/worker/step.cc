// A plan, from its check to its result.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "runtime/worker/worker_impl.h"

namespace phalanx::worker {

using scheduler::SequenceResult;
using scheduler::SequenceStep;
using scheduler::StepPlan;
using scheduler::StepResult;

namespace {

// The blocks of `table` that lie on sp rank `s`, as its own ids, -1 for the others'.
std::vector<int32_t> LocalBlocks(const std::vector<int32_t>& table, int64_t blocks_per_rank,
                                 int s) {
  std::vector<int32_t> out;
  out.reserve(table.size());
  for (const int32_t block : table) {
    out.push_back(block / blocks_per_rank == s ? static_cast<int32_t>(block % blocks_per_rank)
                                               : -1);
  }
  return out;
}

int64_t NumSlots(const StepPlan& plan) {
  int64_t slots = 0;
  for (const SequenceStep& step : plan.sequences) {
    slots += static_cast<int64_t>(step.samples.size());
  }
  return slots;
}

}  // namespace

std::vector<scheduler::BlockCopy> Worker::Impl::LocalCopies(
    const std::vector<scheduler::BlockCopy>& copies) const {
  const int64_t blocks = decoder->kv_blocks();
  const int64_t first = blocks * context->groups().at.s;
  std::vector<scheduler::BlockCopy> out;
  for (const scheduler::BlockCopy& copy : copies) {
    if (copy.source < first || copy.source >= first + blocks) continue;
    out.push_back({static_cast<int32_t>(copy.source - first),
                   static_cast<int32_t>(copy.destination - first)});
  }
  return out;
}

absl::Status Worker::Impl::CheckPlan(const StepPlan& plan) const {
  const int64_t vocab = decoder->config().vocab_size;
  const int64_t blocks = decoder->kv_blocks() * options.layout.sp;
  const auto bad = [&](const SequenceStep& step, const std::string& what) {
    return absl::InternalError(
        absl::StrCat("step ", plan.number, ", sequence ", step.sequence_id, ": ", what));
  };
  for (const scheduler::BlockCopy& copy : plan.copies) {
    if (copy.source < 0 || copy.source >= blocks || copy.destination < 0 ||
        copy.destination >= blocks) {
      return absl::InternalError(absl::StrCat("step ", plan.number, ": copy of block ", copy.source,
                                              " to ", copy.destination, " with ", blocks,
                                              " blocks"));
    }
    if (copy.source / decoder->kv_blocks() != copy.destination / decoder->kv_blocks()) {
      return absl::InternalError(absl::StrCat("step ", plan.number, ": copy of block ", copy.source,
                                              " to ", copy.destination,
                                              ", which lies on another sequence rank"));
    }
  }
  for (const SequenceStep& step : plan.sequences) {
    const int64_t end = step.start + static_cast<int64_t>(step.token_ids.size());
    if (step.token_ids.empty() || step.start < 0 || end > decoder->max_positions()) {
      return bad(step, absl::StrCat("positions ", step.start, " to ", end, " with a context of ",
                                    decoder->max_positions()));
    }
    if (static_cast<int64_t>(step.block_table.size()) * kernels::kBlockTokens < end) {
      return bad(step, absl::StrCat("a block table of ", step.block_table.size(),
                                    " blocks for position ", end - 1));
    }
    for (const int32_t block : step.block_table) {
      if (block < 0 || block >= blocks) {
        return bad(step, absl::StrCat("block ", block, " of ", blocks));
      }
    }
    if (step.pending_slot >= 0 && (plan.number != last_plan + 1 || step.token_ids.size() != 1 ||
                                   step.pending_slot >= last_slots)) {
      return bad(step, absl::StrCat("feeds ", step.token_ids.size(), " tokens from slot ",
                                    step.pending_slot, " of the plan before, but the last one was ",
                                    last_plan, " with ", last_slots, " slots"));
    }
    for (const int32_t id : step.token_ids) {
      if (id < 0 || id >= vocab) {
        return bad(step, absl::StrCat("token id ", id, " with a vocabulary of ", vocab));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Worker::Impl::ShareChosen(const StepPlan& plan) {
  const bool wanted = std::any_of(plan.sequences.begin(), plan.sequences.end(),
                                  [](const SequenceStep& step) { return step.pending_slot >= 0; });
  if (!wanted || group.size() == 1) return absl::OkStatus();
  void* const chosen = choices[turn].device.data();
  const int64_t bytes = last_slots * static_cast<int64_t>(sizeof(kernels::Choice));
  const model::ParallelGroups& groups = context->groups();
  if (groups.pp == nullptr) return groups.stage->Broadcast(chosen, bytes, 0);
  // Stages meet on the host alone.
  std::vector<kernels::Choice> on_host(last_slots);
  if (sampler != nullptr) kernels->CopyOut(on_host.data(), chosen, bytes);
  absl::Status status = group.Broadcast(on_host.data(), bytes, context->result_rank());
  if (status.ok() && sampler == nullptr) kernels->CopyIn(chosen, on_host.data(), bytes);
  return status;
}

absl::Status Worker::Impl::MakeRoom(Choices& room, int64_t slots) {
  if (slots <= room.room) return absl::OkStatus();
  const int64_t most = std::max(kLeastSlots, 2 * slots);
  const int64_t bytes = most * static_cast<int64_t>(sizeof(kernels::Choice));
  absl::StatusOr<kernels::Buffer> device = kernels->Allocate(bytes);
  if (!device.ok()) return device.status();
  room.device = *std::move(device);
  if (group.rank() == context->result_rank()) {
    absl::StatusOr<kernels::Buffer> host = kernels->AllocateHost(bytes);
    if (!host.ok()) return host.status();
    room.host = *std::move(host);
  }
  room.room = most;
  return absl::OkStatus();
}

void Worker::Impl::MakeBatch(const StepPlan& plan, StepWork& work) const {
  const model::ParallelGroups& groups = context->groups();
  work.tables.reserve(plan.sequences.size());
  for (const SequenceStep& step : plan.sequences) {
    const int64_t first_row = work.batch.rows();
    const int64_t count = static_cast<int64_t>(step.token_ids.size());
    const int32_t* table = step.block_table.data();
    if (groups.sp != nullptr) {
      work.tables.push_back(LocalBlocks(step.block_table, decoder->kv_blocks(), groups.at.s));
      table = work.tables.back().data();
    }
    const int32_t pending = -1 - step.pending_slot;
    work.batch.Append(step.pending_slot >= 0 ? &pending : step.token_ids.data(), count, step.start,
                      table);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = static_cast<int32_t>(first_row + i);
      if (step.sampling.prompt_logprobs >= 0 && step.start + i + 1 < step.prompt_length) {
        work.rows.push_back(row);
        work.uses.push_back(
            {&step, i + 1 < count ? step.token_ids[i + 1] : step.next_prompt_token, nullptr});
      }
      if (i + 1 == count && !step.samples.empty()) {
        work.rows.push_back(row);
        work.uses.push_back({&step, -1, nullptr});
      }
    }
  }
}

void Worker::Impl::Trace(uint64_t step, bool begin) const {
  if (!options.trace) return;
  options.trace({group.rank(), context->groups().at.p, step, begin, absl::Now()});
}

absl::Status Worker::Start(const StepPlan& plan) {
  Impl& m = *impl_;
  Started started;
  started.begin = absl::Now();
  started.result.epoch = plan.epoch;
  started.result.number = plan.number;
  {
    const std::lock_guard<std::mutex> lock(m.mutex);
    PHALANX_CHECK(m.unfinished < kMostStarted) << "plan " << plan.number << " is one too many";
  }
  if (absl::Status status = m.CheckPlan(plan); !status.ok()) return status;
  if (absl::Status status = m.ShareChosen(plan); !status.ok()) return status;
  const bool samples = m.sampler != nullptr;
  StepWork work;
  work.batch.chosen = m.choices[m.turn].device.as<kernels::Choice>();
  m.MakeBatch(plan, work);
  if (samples) {
    std::vector<SequenceResult>& results = started.result.sequences;
    for (const SequenceStep& step : plan.sequences) {
      results.emplace_back().sequence_id = step.sequence_id;
    }
    for (sampling::LogitUse& use : work.uses) {
      use.result = &results[use.step - plan.sequences.data()];
    }
  }
  const int64_t slots = NumSlots(plan);
  Choices& room = m.choices[1 - m.turn];
  if (absl::Status status = m.MakeRoom(room, slots); !status.ok()) return status;

  m.kernels->BeginStep(work.batch.rows());
  m.decoder->CopyBlocks(m.LocalCopies(plan.copies));
  model::StageHooks hooks;
  hooks.input_ready = [&] { m.Trace(plan.number, true); };
  // The rank that samples is not done before it has.
  if (!samples && m.options.trace) hooks.output_ready = [&] { m.Trace(plan.number, false); };
  if (absl::Status status = m.decoder->Forward(work.batch, hooks); !status.ok()) return status;

  auto* next = room.device.as<kernels::Choice>();
  absl::Status status =
      m.decoder->Logits(work.rows, [&](int64_t first, kernels::TensorView logits) {
        const auto uses = absl::MakeConstSpan(work.uses).subspan(first, logits.rows);
        m.sampler->SampleRows(logits, uses, next);
        for (const sampling::LogitUse& use : uses) {
          if (use.target < 0) next += use.step->samples.size();
        }
      });
  if (!status.ok()) return status;
  if (samples) {
    // Rounded up to what any number of slots is copied by, so that a graph fits all. Rooms are
    // twice as large and more.
    const int64_t bytes =
        kernels::RoundUp(slots, 2) * static_cast<int64_t>(sizeof(kernels::Choice));
    static_assert(2 * sizeof(kernels::Choice) == 16 && kLeastSlots % 2 == 0);
    m.kernels->CopyOutLater(room.host.data(), room.device.data(), bytes);
    started.choices = room.host.as<kernels::Choice>();
    m.decoder->CopyOutExpertTokens(room.expert_tokens.as<int64_t>());
    started.expert_tokens = room.expert_tokens.as<int64_t>();
  }
  m.kernels->EndStep();
  m.last_plan = plan.number;
  m.last_slots = slots;
  m.turn = 1 - m.turn;
  if (samples) started.done = m.kernels->Mark();
  const std::lock_guard<std::mutex> lock(m.mutex);
  m.started.push_back(std::move(started));
  ++m.unfinished;
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Worker::Finish() {
  Impl& m = *impl_;
  Started started;
  {
    const std::lock_guard<std::mutex> lock(m.mutex);
    PHALANX_CHECK(!m.started.empty()) << "no plan was started";
    started = std::move(m.started.front());
    m.started.pop_front();
  }
  absl::StatusOr<StepResult> result = m.Complete(std::move(started));
  // From here on what the plan has chosen may be overwritten.
  const std::lock_guard<std::mutex> lock(m.mutex);
  --m.unfinished;
  return result;
}

absl::StatusOr<StepResult> Worker::Impl::Complete(Started started) {
  StepResult result = std::move(started.result);
  if (started.done != nullptr) {
    started.done->Wait();
    if (absl::Status sound = context->CheckDeviceCalls(); !sound.ok()) return sound;
    const kernels::Choice* choice = started.choices;
    for (SequenceResult& sequence : result.sequences) {
      for (scheduler::SampleResult& sample : sequence.samples) sample.token.id = (choice++)->id;
    }
    result.expert_tokens.assign(started.expert_tokens,
                                started.expert_tokens + decoder->config().num_experts);
    Trace(result.number, false);
  }
  // From when the device was free for it.
  const absl::Time now = absl::Now();
  result.compute_us = absl::ToInt64Microseconds(now - std::max(started.begin, last_finished));
  last_finished = now;
  return result;
}

absl::StatusOr<StepResult> Worker::Execute(const StepPlan& plan) {
  if (absl::Status status = Start(plan); !status.ok()) return status;
  return Finish();
}

bool Worker::gives_results() const { return impl_->sampler != nullptr; }
bool Worker::finishes_later() const {
  return gives_results() && !impl_->kernels->host_accessible();
}

}  // namespace phalanx::worker
