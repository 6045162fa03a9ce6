// Real stages work in the order that the pipeline simulation says: the step traces of ranks as
// threads, each stage a rank with its layers of a real checkpoint.
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "gtest/gtest.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/worker/in_process_group.h"
#include "tests/testing/pipeline_simulation.h"

namespace phalanx::testing {
namespace {

constexpr int kStages = 4;
constexpr int kRequests = 8;
constexpr int kTokens = 24;

struct Trace {
  std::mutex mutex;
  std::map<std::pair<int, uint64_t>, PipelineEvent> events;

  void Add(const worker::StepEvent& event) {
    std::lock_guard<std::mutex> lock(mutex);
    PipelineEvent& entry = events[{event.stage, event.step}];
    entry.stage = event.stage;
    entry.plan = event.step;
    (event.begin ? entry.begin : entry.end) = absl::ToUnixNanos(event.time);
  }
  std::vector<PipelineEvent> all() {
    std::lock_guard<std::mutex> lock(mutex);
    std::vector<PipelineEvent> out;
    for (const auto& [key, event] : events) out.push_back(event);
    return out;
  }
};

// Plans in the order in which each stage begins them.
std::vector<std::vector<uint64_t>> OrderByStage(std::vector<PipelineEvent> trace) {
  std::sort(trace.begin(), trace.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  std::vector<std::vector<uint64_t>> out(kStages);
  for (const PipelineEvent& event : trace) out[event.stage].push_back(event.plan);
  return out;
}

TEST(PipelineTrace, RealStagesWorkInTheOrderOfTheSimulation) {
  Trace trace;
  worker::WorkerOptions options;
  options.model_directory = PHALANX_SOURCE_DIR "/tests/goldens/models/mixtral";
  options.layout.pp = kStages;
  options.kv_blocks = 64;
  options.trace = [&](const worker::StepEvent& event) { trace.Add(event); };
  coordinator::CoordinatorOptions service;
  service.limits.vocab_size = 157;
  service.limits.max_context = 512;
  service.scheduler.max_context = 512;
  service.scheduler.max_batch_tokens = options.max_step_tokens;
  coordinator::Coordinator coordinator(std::move(service), worker::CreateInProcessGroup(options));
  ASSERT_TRUE(coordinator.Start().ok());
  absl::BlockingCounter left(kRequests);
  for (int i = 0; i < kRequests; ++i) {
    coordinator::GenerateRequest request;
    request.prompt_token_ids = {5 + i, 6, 7, 8};
    request.max_tokens = kTokens;
    request.ignore_eos = true;
    const auto handle = coordinator.Submit(request, [&](const coordinator::Event& event) {
      if (event.done) {
        EXPECT_TRUE(event.status.ok()) << event.status;
        left.DecrementCount();
      }
    });
    ASSERT_TRUE(handle.ok()) << handle.status();
  }
  left.Wait();
  coordinator.Stop();
  const std::vector<PipelineEvent> events = trace.all();

  // One plan after the other on every stage, stage after stage, never more than four out.
  EXPECT_EQ(CheckPipelineTrace(events, kStages, kStages), "");
  // Every stage takes the plans in the order in which they were made, as in the simulation.
  scheduler::SchedulerOptions simulated;
  simulated.num_blocks = 64;
  simulated.max_context = 512;
  simulated.max_plans_in_flight = kStages;
  PipelineSimulation simulation(simulated, kStages);
  for (int i = 0; i < kRequests; ++i) {
    scheduler::RequestSpec spec;
    spec.request_id = i + 1;
    spec.prompt = {5 + i, 6, 7, 8};
    spec.max_tokens = kTokens;
    spec.ignore_eos = true;
    simulation.AddAt(0, spec);
  }
  simulation.Run();
  const auto expected = OrderByStage(simulation.trace());
  const auto found = OrderByStage(events);
  for (int stage = 0; stage < kStages; ++stage) {
    // How many plans there are depends on when requests come; their order doesn't.
    ASSERT_GE(found[stage].size(), static_cast<size_t>(kTokens));
    const size_t both = std::min(expected[stage].size(), found[stage].size());
    EXPECT_TRUE(
        std::equal(found[stage].begin(), found[stage].begin() + both, expected[stage].begin()))
        << "stage " << stage;
  }
  // Stages overlap: with plans of disjoint requests out, some work at the same time.
  EXPECT_GT(StagesBusyAtOnce(events), 1);
}

}  // namespace
}  // namespace phalanx::testing
