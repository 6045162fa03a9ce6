// A pipeline of ranks under a virtual clock: a Scheduler drives p stages, each of which handles one
// plan at a time, in order, and passes it on at once. A FakeModel computes the results, so the
// tokens are checked along with the time. Nothing sleeps; the same options give the same trace.
//
// CheckPipelineTrace and StagesBusyAtOnce take a trace of real ranks just as well.
#ifndef PHALANX_TESTS_TESTING_PIPELINE_SIMULATION_H_
#define PHALANX_TESTS_TESTING_PIPELINE_SIMULATION_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/scheduler/scheduler.h"
#include "tests/testing/fake_model.h"

namespace phalanx::testing {

// Stage `stage` was busy with plan number `plan` in [begin, end): slots of the virtual clock, or
// any unit of a real one.
struct PipelineEvent {
  int stage = 0;
  uint64_t plan = 0;
  int64_t begin = 0;
  int64_t end = 0;
  friend bool operator==(const PipelineEvent&, const PipelineEvent&) = default;
};

// One line per event, in order of begin, then stage: "begin end stage plan".
inline std::string ToString(std::vector<PipelineEvent> trace) {
  std::stable_sort(trace.begin(), trace.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.stage) < std::pair(b.begin, b.stage);
  });
  std::string text;
  for (const PipelineEvent& e : trace) {
    absl::StrAppend(&text, e.begin, " ", e.end, " stage ", e.stage, " plan ", e.plan, "\n");
  }
  return text;
}

// Empty when `trace` is one of a pipeline of `stages` stages with at most `max_plans_in_flight`
// plans out: every plan passes every stage in order, once; every stage handles plans 1, 2, 3, ...
// one at a time; and plan n enters only after plan n - max_plans_in_flight has left. Otherwise the
// first thing wrong. The events may come in any order; clocks of stages must agree.
inline std::string CheckPipelineTrace(const std::vector<PipelineEvent>& trace, int stages,
                                      int64_t max_plans_in_flight) {
  std::map<std::pair<uint64_t, int>, PipelineEvent> events;
  uint64_t plans = 0;
  for (const PipelineEvent& e : trace) {
    if (e.stage < 0 || e.stage >= stages || e.plan < 1 || e.end < e.begin) {
      return absl::StrCat("stage ", e.stage, " has plan ", e.plan, " from ", e.begin, " to ",
                          e.end);
    }
    if (!events.emplace(std::pair(e.plan, e.stage), e).second) {
      return absl::StrCat("plan ", e.plan, " is twice on stage ", e.stage);
    }
    plans = std::max(plans, e.plan);
  }
  for (uint64_t plan = 1; plan <= plans; ++plan) {
    for (int stage = 0; stage < stages; ++stage) {
      const auto at = [&](uint64_t p, int s) { return events.find({p, s}); };
      const auto e = at(plan, stage);
      if (e == events.end()) {
        return absl::StrCat("plan ", plan, " never came to stage ", stage);
      }
      const int64_t begin = e->second.begin;
      if (stage > 0 && begin < at(plan, stage - 1)->second.end) {
        return absl::StrCat("plan ", plan, " began on stage ", stage,
                            " before the stage above was done with it");
      }
      if (plan > 1 && begin < at(plan - 1, stage)->second.end) {
        return absl::StrCat("stage ", stage, " began plan ", plan, " before plan ", plan - 1,
                            " was done");
      }
      const uint64_t out = static_cast<uint64_t>(max_plans_in_flight);
      if (stage == 0 && plan > out && begin < at(plan - out, stages - 1)->second.end) {
        return absl::StrCat("plan ", plan, " began while ", out, " others were out");
      }
    }
  }
  return "";
}

// The largest number of stages that were busy at the same time.
inline int StagesBusyAtOnce(const std::vector<PipelineEvent>& trace) {
  std::vector<std::pair<int64_t, int>> changes;  // ends sort before begins of the same time
  for (const PipelineEvent& e : trace) {
    if (e.begin == e.end) continue;
    changes.emplace_back(e.begin, 1);
    changes.emplace_back(e.end, -1);
  }
  std::sort(changes.begin(), changes.end());
  int busy = 0;
  int most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, busy += change);
  return most;
}

class PipelineSimulation {
 public:
  // Slots that `stage` needs for `plan`, >= 1.
  using Cost = std::function<int64_t(const scheduler::StepPlan& plan, int stage)>;
  static int64_t OneSlot(const scheduler::StepPlan& /*plan*/, int /*stage*/) { return 1; }
  static int64_t OneSlotPerRow(const scheduler::StepPlan& plan, int /*stage*/) {
    return plan.num_tokens();
  }

  struct TimedOutput {
    int64_t time = 0;
    scheduler::RequestOutput output;
  };

