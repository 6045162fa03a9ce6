// Every layout of up to eight ranks, whole engine, dense and with experts: the same token ids and
// the same logprob bits as one rank. And what the issue of each axis is: preemption, prefix hits,
// crowds and chunks while stages, stripes and experts are apart.
#include "tests/testing/layouts.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/shape.h"
#include "runtime/worker/in_process_group.h"
#include "tests/layouts/engine_cell.h"

namespace phalanx::testing {
namespace {

using parallel::Layout;

// Each at least eight layers.
constexpr char kDense[] = "launcher/demo-model";
constexpr char kMixtral[] = "tests/goldens/models/mixtral";
constexpr char kQwen2Moe[] = "tests/goldens/models/qwen2-moe";
constexpr char kQwen3Moe[] = "tests/goldens/models/qwen3-moe";
constexpr int kSampleCells = 30;

EngineCells& Cells() {
  static auto* const cells = new EngineCells();
  return *cells;
}

void Check(const Cell& cell) {
  std::printf("  %-100s: ", cell.Name().c_str());
  std::fflush(stdout);
  const std::string wrong = Cells().Check(cell);
  EXPECT_EQ(wrong, "") << cell.Name();
  std::printf("%s\n", wrong.empty() ? "equal" : "DIFFERENT");
  std::fflush(stdout);
}

parallel::DecoderShape ShapeOfModel(const std::string& model) {
  const auto config = checkpoint::LoadModelConfig(std::string(PHALANX_SOURCE_DIR) + "/" + model);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? model::ShapeOf(*config) : parallel::DecoderShape{};
}

void CheckEveryLayout(const std::string& model) {
  const parallel::DecoderShape shape = ShapeOfModel(model);
  EXPECT_GE(shape.num_layers, 8);
  int i = 0;
  for (const Layout& layout : LayoutsOf(shape, 8)) {
    Cell cell;
    cell.model = model;
    cell.layout = layout;
    cell.sampling = i % 2 == 0 ? Sampling::kGreedy : Sampling::kSeeded;
    cell.long_prompt = i % 3 == 0;
    cell.prompt_logprobs = i % 4 == 0;
    Check(cell);
    ++i;
  }
}

TEST(Layouts, EveryLayoutOfADenseModelChangesNoBit) { CheckEveryLayout(kDense); }
TEST(Layouts, EveryLayoutOfMixtralChangesNoBit) { CheckEveryLayout(kMixtral); }
TEST(Layouts, EveryLayoutOfQwen2MoeChangesNoBit) { CheckEveryLayout(kQwen2Moe); }
TEST(Layouts, EveryLayoutOfQwen3MoeChangesNoBit) { CheckEveryLayout(kQwen3Moe); }

TEST(Layouts, ASeededSampleOfTheCrossProductChangesNoBit) {
  std::mt19937 rng(611);
  const auto pick = [&](const auto& values) { return values[rng() % values.size()]; };
  const auto coin = [&] { return rng() % 2 == 0; };
  for (int i = 0; i < kSampleCells; ++i) {
    Cell cell;
    cell.model = pick(std::vector<std::string>{kDense, kMixtral, kQwen2Moe, kQwen3Moe});
    cell.layout = pick(LayoutsOf(ShapeOfModel(cell.model), 8));
    if (cell.layout.group_size() <= 4 && rng() % 4 == 0) cell.layout.dp = 2;
    cell.sampling =
        pick(std::vector<Sampling>{Sampling::kGreedy, Sampling::kSeeded, Sampling::kStopped});
    cell.threads = pick(std::vector<int>{1, 2});
    cell.chunk = pick(std::vector<int64_t>{0, 7, 64});
    cell.crowd = coin();
    cell.tight = coin() && CanBeTight(cell.layout);
    cell.long_prompt = cell.tight ? cell.layout.sp > 1 : coin();
    // Two elders with a cached prefix would meet on the replica that has it.
    cell.prefix = coin() && !(cell.tight && cell.layout.dp > 1);
    cell.cancelled = coin() && !cell.tight;
    cell.n = pick(std::vector<int>{1, 4});
    if (cell.tight && cell.long_prompt) cell.n = 1;
    cell.prompt_logprobs = !cell.prefix && coin();
    cell.shard_rows = pick(std::vector<int64_t>{1, 32, 1 << 20});
    // The portable path takes its time.
    if (cell.layout.world_size() <= 2) cell.path = pick(kernels::AvailableCpuPaths());
    Check(cell);
  }
}

// With keys and values in FP8 the promise is the same: a profile of its own.
TEST(Layouts, AnFp8CacheChangesNoBitFromLayoutToLayout) {
  constexpr char kBf16Moe[] = "tests/goldens/models/qwen3-moe-bf16";
  for (const char* model : {kDense, kMixtral, kBf16Moe}) {
    std::vector<Cell> cells(6);
    cells[0] = {.model = model, .layout = {.tp = 2}, .threads = 2, .chunk = 7};
    cells[0].prompt_logprobs = true;
    cells[1] = {.model = model, .sampling = Sampling::kSeeded, .layout = {.sp = 4}, .crowd = true};
    cells[1].long_prompt = true;
    cells[2] = {.model = model, .layout = {.pp = 2, .sp = 2}, .chunk = 64, .prefix = true};
    cells[2].long_prompt = true;
    cells[3] = {.model = model, .layout = {.sp = 2, .tp = 2}, .tight = true, .long_prompt = true};
    cells[3].shard_rows = 1;
    cells[4] = {.model = model, .sampling = Sampling::kSeeded, .tight = true};
    cells[5] = {.model = model, .layout = {.dp = 2}, .crowd = true, .prefix = true, .n = 4};
    for (Cell& cell : cells) {
      cell.kv = kernels::KvFormat::kF8E4M3;
      Check(cell);
    }
  }
  // It isn't the plain cache under another name.
  Cell plain, fp8;
  plain.model = fp8.model = kDense;
  fp8.kv = kernels::KvFormat::kF8E4M3;
  EXPECT_NE(Difference(Cells().Reference(plain).samples[0].tokens,
                       Cells().Reference(fp8).samples[0].tokens),
            "");
}

// With weights in FP8, too: every rank quantises its own slice.
TEST(Layouts, Fp8WeightsChangeNoBitFromLayoutToLayout) {
  constexpr auto kFp8 = kernels::WeightFormat::kF8E4M3;
  for (const char* model :
       {"tests/goldens/models/llama-bias-bf16", "tests/goldens/models/qwen3-moe-bf16",
        "tests/goldens/models/qwen2-moe-norm-bf16"}) {
    std::vector<Cell> cells(5);
    cells[0] = {.model = model, .layout = {.tp = 2}, .threads = 2, .chunk = 7};
    cells[0].prompt_logprobs = true;
    cells[1] = {.model = model, .sampling = Sampling::kSeeded, .layout = {.tp = 3}, .crowd = true};
    cells[2] = {.model = model, .layout = {.pp = 2, .tp = 2}, .chunk = 64};
    cells[3] = {.model = model, .layout = {.sp = 2, .tp = 2}, .tight = true, .long_prompt = true};
    cells[4] = {.model = model, .layout = {.dp = 2}, .crowd = true, .prefix = true, .n = 4};
    cells[4].kv = kernels::KvFormat::kF8E4M3;
    for (Cell& cell : cells) {
      cell.weights = kFp8;
      Check(cell);
    }
    Cell plain, fp8;
    plain.model = fp8.model = model;
    fp8.weights = kFp8;
    EXPECT_NE(Difference(Cells().Reference(plain).samples[0].tokens,
                         Cells().Reference(fp8).samples[0].tokens),
              "");
  }
}

// Nor do those that a checkpoint brings, whatever has a scale of its own.
TEST(Layouts, Fp8CheckpointsChangeNoBitFromLayoutToLayout) {
  for (const char* name : {"qwen3-fp8-block", "llama-fp8-row", "llama-fp8-tensor"}) {
    const std::string model = absl::StrCat("tests/goldens/models/", name);
    std::vector<Cell> cells(4);
    cells[0] = {.model = model, .layout = {.tp = 2}, .threads = 2, .chunk = 7};
    cells[1] = {.model = model, .sampling = Sampling::kSeeded, .layout = {.pp = 2, .tp = 2}};
    cells[1].crowd = true;
    cells[2] = {.model = model, .layout = {.sp = 2, .tp = 3}, .long_prompt = true};
    cells[3] = {.model = model, .layout = {.dp = 2}, .prefix = true, .n = 4};
    for (const Cell& cell : cells) Check(cell);
  }
}

// All of a prompt's tokens meet the same experts: nothing is dropped, and ranks that hold other
// experts have nothing to do.
TEST(Layouts, AllTokensToTheSameExpertsChangeNoBit) {
  namespace fs = std::filesystem;
  // Routers of zeros: every expert is as good as another, and ties go to the lowest ids.
  const fs::path source = fs::path(PHALANX_SOURCE_DIR) / kMixtral;
  const fs::path copy = fs::path(::testing::TempDir()) / "phalanx-one-expert";
  fs::remove_all(copy);
  fs::copy(source, copy, fs::copy_options::recursive);
  const auto checkpoint = checkpoint::Checkpoint::Open(source);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  int zeroed = 0;
  for (const auto& entry : fs::directory_iterator(copy)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string bytes(fs::file_size(entry.path()), ' ');
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    for (int64_t layer = 0; layer < (*checkpoint)->config().num_layers; ++layer) {
      const auto router = (*checkpoint)->Find(checkpoint::Role::kRouter, layer);
      ASSERT_TRUE(router.ok()) << router.status();
      const std::string weights(static_cast<const char*>(router->data), router->bytes());
      const size_t at = bytes.find(weights);
      if (at == std::string::npos) continue;
      file.seekp(static_cast<std::streamoff>(at));
      file.write(std::string(weights.size(), '\0').data(),
                 static_cast<std::streamsize>(weights.size()));
      ++zeroed;
    }
  }
  ASSERT_EQ(zeroed, (*checkpoint)->config().num_layers);
  for (const Layout& layout : {Layout{.tp = 2, .ep = 2},
                               {.sp = 2, .tp = 2, .ep = 4},
                               {.tp = 4, .ep = 2},
                               {.pp = 2, .sp = 3, .ep = 3}}) {
    for (const int64_t shard_rows : {1, 1 << 20}) {
      Cell cell;
      cell.model = fs::relative(copy, PHALANX_SOURCE_DIR);
      cell.layout = layout;
      cell.shard_rows = shard_rows;
      cell.crowd = true;
      Check(cell);
    }
  }
  fs::remove_all(copy);
}

// A context whose KV no rank has room for by itself.
TEST(Layouts, APromptOf64kTokensRunsOnFourRanksOfWhichNoneCouldHoldIt) {
  namespace fs = std::filesystem;
  constexpr int64_t kTokens = 65536;
  const fs::path copy = fs::path(::testing::TempDir()) / "phalanx-long-context";
  fs::remove_all(copy);
  fs::copy(fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/models/llama-bias-bf16", copy,
           fs::copy_options::recursive);
  {
    std::ifstream in(copy / "config.json");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t at = text.find("\"max_position_embeddings\": 512");
    ASSERT_NE(at, std::string::npos);
    text.replace(at, 30, "\"max_position_embeddings\": 131072");
    std::ofstream(copy / "config.json") << text;
  }
  worker::WorkerOptions options;
  options.model_directory = copy;
  options.device.cpu.threads = 1;
  options.max_step_tokens = 2048;
  coordinator::GenerateRequest request;
  std::mt19937 rng(64);
  for (int64_t i = 0; i < kTokens; ++i) {
    request.prompt_token_ids.push_back(static_cast<int32_t>(3 + rng() % 130));
  }
  request.max_tokens = 4;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  request.sampling.logprobs = 5;
  const auto run = [&](const Layout& layout, int64_t kv_blocks, Sample* sample) {
    options.layout = layout;
    options.kv_blocks = kv_blocks;
    coordinator::CoordinatorOptions service;
    service.limits.vocab_size = ShapeOfModel("tests/goldens/models/llama-bias-bf16").vocab_size;
    service.limits.max_context = 131072;
    service.scheduler.max_batch_tokens = options.max_step_tokens;
    service.scheduler.max_context = 131072;
    coordinator::Coordinator coordinator(std::move(service), worker::CreateInProcessGroup(options));
    absl::Status status = coordinator.Start();
    if (!status.ok()) return status;
    absl::Notification done;
    const auto handle = coordinator.Submit(request, [&](const coordinator::Event& event) {
      for (const auto& output : event.outputs) {
        sample->tokens.insert(sample->tokens.end(), output.tokens.begin(), output.tokens.end());
      }
      if (!event.done) return;
      status = event.status;
      done.Notify();
    });
    if (!handle.ok()) return handle.status();
    done.WaitForNotification();
    return status;
  };
  // 2,049 blocks are needed; 520 are a little more than a quarter.
  Sample whole;
  Sample striped;
  const absl::Status refused = run({}, 520, &whole);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  const absl::Status one = run({}, 2060, &whole);
  ASSERT_TRUE(one.ok()) << one;
  const absl::Status four = run({.sp = 4}, 520, &striped);
  ASSERT_TRUE(four.ok()) << four;
  EXPECT_EQ(whole.tokens.size(), 4u);
  EXPECT_EQ(Difference(whole.tokens, striped.tokens), "");
  fs::remove_all(copy);
}

}  // namespace
}  // namespace phalanx::testing
