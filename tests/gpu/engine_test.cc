// The whole engine without a network (coordinator, scheduler, ranks as threads) on a device whose
// memory the host can't touch: prompts in, tokens out, with steps that are enqueued while the one
// before runs and that feed tokens which the host hasn't seen.
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/worker/in_process_group.h"
#include "tests/gpu/tested_device.h"
#include "tests/testing/golden.h"

namespace phalanx {
namespace {

using coordinator::Event;
using coordinator::GenerateRequest;
using scheduler::TokenLogprobs;

constexpr int64_t kNewTokens = 12;

// Counts the plans that feed what the plan before them chooses.
class Watched : public coordinator::WorkerGroup {
 public:
  Watched(std::unique_ptr<coordinator::WorkerGroup> group, std::atomic<int>* ahead)
      : group_(std::move(group)), ahead_(ahead) {}
  absl::StatusOr<coordinator::GroupInfo> Start(ResultCallback on_result) override {
    return group_->Start(std::move(on_result));
  }
  absl::Status Submit(scheduler::StepPlan plan) override {
    bool feeds = false;
    for (const scheduler::SequenceStep& step : plan.sequences) feeds |= step.pending_slot >= 0;
    *ahead_ += feeds ? 1 : 0;
    return group_->Submit(std::move(plan));
  }
  void Stop() override { group_->Stop(); }

 private:
  std::unique_ptr<coordinator::WorkerGroup> group_;
  std::atomic<int>* ahead_;
};

worker::WorkerOptions OnCpu(const std::string& directory) {
  worker::WorkerOptions options;
  options.model_directory = directory;
  options.kv_blocks = 40;
  options.max_step_tokens = 64;
  return options;
}

worker::WorkerOptions OnDevice(const std::string& directory, const parallel::Layout& layout = {}) {
  worker::WorkerOptions options = OnCpu(directory);
  options.device.kind = kernels::DeviceKind::kCuda;
  options.device.cuda = testing::TestedDevice();
  options.device_transport = worker::DeviceTransport::kStaged;
  options.gpu_memory_fraction = 0.2;
  options.layout = layout;
  return options;
}

struct Answer {
  std::vector<std::vector<TokenLogprobs>> samples;
  std::vector<TokenLogprobs> prompt_logprobs;
  friend bool operator==(const Answer&, const Answer&) = default;
};

struct Served {
  std::vector<Answer> answers;  // of each request
  int ahead = 0;                // plans that were made before the one before them had a result
  std::vector<int64_t> expert_tokens;  // of all steps
};

// All requests at once.
Served Serve(const worker::WorkerOptions& options, bool look_ahead,
             const std::vector<GenerateRequest>& requests) {
  Served served;
  const auto checkpoint = checkpoint::Checkpoint::Open(options.model_directory);
  if (!checkpoint.ok()) {
    ADD_FAILURE() << checkpoint.status();
    return served;
  }
  coordinator::CoordinatorOptions service;
  service.limits.vocab_size = (*checkpoint)->config().vocab_size;
  service.limits.max_context = (*checkpoint)->config().max_position_embeddings;
  service.scheduler.max_batch_tokens = options.max_step_tokens;
  service.scheduler.max_context = service.limits.max_context;
  service.scheduler.look_ahead = look_ahead;
  std::atomic<int> ahead = 0;
  std::vector<std::unique_ptr<coordinator::WorkerGroup>> groups;
  groups.push_back(std::make_unique<Watched>(worker::CreateInProcessGroup(options), &ahead));
  coordinator::Coordinator coordinator(std::move(service), std::move(groups));
  const absl::Status started = coordinator.Start();
  EXPECT_TRUE(started.ok()) << started;
  if (!started.ok()) return served;

  std::mutex mutex;
  std::condition_variable changed;
  size_t open = requests.size();
  served.answers.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    Answer& answer = served.answers[i];
    answer.samples.resize(requests[i].n);
    const auto accepted = coordinator.Submit(requests[i], [&](const Event& event) {
      for (const coordinator::SampleOutput& output : event.outputs) {
        std::vector<TokenLogprobs>& tokens = answer.samples[output.sample_index];
        tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      }
      if (!event.prompt_logprobs.empty()) answer.prompt_logprobs = event.prompt_logprobs;
      if (!event.done) return;
      EXPECT_TRUE(event.status.ok()) << event.status;
      const std::lock_guard<std::mutex> lock(mutex);
      --open;
      changed.notify_all();
    });
    EXPECT_TRUE(accepted.ok()) << accepted.status();
    if (!accepted.ok()) return served;
  }
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return open == 0; });
  lock.unlock();
  coordinator.Stop();
  served.ahead = ahead;
  served.expert_tokens = coordinator.GetStatus().expert_tokens;
  return served;
}