  // `stages` >= 1; options.max_plans_in_flight is usually the same number.
  PipelineSimulation(scheduler::SchedulerOptions options, int stages, Cost cost = OneSlot,
                     int32_t vocab_size = 50)
      : options_(std::move(options)),
        cost_(std::move(cost)),
        free_at_(stages, 0),
        scheduler_(options_, 1),
        model_(options_.num_blocks * options_.sequence_ranks, options_.block_tokens, vocab_size) {}

  // Calls `action` at `time` (>= now), after the plans that leave the pipeline then are committed
  // and before the next ones are made.
  void At(int64_t time, std::function<void(scheduler::Scheduler&)> action) {
    actions_.emplace(time, std::move(action));
  }
  void AddAt(int64_t time, scheduler::RequestSpec spec) {
    At(time, [this, spec = std::move(spec)](scheduler::Scheduler& scheduler) {
      if (absl::Status status = scheduler.Add(spec); !status.ok()) Wrong(status.ToString());
    });
  }
  // Called with every output as it comes; may call AddAt(now(), ...).
  void OnOutput(std::function<void(const TimedOutput&)> callback) {
    on_output_ = std::move(callback);
  }

  // Runs until nothing is left to do. The result is error(): empty when all went well.
  const std::string& Run() {
    while (error_.empty() && (!actions_.empty() || !out_.empty())) {
      now_ = std::min(actions_.empty() ? out_.front().done : actions_.begin()->first,
                      out_.empty() ? actions_.begin()->first : out_.front().done);
      while (!out_.empty() && out_.front().done == now_) {
        Expect(scheduler_.Commit(out_.front().result));
        out_.pop_front();
        Take();
      }
      while (!actions_.empty() && actions_.begin()->first == now_) {
        const auto action = std::move(actions_.begin()->second);
        actions_.erase(actions_.begin());
        action(scheduler_);
        Take();
      }
      while (std::optional<scheduler::StepPlan> plan = scheduler_.Schedule()) Submit(*plan);
      Take();
      Expect(scheduler_.CheckInvariants());
    }
    const scheduler::SchedulerStats stats = scheduler_.stats();
    if (stats.queued_requests + stats.running_requests != 0) {
      Wrong(absl::StrCat(stats.queued_requests + stats.running_requests, " requests are stuck"));
    }
    return error_;
  }

  int stages() const { return static_cast<int>(free_at_.size()); }
  int64_t now() const { return now_; }  // after Run(): when the last plan left
  scheduler::Scheduler& scheduler() { return scheduler_; }
  const std::string& error() const { return error_; }
  const std::vector<PipelineEvent>& trace() const { return trace_; }
  const std::vector<scheduler::StepPlan>& plans() const { return plans_; }  // number 1 first
  const std::vector<TimedOutput>& outputs() const { return outputs_; }
  // Slots of [begin, end) in which `stage` had nothing to do.
  int64_t IdleSlots(int stage, int64_t begin, int64_t end) const {
    int64_t idle = end - begin;
    for (const PipelineEvent& e : trace_) {
      if (e.stage != stage) continue;
      idle -= std::max<int64_t>(0, std::min(e.end, end) - std::max(e.begin, begin));
    }
    return idle;
  }

 private:
  struct Out {
    int64_t done = 0;
    scheduler::StepResult result;
  };

  void Wrong(const std::string& what) {
    if (error_.empty()) error_ = absl::StrCat("at ", now_, ": ", what);
  }
  void Expect(const absl::Status& status) {
    if (!status.ok()) Wrong(status.ToString());
  }

  void Submit(const scheduler::StepPlan& plan) {
    int64_t ready = now_;
    for (int stage = 0; stage < stages(); ++stage) {
      const int64_t begin = std::max(ready, free_at_[stage]);
      ready = free_at_[stage] = begin + cost_(plan, stage);
      trace_.push_back({stage, plan.number, begin, ready});
    }
    out_.push_back({ready, model_.Run(plan)});
    if (!model_.error().empty()) Wrong(model_.error());
    plans_.push_back(plan);
  }

  void Take() {
    for (scheduler::RequestOutput& output : scheduler_.TakeOutputs()) {
      outputs_.push_back({now_, std::move(output)});
      if (on_output_) on_output_(outputs_.back());
    }
  }

  const scheduler::SchedulerOptions options_;
  const Cost cost_;
  std::vector<int64_t> free_at_;  // [stages]
  scheduler::Scheduler scheduler_;
  FakeModel model_;
  std::multimap<int64_t, std::function<void(scheduler::Scheduler&)>> actions_;
  std::function<void(const TimedOutput&)> on_output_;
  std::deque<Out> out_;
  int64_t now_ = 0;
  std::vector<PipelineEvent> trace_;
  std::vector<scheduler::StepPlan> plans_;
  std::vector<TimedOutput> outputs_;
  std::string error_;
};

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_PIPELINE_SIMULATION_H_
