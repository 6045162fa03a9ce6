// Runs a Scheduler against a FakeModel, and the same request alone by the plain rules.
#ifndef PHALANX_TESTS_RUNTIME_SCHEDULER_SIMULATION_H_
#define PHALANX_TESTS_RUNTIME_SCHEDULER_SIMULATION_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/scheduler.h"
#include "tests/testing/fake_model.h"

namespace phalanx::scheduler {

inline constexpr int32_t kVocab = 50;

struct SampleTrace {
  std::vector<TokenLogprobs> tokens;
  FinishReason finish = FinishReason::kNone;
  friend bool operator==(const SampleTrace&, const SampleTrace&) = default;
};

struct RequestTrace {
  std::vector<SampleTrace> samples;
  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t cached_tokens = 0;
  int64_t preemptions = 0;
  int admissions = 0;
  int ends = 0;
  absl::Status status;
};

// What the request gives alone, by the rules and nothing else.
inline std::vector<SampleTrace> Alone(const RequestSpec& spec, const SchedulerOptions& options) {
  std::vector<SampleTrace> samples(spec.n);
  for (int32_t i = 0; i < spec.n; ++i) {
    std::vector<int32_t> tokens = spec.prompt;
    SampleTrace& sample = samples[i];
    while (sample.finish == FinishReason::kNone) {
      std::vector<int32_t> stops = spec.stop_token_ids;
      if (!spec.ignore_eos) {
        stops.insert(stops.end(), options.eos_token_ids.begin(), options.eos_token_ids.end());
      }
      const bool early = static_cast<int64_t>(sample.tokens.size()) < spec.min_tokens;
      const TokenLogprobs next = testing::FakeModel::Next(
          tokens, spec.sampling, i, static_cast<int64_t>(spec.prompt.size()),
          early ? stops : std::vector<int32_t>(), kVocab);
      tokens.push_back(next.id);
      sample.tokens.push_back(next);
      if (std::find(stops.begin(), stops.end(), next.id) != stops.end()) {
        sample.finish = FinishReason::kStop;
      } else if (static_cast<int64_t>(sample.tokens.size()) >= spec.max_tokens ||
                 static_cast<int64_t>(tokens.size()) >= options.max_context) {
        sample.finish = FinishReason::kLength;
      }
    }
  }
  return samples;
}

class Simulation {
 public:
  explicit Simulation(SchedulerOptions options)
      : options_(options), scheduler_(options, 1), model_(MakeModel()) {}

  Scheduler& scheduler() { return scheduler_; }
  std::map<uint64_t, RequestTrace>& traces() { return traces_; }
  const testing::FakeModel& model() const { return *model_; }

  void Take() {
    newest_.clear();
    for (RequestOutput& output : scheduler_.TakeOutputs()) {
      RequestTrace& trace = traces_[output.request_id];
      EXPECT_EQ(trace.ends, 0) << "output after the end of request " << output.request_id;
      if (output.admitted) {
        ++trace.admissions;
        trace.cached_tokens = output.cached_tokens;
      }
      for (auto& p : output.prompt_logprobs) trace.prompt_logprobs.push_back(p);
      for (SampleToken& token : output.tokens) {
        if (trace.samples.size() <= static_cast<size_t>(token.sample_index)) {
          trace.samples.resize(token.sample_index + 1);
        }
        SampleTrace& sample = trace.samples[token.sample_index];
        EXPECT_EQ(sample.finish, FinishReason::kNone);
        sample.tokens.push_back(token.token);
        sample.finish = token.finish;
        if (token.finish == FinishReason::kNone) {
          newest_.emplace_back(output.request_id, token.sample_index);
        }
      }
      if (output.done) {
        ++trace.ends;
        trace.status = output.status;
        trace.preemptions = output.preemptions;
      }
    }
  }

  // Request and sample of the tokens that the last call gave and that ended nothing.
  const std::vector<std::pair<uint64_t, int32_t>>& newest() const { return newest_; }

  // Schedules one plan, if there is one.
  bool Schedule() {
    std::optional<StepPlan> plan = scheduler_.Schedule();
    Take();
    if (!plan.has_value()) return false;
    EXPECT_LE(plan->num_tokens(), options_.max_batch_tokens);
    EXPECT_LE(static_cast<int64_t>(plan->sequences.size()), options_.max_batch_sequences);
    CheckRanks(*plan);
    for (const SequenceStep& step : plan->sequences) {
      if (step.pending_slot >= 0) ++looked_ahead_;
      for (const StepResult& out : results_) {
        for (const SequenceResult& part : out.sequences) {
          if (part.sequence_id == step.sequence_id) ++chained_;
        }
      }
    }
    // Plans reach the ranks in order, and are computed in order.
    results_.push_back(model_->Run(*plan));
    last_plan_ = *std::move(plan);
    return true;
  }
  const StepPlan& last_plan() const { return last_plan_; }
  // How often a plan held a sequence that was in an earlier one in flight, over all such pairs.
  int64_t Chained() const { return chained_; }

