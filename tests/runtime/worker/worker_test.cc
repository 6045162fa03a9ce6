// Workers and the in-process group: what they refuse, by name, and how they stop.
#include "runtime/worker/worker.h"

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/local/local_group.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/worker/agreement.h"
#include "runtime/worker/in_process_group.h"

namespace phalanx::worker {
namespace {

namespace fs = std::filesystem;
using scheduler::SequenceStep;
using scheduler::StepPlan;
using ::testing::AllOf;
using ::testing::HasSubstr;

const char kModel[] = PHALANX_SOURCE_DIR "/tests/goldens/models/llama-mha";

std::string Text(const absl::Status& status) { return std::string(status.message()); }

WorkerOptions Options(int tp) {
  WorkerOptions options;
  options.model_directory = kModel;
  options.layout.tp = tp;
  options.kv_blocks = 8;
  return options;
}

StepPlan Plan() {
  StepPlan plan;
  plan.epoch = 1;
  plan.number = 5;
  SequenceStep step;
  step.sequence_id = 9;
  step.token_ids = {3, 4, 5, 6};
  step.block_table = {2};
  step.samples = {{9, 0}};
  step.sampling.temperature = 0;
  step.sampling.logprobs = 2;
  step.prompt_length = 4;
  plan.sequences = {step};
  return plan;
}

class OneWorker : public ::testing::Test {
 protected:
  void SetUp() override {
    comms_ = comm::CreateLocalGroup(1, {});
    auto opened = Worker::Open(Options(1), *comms_[0]);
    ASSERT_TRUE(opened.ok()) << opened.status();
    worker_ = *std::move(opened);
    const absl::Status loaded = worker_->Load();
    ASSERT_TRUE(loaded.ok()) << loaded;
  }
  std::vector<std::unique_ptr<comm::Communicator>> comms_;
  std::unique_ptr<Worker> worker_;
};

TEST_F(OneWorker, RefusesAPlanThatLeavesItsMemoryAndGoesOn) {
  const struct {
    std::function<void(StepPlan&)> change;
    const char* message;
  } cases[] = {
      {[](StepPlan& p) { p.sequences[0].token_ids[1] = -1; }, "token id -1"},
      {[](StepPlan& p) { p.sequences[0].token_ids[1] = 307; }, "token id 307"},
      {[](StepPlan& p) { p.sequences[0].block_table[0] = 8; }, "block 8 of 8"},
      {[](StepPlan& p) { p.sequences[0].block_table[0] = -1; }, "block -1 of 8"},
      {[](StepPlan& p) { p.sequences[0].block_table.clear(); }, "a block table of 0 blocks"},
      {[](StepPlan& p) { p.sequences[0].start = 29; }, "a block table of 1 blocks"},
      {[](StepPlan& p) { p.sequences[0].start = -1; }, "positions -1"},
      {[](StepPlan& p) { p.sequences[0].start = 510; }, "with a context of 512"},
      {[](StepPlan& p) { p.sequences[0].token_ids.clear(); }, "positions 0 to 0"},
      {[](StepPlan& p) {
         p.copies = {{0, 8}};
       },
       "copy of block 0 to 8"},
      {[](StepPlan& p) {
         p.copies = {{-1, 1}};
       },
       "copy of block -1 to 1"},
  };
  for (const auto& c : cases) {
    StepPlan plan = Plan();
    c.change(plan);
    const auto result = worker_->Execute(plan);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal) << c.message;
    EXPECT_THAT(Text(result.status()), AllOf(HasSubstr("step 5"), HasSubstr(c.message)));
  }
  const auto result = worker_->Execute(Plan());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->number, 5u);
  ASSERT_EQ(result->sequences.size(), 1u);
  EXPECT_EQ(result->sequences[0].samples[0].token.top.size(), 2u);
}

TEST_F(OneWorker, PromptLogprobsDoNotDependOnTheChunks) {
  StepPlan whole = Plan();
  whole.sequences[0].sampling.prompt_logprobs = 3;
  const auto expected = worker_->Execute(whole);
  ASSERT_TRUE(expected.ok()) << expected.status();
  ASSERT_EQ(expected->sequences[0].prompt_logprobs.size(), 3u);

  std::vector<scheduler::TokenLogprobs> found;
  for (int i = 0; i < 4; ++i) {
    StepPlan chunk = whole;
    SequenceStep& step = chunk.sequences[0];
    step.start = i;
    step.token_ids = {whole.sequences[0].token_ids[i]};
    step.next_prompt_token = i < 3 ? whole.sequences[0].token_ids[i + 1] : -1;
    if (i < 3) step.samples.clear();
    const auto result = worker_->Execute(chunk);
    ASSERT_TRUE(result.ok()) << result.status();
    const auto& part = result->sequences[0].prompt_logprobs;
    found.insert(found.end(), part.begin(), part.end());
    if (i == 3) {
      EXPECT_EQ(result->sequences[0].samples, expected->sequences[0].samples);
    }
  }
  EXPECT_EQ(found, expected->sequences[0].prompt_logprobs);
  EXPECT_EQ(found[0].id, 4);
}

