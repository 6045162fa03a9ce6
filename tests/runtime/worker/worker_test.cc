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
#include "runtime/coordinator/agreement.h"
#include "runtime/worker/in_process_group.h"
#include "tests/testing/rank_threads.h"

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

// The plan after Plan(): feeds what its one slot chose.
StepPlan NextPlan() {
  StepPlan plan = Plan();
  plan.number = 6;
  SequenceStep& step = plan.sequences[0];
  step.start = 4;
  step.token_ids = {0};
  step.pending_slot = 0;
  return plan;
}

TEST_F(OneWorker, FeedsTheTokenThatThePlanBeforeChose) {
  const auto first = worker_->Execute(Plan());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto ahead = worker_->Execute(NextPlan());
  ASSERT_TRUE(ahead.ok()) << ahead.status();
  StepPlan known = NextPlan();
  known.number = 7;
  known.sequences[0].pending_slot = -1;
  known.sequences[0].token_ids = {first->sequences[0].samples[0].token.id};
  const auto expected = worker_->Execute(known);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_EQ(ahead->sequences, expected->sequences);
  known.number = 8;
  known.sequences[0].token_ids[0] ^= 1;
  const auto other = worker_->Execute(known);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(ahead->sequences, other->sequences);
}

TEST_F(OneWorker, RefusesToFeedASlotThatThePlanBeforeHasNot) {
  ASSERT_TRUE(worker_->Execute(Plan()).ok());
  StepPlan beyond = NextPlan();
  beyond.sequences[0].pending_slot = 1;
  StepPlan late = NextPlan();
  late.number = 7;
  StepPlan two = NextPlan();
  two.sequences[0].token_ids = {0, 0};
  for (const StepPlan& plan : {beyond, late, two}) {
    const auto result = worker_->Execute(plan);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(Text(result.status()), HasSubstr("the last one was 5 with 1 slots"));
  }
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

using coordinator::CheckAgreement;

TEST(CheckAgreement, NamesBothRanksAndDigests) {
  EXPECT_TRUE(CheckAgreement(std::vector<coordinator::RankInfo>{}).ok());
  EXPECT_TRUE(CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb")}).ok());
  const absl::Status ops =
      CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb"), Rank(2, "cc", "bb")});
  EXPECT_EQ(ops.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(ops), AllOf(HasSubstr("rank 0 (host host0"), HasSubstr("op digest aa"),
                               HasSubstr("rank 2 (host host2"), HasSubstr("cc")));
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

// A copy of the model whose F32 `tensor` [*, columns] has `value` at (row, column).
fs::path CopyWith(const std::string& name, const std::string& tensor, int64_t columns, int64_t row,
                  int64_t column, float value) {
  const fs::path directory = fs::path(::testing::TempDir()) / ("phalanx-worker-" + name);
  fs::remove_all(directory);
  fs::copy(kModel, directory, fs::copy_options::recursive);
  std::fstream weights(directory / "model.safetensors",
                       std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header = 0;
  weights.read(reinterpret_cast<char*>(&header), sizeof(header));
  std::string text(header, ' ');
  weights.read(text.data(), static_cast<std::streamsize>(header));
  const size_t at = text.find("\"" + tensor + "\"");
  EXPECT_NE(at, std::string::npos) << tensor;
  if (at == std::string::npos) return directory;
  const size_t offsets = text.find("\"data_offsets\":[", at) + 16;
  const uint64_t begin = std::stoull(text.substr(offsets));
  const uint64_t element = row * columns + column;
  weights.seekp(static_cast<std::streamoff>(8 + header + begin + element * sizeof(value)));
  weights.write(reinterpret_cast<const char*>(&value), sizeof(value));
  return directory;
}

TEST(InProcessGroup, NamesTheTensorAndPlaceOfANaNWeight) {
  const fs::path directory =
      CopyWith("nan", "model.layers.1.mlp.up_proj.weight", 48, 2, 7, std::nanf(""));
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

// What each rank of a group of `layout` says when rank r loads from directories[r].
std::vector<absl::Status> LoadFrom(const parallel::Layout& layout,
                                   const std::vector<std::string>& directories,
                                   std::vector<std::string>* content = nullptr) {
  if (content != nullptr) content->resize(directories.size());
  return phalanx::testing::RunRanks(layout.group_size(),
                                    [&](comm::Communicator& group) -> absl::Status {
                                      WorkerOptions options = Options(1);
                                      options.layout = layout;
                                      options.model_directory = directories[group.rank()];
                                      auto worker = Worker::Open(options, group);
                                      if (!worker.ok()) return worker.status();
                                      const absl::Status status = (*worker)->Load();
                                      if (content != nullptr)
                                        (*content)[group.rank()] = (*worker)->info().content_digest;
                                      return status;
                                    });
}

TEST(SliceAgreement, ARankWhoseFilesDifferInASliceThatOnlyItReadsIsNamed) {
  // Rows 60 to 83 of 84 belong to the last of two ranks, row 1 to the first.
  for (const auto& [row, layout] :
       {std::pair<int64_t, parallel::Layout>{70, {.tp = 2}}, {1, {.tp = 2}}, {70, {.pp = 2}}}) {
    const fs::path other =
        CopyWith("changed", "model.layers.1.mlp.up_proj.weight", 48, row, 7, 0.25f);
    for (const bool first : {false, true}) {
      const std::vector<absl::Status> statuses =
          first ? LoadFrom(layout, {other, kModel}) : LoadFrom(layout, {kModel, other});
      int named = 0;
      for (const absl::Status& status : statuses) {
        EXPECT_FALSE(status.ok()) << layout.ToString() << ", row " << row;
        if (status.code() != absl::StatusCode::kFailedPrecondition) continue;
        ++named;
        EXPECT_THAT(Text(status),
                    AllOf(HasSubstr("rank 0 ("), HasSubstr("rank 1 ("), HasSubstr("pid"),
                          HasSubstr("model.layers.1.mlp.up_proj.weight, rows ")));
      }
      EXPECT_GE(named, 1) << layout.ToString() << ", row " << row;
    }
    fs::remove_all(other);
  }
}

TEST(SliceAgreement, EqualCopiesAgreeAndEveryLayoutHasTheSameContentDigest) {
  const fs::path copy = fs::path(::testing::TempDir()) / "phalanx-worker-copy";
  fs::remove_all(copy);
  fs::copy(kModel, copy, fs::copy_options::recursive);
  std::vector<std::string> one;
  EXPECT_TRUE(LoadFrom({}, {kModel}, &one)[0].ok());
  for (const parallel::Layout& layout :
       {parallel::Layout{.tp = 3}, {.pp = 2, .tp = 2}, {.sp = 2, .tp = 2}, {.pp = 2}}) {
    std::vector<std::string> directories(layout.group_size(), kModel);
    directories.back() = copy;
    std::vector<std::string> content;
    for (const absl::Status& status : LoadFrom(layout, directories, &content)) {
      EXPECT_TRUE(status.ok()) << status;
    }
    EXPECT_THAT(content, ::testing::Each(one[0])) << layout.ToString();
  }
  const fs::path changed = CopyWith("changed", "model.norm.weight", 1, 3, 0, 2.0f);
  std::vector<std::string> other;
  EXPECT_TRUE(LoadFrom({}, {changed}, &other)[0].ok());
  EXPECT_NE(one, other);
  fs::remove_all(copy);
  fs::remove_all(changed);
}

// Experts that the files hold in one tensor are slices of it, each its own.
TEST(SliceAgreement, HoldsOfExpertsInOneTensor) {
  const std::string goldens = PHALANX_SOURCE_DIR "/tests/goldens/models/";
  for (const char* name : {"mixtral-fused", "qwen3-moe-mixed"}) {
    const fs::path copy = fs::path(::testing::TempDir()) / "phalanx-worker-fused";
    fs::remove_all(copy);
    fs::copy(goldens + name, copy, fs::copy_options::recursive);
    std::vector<std::string> one;
    EXPECT_TRUE(LoadFrom({}, {goldens + name}, &one)[0].ok());
    for (const parallel::Layout& layout :
         {parallel::Layout{.tp = 2, .ep = 2}, {.tp = 2}, {.sp = 2}, {.pp = 2}}) {
      std::vector<std::string> content;
      for (const absl::Status& status : LoadFrom(layout, {goldens + name, copy}, &content)) {
        EXPECT_TRUE(status.ok()) << name << ", " << layout.ToString() << ": " << status;
      }
      EXPECT_THAT(content, ::testing::Each(one[0])) << name << ", " << layout.ToString();
    }
    fs::remove_all(copy);
  }
}

TEST(Worker, TellsItsStepsInOrder) {
  std::mutex mutex;
  std::vector<StepEvent> events;
  WorkerOptions options = Options(1);
  options.layout = {.pp = 2};
  options.trace = [&](const StepEvent& event) {
    std::lock_guard<std::mutex> lock(mutex);
    events.push_back(event);
  };
  std::atomic<int> results = 0;
  std::condition_variable changed;
  const auto group = CreateInProcessGroup(options);
  ASSERT_TRUE(group
                  ->Start([&](absl::StatusOr<scheduler::StepResult> result) {
                    std::lock_guard<std::mutex> lock(mutex);
                    EXPECT_TRUE(result.ok()) << result.status();
                    ++results;
                    changed.notify_all();
                  })
                  .ok());
  for (uint64_t number = 1; number <= 4; ++number) {
    StepPlan plan = Plan();
    plan.number = number;
    ASSERT_TRUE(group->Submit(plan).ok());
  }
  {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return results == 4; });
  }
  group->Stop();
  // On each stage the plans in order, each ended before the next begins.
  ASSERT_EQ(events.size(), 16u);
  for (const int stage : {0, 1}) {
    std::vector<std::pair<uint64_t, bool>> seen;
    for (const StepEvent& event : events) {
      if (event.stage != stage) continue;
      EXPECT_EQ(event.rank, stage);
      seen.emplace_back(event.step, event.begin);
    }
    EXPECT_THAT(seen, ::testing::ElementsAre(std::pair(1u, true), std::pair(1u, false),
                                             std::pair(2u, true), std::pair(2u, false),
                                             std::pair(3u, true), std::pair(3u, false),
                                             std::pair(4u, true), std::pair(4u, false)));
  }
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