  // Rows that fed a token which wasn't known when their plan was made.
  int64_t LookedAhead() const { return looked_ahead_; }

  bool Commit() {
    if (results_.empty()) return false;
    const absl::Status status = scheduler_.Commit(results_.front());
    EXPECT_TRUE(status.ok()) << status;
    results_.erase(results_.begin());
    Take();
    return true;
  }

  bool Step() {
    const bool scheduled = Schedule();
    return Commit() || scheduled;
  }

  // Everything to its end; false: it doesn't come to one.
  bool RunAll() {
    for (int i = 0; i < 1000000; ++i) {
      if (!Step()) return true;
    }
    return false;
  }

  // The group dies under what is in flight; the next has the same layout.
  void Die(const absl::Status& cause) {
    results_.clear();
    model_ = MakeModel();
    scheduler_.OnGroupDeath(cause);
    Take();
  }

  // The group's layout may change; 0: as it is.
  void Restart(int64_t num_blocks, int sequence_ranks = 0, int64_t max_plans_in_flight = 0) {
    options_.num_blocks = num_blocks;
    if (sequence_ranks != 0) options_.sequence_ranks = sequence_ranks;
    if (max_plans_in_flight != 0) options_.max_plans_in_flight = max_plans_in_flight;
    results_.clear();
    model_ = MakeModel();
    scheduler_.Restart(scheduler_.epoch() + 1, num_blocks, sequence_ranks, max_plans_in_flight);
    Take();
  }

 private:
  std::unique_ptr<testing::FakeModel> MakeModel() const {
    return std::make_unique<testing::FakeModel>(options_.num_blocks * options_.sequence_ranks,
                                                options_.block_tokens, kVocab);
  }

  // Block b of a table lies on the rank that owns stripe b mod V; copies stay on their rank.
  void CheckRanks(const StepPlan& plan) const {
    const int64_t sp = options_.sequence_ranks;
    const int64_t stripes = options_.sequence_stripes;
    for (const SequenceStep& s : plan.sequences) {
      for (size_t b = 0; b < s.block_table.size(); ++b) {
        const int64_t stripe = static_cast<int64_t>(b) % stripes;
        const int64_t rank = s.block_table[b] / options_.num_blocks;
        EXPECT_TRUE(rank * stripes / sp <= stripe && stripe < (rank + 1) * stripes / sp)
            << "block " << s.block_table[b] << " at index " << b << " is on rank " << rank;
      }
    }
    for (const BlockCopy& copy : plan.copies) {
      EXPECT_EQ(copy.source / options_.num_blocks, copy.destination / options_.num_blocks);
    }
  }

  SchedulerOptions options_;
  Scheduler scheduler_;
  std::unique_ptr<testing::FakeModel> model_;
  std::vector<StepResult> results_;
  std::map<uint64_t, RequestTrace> traces_;
  StepPlan last_plan_;
  std::vector<std::pair<uint64_t, int32_t>> newest_;
  int64_t chained_ = 0;
  int64_t looked_ahead_ = 0;
};

// A request of `prompt` tokens that rise from `first`.
inline RequestSpec MakeSpec(uint64_t id, int64_t prompt, int64_t max_tokens, int32_t first = 1) {
  RequestSpec r;
  r.request_id = id;
  for (int64_t i = 0; i < prompt; ++i) r.prompt.push_back((first + static_cast<int32_t>(i)) % 40);
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  return r;
}

// The request has ended once, with the answer that it gives alone.
inline void ExpectAlone(Simulation& simulation, const RequestSpec& spec,
                        const SchedulerOptions& options) {
  const RequestTrace& trace = simulation.traces()[spec.request_id];
  EXPECT_TRUE(trace.status.ok()) << trace.status;
  EXPECT_EQ(trace.ends, 1);
  EXPECT_EQ(trace.samples, Alone(spec, options)) << "request " << spec.request_id;
  EXPECT_EQ(simulation.model().error(), "");
}

}  // namespace phalanx::scheduler

#endif  // PHALANX_TESTS_RUNTIME_SCHEDULER_SIMULATION_H_