coordinator::RankInfo Rank(int rank, const std::string& ops, const std::string& files) {
  coordinator::RankInfo info;
  info.rank = rank;
  info.host = "host" + std::to_string(rank);
  info.device = "cpu";
  info.op_digest = ops;
  info.checkpoint_digest = files;
  return info;
}

TEST(CheckAgreement, NamesBothRanksAndDigests) {
  EXPECT_TRUE(CheckAgreement({}).ok());
  EXPECT_TRUE(CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb")}).ok());
  const absl::Status ops =
      CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb"), Rank(2, "cc", "bb")});
  EXPECT_EQ(ops.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(ops), AllOf(HasSubstr("rank 0 (host0"), HasSubstr("op digest aa"),
                               HasSubstr("rank 2 (host2"), HasSubstr("cc")));
  const absl::Status files = CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "dd")});
  EXPECT_EQ(files.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(files), AllOf(HasSubstr("checkpoint digest bb"), HasSubstr("dd")));
}

absl::Status StartError(const WorkerOptions& options) {
  const auto group = CreateInProcessGroup(options);
  return group->Start([](absl::StatusOr<scheduler::StepResult>) {}).status();
}

TEST(InProcessGroup, NamesADirectoryThatIsNotThere) {
  WorkerOptions options = Options(2);
  options.model_directory = "/nonexistent/model";
  const absl::Status status = StartError(options);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Text(status), HasSubstr("/nonexistent/model"));
}

TEST(InProcessGroup, RefusesMoreRanksThanLeavesNamingTheLeavesNeeded) {
  const absl::Status status = StartError(Options(9));
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Text(status), AllOf(HasSubstr("9"), HasSubstr("8")));
}

TEST(InProcessGroup, RefusesKvMemoryThatHoldsNoBlock) {
  WorkerOptions options = Options(2);
  options.kv_blocks = 0;
  options.kv_memory_bytes = 10;
  const absl::Status status = StartError(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(status), HasSubstr("--kv-memory"));
}

TEST(InProcessGroup, NamesTheTensorAndPlaceOfANaNWeight) {
  const fs::path directory = fs::path(::testing::TempDir()) / "phalanx-worker-nan";
  fs::remove_all(directory);
  fs::copy(kModel, directory, fs::copy_options::recursive);
  const fs::path file = directory / "model.safetensors";
  const float nan = std::nanf("");
  {
    std::fstream weights(file, std::ios::in | std::ios::out | std::ios::binary);
    uint64_t header = 0;
    weights.read(reinterpret_cast<char*>(&header), sizeof(header));
    std::string text(header, ' ');
    weights.read(text.data(), static_cast<std::streamsize>(header));
    const size_t at = text.find("\"model.layers.1.mlp.up_proj.weight\"");
    ASSERT_NE(at, std::string::npos);
    const size_t offsets = text.find("\"data_offsets\":[", at) + 16;
    const uint64_t begin = std::stoull(text.substr(offsets));
    // Row 2 of [84, 48], column 7.
    weights.seekp(static_cast<std::streamoff>(8 + header + begin + (2 * 48 + 7) * sizeof(nan)));
    weights.write(reinterpret_cast<const char*>(&nan), sizeof(nan));
  }
  for (const int tp : {1, 3}) {
    WorkerOptions options = Options(tp);
    options.model_directory = directory;
    const absl::Status status = StartError(options);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(Text(status), AllOf(HasSubstr("model.layers.1.mlp.up_proj.weight"),
                                    HasSubstr("NaN"), HasSubstr("2"), HasSubstr("7")));
  }
  fs::remove_all(directory);
}

TEST(InProcessGroup, StopsWhileStepsRunAndCallsNobodyAfterwards) {
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> stopped = false;
    std::atomic<int> late = 0;
    const auto group = CreateInProcessGroup(Options(3));
    const auto info = group->Start([&](absl::StatusOr<scheduler::StepResult>) {
      if (stopped) ++late;
    });
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->ranks.size(), 3u);
    EXPECT_EQ(info->kv_blocks(), 8);
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(group->Submit(Plan()).ok());
    }
    group->Stop();
    stopped = true;
    EXPECT_EQ(group->Submit(Plan()).code(), absl::StatusCode::kUnavailable);
    group->Stop();
    EXPECT_EQ(late, 0);
  }
}

TEST(InProcessGroup, ReportsABadPlanOnceWithItsRankAndStep) {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<absl::Status> errors;
  const auto group = CreateInProcessGroup(Options(2));
  const auto info = group->Start([&](absl::StatusOr<scheduler::StepResult> result) {
    std::lock_guard<std::mutex> lock(mutex);
    errors.push_back(result.status());
    changed.notify_all();
  });
  ASSERT_TRUE(info.ok()) << info.status();
  StepPlan plan = Plan();
  plan.sequences[0].token_ids[0] = -5;
  ASSERT_TRUE(group->Submit(plan).ok());
  {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return !errors.empty(); });
  }
  group->Stop();
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_THAT(Text(errors[0]),
              AllOf(HasSubstr("rank "), HasSubstr("step 5"), HasSubstr("token id -5")));
}

}  // namespace
}  // namespace phalanx::worker