// Greedy, drawn, cut, several samples, logprobs: everything but penalties, whose steps need the
// host's word on what was chosen.
std::vector<GenerateRequest> Requests(int64_t vocab) {
  std::mt19937 rng(7);
  std::vector<GenerateRequest> requests(6);
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerateRequest& request = requests[i];
    for (size_t k = 0; k < 3 + 9 * i; ++k) {
      request.prompt_token_ids.push_back(static_cast<int32_t>(rng() % vocab));
    }
    request.max_tokens = kNewTokens + static_cast<int64_t>(i);
    request.ignore_eos = true;
    request.seed = 11 + i;
    request.sampling.temperature = i == 0 ? 0.0f : 0.9f;
  }
  requests[2].sampling.top_p = 0.8f;
  requests[3].sampling.top_k = 12;
  requests[3].sampling.min_p = 0.05f;
  requests[3].sampling.logit_bias = {{5, 2.0f}};
  requests[4].n = 2;
  requests[5].sampling.logprobs = 3;
  requests[5].sampling.prompt_logprobs = 2;
  return requests;
}

void ExpectSame(const Served& found, const Served& expected, const std::string& what) {
  ASSERT_EQ(found.answers.size(), expected.answers.size());
  for (size_t i = 0; i < found.answers.size(); ++i) {
    EXPECT_EQ(found.answers[i], expected.answers[i]) << what << ", request " << i;
  }
  EXPECT_EQ(found.expert_tokens, expected.expert_tokens) << what;
}

class EngineOnDevice : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    golden_ = testing::LoadGolden(GetParam());
    if (!std::filesystem::exists(golden_.directory)) {
      GTEST_SKIP() << golden_.directory << " is not there: it comes with ../shared";
    }
    const auto checkpoint = checkpoint::Checkpoint::Open(golden_.directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    requests_ = Requests((*checkpoint)->config().vocab_size);
  }

  testing::Golden golden_;
  std::vector<GenerateRequest> requests_;
};

// Of the op set only products of BF16 have bits of the device's own.
class F32EngineOnDevice : public EngineOnDevice {};
TEST_P(F32EngineOnDevice, AnswersAreTheCpusBitForBit) {
  if (!golden_.f32()) GTEST_SKIP() << "not F32";
  const Served expected = Serve(OnCpu(golden_.directory), /*look_ahead=*/false, requests_);
  const Served found = Serve(OnDevice(golden_.directory), /*look_ahead=*/true, requests_);
  ExpectSame(found, expected, "on the device");
  EXPECT_GT(found.ahead, 0);
}

TEST_P(EngineOnDevice, NeitherLookingAheadNorTheLayoutChangesAnAnswer) {
  const Served expected = Serve(OnDevice(golden_.directory), /*look_ahead=*/false, requests_);
  EXPECT_EQ(expected.ahead, 0);
  const Served ahead = Serve(OnDevice(golden_.directory), /*look_ahead=*/true, requests_);
  ExpectSame(ahead, expected, "looking ahead");
  EXPECT_GT(ahead.ahead, 0);
  const Served on_two =
      Serve(OnDevice(golden_.directory, {.tp = 2}), /*look_ahead=*/true, requests_);
  ExpectSame(on_two, expected, "tp=2, looking ahead");
  EXPECT_GT(on_two.ahead, 0);
  // Counters go from stage to stage.
  const Served in_stages =
      Serve(OnDevice(golden_.directory, {.pp = 2}), /*look_ahead=*/true, requests_);
  ExpectSame(in_stages, expected, "pp=2");
}

TEST_P(EngineOnDevice, ARequestAloneGetsWhatItGetsAmongOthers) {
  GenerateRequest penalised = requests_[1];
  penalised.sampling.repetition_penalty = 1.3f;
  penalised.sampling.frequency_penalty = 0.4f;
  penalised.sampling.logprobs = 2;
  requests_.push_back(penalised);
  const Served together = Serve(OnDevice(golden_.directory), /*look_ahead=*/true, requests_);
  ASSERT_EQ(together.answers.size(), requests_.size());
  for (const size_t i : {size_t{2}, requests_.size() - 1}) {
    const Served alone = Serve(OnDevice(golden_.directory), /*look_ahead=*/true, {requests_[i]});
    ASSERT_EQ(alone.answers.size(), 1u);
    EXPECT_EQ(alone.answers[0], together.answers[i]) << "request " << i;
  }
}

// KV memory is what weights and the largest step leave.
TEST_P(EngineOnDevice, MemoryThatNobodySizedServesAsWell) {
  worker::WorkerOptions sized_by_itself = OnDevice(golden_.directory);
  sized_by_itself.kv_blocks = 0;
  sized_by_itself.max_kv_sequences = 8;
  const Served expected = Serve(OnDevice(golden_.directory), /*look_ahead=*/true, requests_);
  const Served found = Serve(sized_by_itself, /*look_ahead=*/true, requests_);
  ExpectSame(found, expected, "KV memory by what is left");
}

std::vector<std::string> F32Models() {
  if (testing::kSlowDevice) return {"llama-gqa-tied", "qwen3-moe"};
  return testing::GoldenNames();
}
std::vector<std::string> Models() {
  if (testing::kSlowDevice) return {"llama-gqa-tied", "qwen3-moe-bf16"};
  return testing::GoldenNames();
}

INSTANTIATE_TEST_SUITE_P(Goldens, F32EngineOnDevice, ::testing::ValuesIn(F32Models()),
                         testing::GoldenTestName);
INSTANTIATE_TEST_SUITE_P(Goldens, EngineOnDevice, ::testing::ValuesIn(Models()),
                         testing::GoldenTestName);

}  // namespace
}  // namespace phalanx
