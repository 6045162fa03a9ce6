// The measuring part of gpu_timing on the emulated device: its figures are of the steps that it
// says, its device's times lie where it says, and the engine that it measures gives the CPU's
// answers.
#include "tests/gpu/engine_timing.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/gpu/made_checkpoint.h"
#include "tests/gpu/step_clock.h"
#include "tests/gpu/tested_device.h"
#include "tests/gpu/timing_model.h"

namespace phalanx::timing {
namespace {

using checkpoint::Checkpoint;
using checkpoint::ModelConfig;
using checkpoint::Role;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr absl::string_view kTiny = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
  "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "max_position_embeddings": 256,
  "rms_norm_eps": 1e-05, "tie_word_embeddings": false
})";
constexpr absl::string_view kTinyExperts = R"({
  "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "torch_dtype": "float32",
  "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
  "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 256,
  "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "num_experts": 5, "num_experts_per_tok": 2,
  "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32
})";

ModelConfig Config(absl::string_view text) {
  const auto config = checkpoint::ParseModelConfig(text, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

ModelConfig TimedConfig(absl::string_view name) {
  for (const NamedShape& shape : TimedShapes()) {
    if (shape.name == name) return Config(shape.config);
  }
  ADD_FAILURE() << "no shape " << name;
  return {};
}

std::unique_ptr<MadeCheckpoint> Make(absl::string_view config) {
  auto made = MadeCheckpoint::Make(config, ::testing::TempDir());
  EXPECT_TRUE(made.ok()) << made.status();
  return made.ok() ? *std::move(made) : nullptr;
}

TEST(TimedShapes, HaveTheModelsParameters) {
  EXPECT_EQ(NumParameters(TimedConfig("llama-3.2-1b")), 1235814400);
  EXPECT_EQ(NumParameters(TimedConfig("llama-3.1-8b")), 8030261248);
  EXPECT_EQ(NumParameters(TimedConfig("qwen1.5-moe-a2.7b")), 14315784192);
}

TEST(TimedShapes, AStepReadsItsLinearWeightsOnce) {
  // All but the norms; the tied embedding is the head.
  EXPECT_EQ(WeightsRead(TimedConfig("llama-3.2-1b"), 64), 1235814400 - 33 * 2048);
  // And the embedding.
  EXPECT_EQ(WeightsRead(TimedConfig("llama-3.1-8b"), 1), 8030261248 - 65 * 4096 - 128256 * 4096);
  const ModelConfig experts = TimedConfig("qwen1.5-moe-a2.7b");
  const int64_t layer = 4 * 2048 * 2048 + 60 * 2048 + (4 * 1408 + 5632) * 3 * 2048 + 2048;
  EXPECT_EQ(WeightsRead(experts, 1), 24 * layer + 151936 * 2048);
  EXPECT_EQ(WeightsRead(experts, 2), std::nullopt);
}

TEST(TimedShapes, AStepComputesEveryProduct) {
  const ModelConfig config = Config(kTiny);
  const int64_t layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96;
  // Three rows after two see 3, 4 and 5 tokens.
  EXPECT_EQ(StepFlops(config, 3, 2), 2 * (2 * 3 * layer + 64 * 96) + 4 * 2 * 64 * (3 + 4 + 5));
}

TEST(MadeCheckpoint, IsOneThatLoadsAndGoesAwayWithItsFolder) {
  std::string directory;
  {
    const auto made = Make(kTiny);
    ASSERT_NE(made, nullptr);
    directory = made->directory();
    const auto opened = Checkpoint::Open(directory);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ((*opened)->TotalBytes(), 4 * NumParameters(Config(kTiny)));
    const auto norm = (*opened)->ReadVector(Role::kAttnNorm, 1);
    ASSERT_TRUE(norm.ok()) << norm.status();
    EXPECT_EQ(*norm, std::vector<float>(64, 1.0f));
    const auto up = (*opened)->Find(Role::kUp, 1);
    ASSERT_TRUE(up.ok()) << up.status();
    const auto* values = static_cast<const float*>(up->data);
    int negative = 0;
    for (int64_t i = 0; i < up->elements(); ++i) {
      ASSERT_GE(std::abs(values[i]), 1.0f / 256);
      ASSERT_LT(std::abs(values[i]), 1.0f / 128);
      negative += values[i] < 0 ? 1 : 0;
    }
    EXPECT_GT(negative, up->elements() / 3);
    EXPECT_LT(negative, 2 * up->elements() / 3);
    const std::vector<float> row(values, values + 64);
    EXPECT_NE(row, std::vector<float>(values + 64, values + 128));
    const auto other = (*opened)->Find(Role::kUp, 0);
    ASSERT_TRUE(other.ok()) << other.status();
    const auto* others = static_cast<const float*>(other->data);
    EXPECT_NE(row, std::vector<float>(others, others + 64));
  }
  EXPECT_FALSE(std::filesystem::exists(directory));
}

TEST(MadeCheckpoint, WhatCannotBeMadeIsSaid) {
  std::string half(kTiny);
  half.replace(half.find("float32"), 7, "float16");
  EXPECT_THAT(MadeCheckpoint::Make(half, ::testing::TempDir()).status().message(),
              ::testing::HasSubstr("\"float16\"; expected bfloat16 or float32"));
  EXPECT_THAT(MadeCheckpoint::Make(kTiny, "/nowhere/at/all").status().message(),
              ::testing::HasSubstr("/nowhere/at/all: "));
  // A petabyte.
  std::string large(kTiny);
  large.replace(large.find("\"vocab_size\": 96"), 16, "\"vocab_size\": 134217728");
  large.replace(large.find("\"hidden_size\": 64"), 17, "\"hidden_size\": 1048576");
  const absl::Status too_large = MadeCheckpoint::Make(large, ::testing::TempDir()).status();
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted) << too_large;
}

// Reads the host's clock when the stream comes by.
SteadyTime* Stamp(kernels::CudaKernels& kernels, SteadyTime* time) {
  kernels::emulation::Enqueue(kernels.stream(),
                              [time] { *time = std::chrono::steady_clock::now(); });
  return time;
}
double Between(SteadyTime begin, SteadyTime end) {
  return std::chrono::duration<double>(end - begin).count();
}

class ClockedKernels : public ::testing::Test {
 protected:
  ClockedKernels()
      : kernels_({.device = 0, .pack_threads = 1, .observer = &clock_},
                 *kernels::cuda::DeviceMemory::Create(0, 0)) {
    auto memory = kernels_.Allocate(kBytes);
    EXPECT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
  }
  void Step(bool wait = false) {
    kernels_.BeginStep(1);
    kernels_.Zero(memory_.data(), kBytes);
    if (wait) {
      char byte = 0;
      kernels_.CopyOut(&byte, memory_.data(), 1);
      kernels_.Zero(memory_.data(), kBytes);
    }
    kernels_.EndStep();
  }

  static constexpr int64_t kBytes = int64_t{1} << 16;
  StepClock clock_{0};
  kernels::CudaKernels kernels_;
  kernels::Buffer memory_;
};

TEST_F(ClockedKernels, StepsAndGapsFillTheTimeBetweenTheirEnds) {
  Step();  // the clock is off
  clock_.TurnOn(true);
  SteadyTime outside[2], idle[2][2];
  Stamp(kernels_, &outside[0]);
  for (int i = 0; i < 3; ++i) {
    Step();
    if (i == 2) break;
    Stamp(kernels_, &idle[i][0]);
    // Not a step's.
    kernels_.Zero(memory_.data(), kBytes);
    Stamp(kernels_, &idle[i][1]);
  }
  Stamp(kernels_, &outside[1]);
  kernels_.Synchronize();
  const std::vector<DeviceStep> steps = clock_.Take();
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[0].gap, 0);
  double sum = 0;
  for (const DeviceStep& step : steps) {
    EXPECT_GT(step.span, 0);
    EXPECT_EQ(step.num_waits, 0);
    EXPECT_FALSE(step.late) << "nobody has waited for the device";
    sum += step.gap + step.span;
  }
  constexpr double kRounding = 1 + 1e-5;
  for (int i = 0; i < 2; ++i) {
    EXPECT_GE(steps[i + 1].gap * kRounding, Between(idle[i][0], idle[i][1]));
  }
  EXPECT_LE(sum, Between(outside[0], outside[1]) * kRounding);
  EXPECT_TRUE(clock_.Take().empty());
}

TEST_F(ClockedKernels, WaitsInAStepAndStepsThatComeLateAreCounted) {
  clock_.TurnOn(true);
  for (int i = 0; i < 2; ++i) {
    Step(/*wait=*/true);
    kernels_.Synchronize();
  }
  const std::vector<DeviceStep> steps = clock_.Take();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_FALSE(steps[0].late);
  EXPECT_TRUE(steps[1].late);
  for (const DeviceStep& step : steps) {
    EXPECT_EQ(step.num_waits, 1);
    EXPECT_GT(step.waits, 0);
    EXPECT_LT(step.waits, step.span);
  }
}

TEST_F(ClockedKernels, AnEventsOwnTimeIsMeasured) {
  const EventTimes times = MeasureEvents(kernels_, kBytes);
  EXPECT_GT(times.pair, 0);
  EXPECT_GT(times.with_marks, 0);
}

EngineTimingOptions OnDevice(const std::string& directory) {
  EngineTimingOptions options;
  options.worker.model_directory = directory;
  options.worker.device.kind = kernels::DeviceKind::kCuda;
  options.worker.device.cuda = testing::TestedDevice();
  options.worker.gpu_memory_fraction = 0.02;
  options.batches = {1, 3};
  options.context = 40;
  options.windows = 2;
  options.window_steps = 3;
  options.warm_steps = 4;
  options.prompts = {33};
  options.repeats = 2;
  options.read_bandwidth = 1e9;
  return options;
}

EngineTimingOptions OnCpu(const std::string& directory) {
  EngineTimingOptions options = OnDevice(directory);
  options.worker.device.kind = kernels::DeviceKind::kCpu;
  options.worker.kv_blocks = 64;
  return options;
}

void ExpectTimes(const Json& times) {
  EXPECT_GT(times["microseconds"].get<double>(), 0);
  EXPECT_LE(times["least"].get<double>(), times["microseconds"].get<double>());
  EXPECT_GE(times["most"].get<double>(), times["microseconds"].get<double>());
}

TEST(TimeEngine, RefusesHeadsThatAreTooWideForTheDevice) {
  std::string wide(kTiny);
  wide.replace(wide.find("float32"), 7, "bfloat16");
  wide.replace(wide.find("\"head_dim\": 16"), 14, "\"head_dim\": 258");
  const auto made = Make(wide);
  ASSERT_NE(made, nullptr);
  const absl::Status status = TimeEngine(OnDevice(made->directory())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(status.message(), ::testing::HasSubstr("config.json: head_dim is 258, but on "));
}

TEST(SameTokens, NamesTheFirstThatDiffers) {
  EngineFigures figures;
  figures.tokens = {{{1, 2, 3}}, {{1, 2}, {7, 8}}};
  figures.tokens_on_clock = figures.tokens;
  EngineFigures in_turn;
  in_turn.tokens = {{{1, 2, 3, 4}}};
  EXPECT_TRUE(CheckSameTokens(figures, in_turn).ok());
  EXPECT_TRUE(CheckSameTokens({}, in_turn).ok()) << "nothing fitted";
  const auto fault = [&](auto change) {
    EngineFigures changed = figures;
    EngineFigures other = in_turn;
    change(changed, other);
    return std::string(CheckSameTokens(changed, other).message());
  };
  EXPECT_THAT(
      fault([](auto& f, auto&) { f.tokens_on_clock[1][1][1] = 9; }),
      ::testing::HasSubstr("token 1 is 8, but 9 with the device's clock, in sequence 1 of 2"));
  EXPECT_THAT(fault([](auto& f, auto&) {
                f.tokens[1][0] = f.tokens_on_clock[1][0] = {5, 2};
              }),
              ::testing::HasSubstr("token 0 is 1, but 5 in a step of 2 sequences"));
  EXPECT_THAT(fault([](auto&, auto& other) { other.tokens[0][0][2] = 0; }),
              ::testing::HasSubstr("token 2 is 3, but 0 where kernels don't start early"));
}

class TimedEngine : public ::testing::TestWithParam<bool> {};

TEST_P(TimedEngine, GivesTheCpusTokensAndFiguresOfSteadySteps) {
  const bool experts = GetParam();
  const auto made = Make(experts ? kTinyExperts : kTiny);
  ASSERT_NE(made, nullptr);
  const auto expected = TimeEngine(OnCpu(made->directory()));
  ASSERT_TRUE(expected.ok()) << expected.status();
  const EngineTimingOptions options = OnDevice(made->directory());
  const auto found = TimeEngine(options);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->tokens.size(), 2u);
  EXPECT_EQ(found->tokens, expected->tokens);
  EXPECT_EQ(found->tokens_on_clock, found->tokens);
  EXPECT_TRUE(expected->tokens_on_clock.empty());

  const Json& decode = found->json["decode"];
  ASSERT_EQ(decode.size(), 2u) << found->json;
  for (size_t i = 0; i < decode.size(); ++i) {
    const Json& run = decode[i];
    const auto sequences = run["sequences"].get<double>();
    EXPECT_EQ(sequences, options.batches[i]);
    EXPECT_EQ(run["steps"], 6);
    EXPECT_LE(run["steps_ahead"], 6);
    if (!experts) {
      EXPECT_GT(run["steps_ahead"], 0) << "the engine looks ahead";
    }
    ExpectTimes(run);
    const double seconds = run["microseconds"].get<double>() / 1e6;
    EXPECT_NEAR(run["tokens_per_second"].get<double>(), sequences / seconds, 1e-6 / seconds);
    // The last steps are counted.
    const auto context = run["mean_context"].get<double>();
    EXPECT_GT(context, 40 + 4 + 2);
    EXPECT_LT(context, 40 + static_cast<double>(found->tokens[i][0].size()));
    EXPECT_EQ(run.contains("bytes_read"), !(experts && sequences > 1));
    if (!experts) {
      const double weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 96) + 64 * 96;
      const double kv = 2 * 2 * 2 * 16;  // values of a token, over both layers
      const double bytes = 4 * (weights + sequences * context * kv);
      EXPECT_NEAR(run["bytes_read"].get<double>(), bytes, 1e-6 * bytes);
      EXPECT_NEAR(run["of_read_bandwidth"].get<double>(), bytes / seconds / 1e9, 1e-6 * bytes);
    }
    const Json& device = run["device"];
    EXPECT_EQ(device["steps"], 6);
    ExpectTimes(device["span"]);
    ExpectTimes(device["step_on_clock"]);
    EXPECT_GT(device["gap"]["median"].get<double>(), 0);
    EXPECT_GE(device["gap"]["p99"].get<double>(), device["gap"]["median"].get<double>());
    EXPECT_GE(device["gap"]["most"].get<double>(), device["gap"]["p99"].get<double>());
    EXPECT_GT(device["idle_between_steps"].get<double>(), 0);
    EXPECT_LT(device["idle_between_steps"].get<double>(), 1);
    EXPECT_LE(device["late_steps"].get<int>(), 6);
    EXPECT_EQ(device["waits_in_steps"], 0);
  }
  const Json& prefill = found->json["prefill"];
  ASSERT_EQ(prefill.size(), 1u);
  EXPECT_EQ(prefill[0]["rows"], 33);
  ExpectTimes(prefill[0]);
  ExpectTimes(prefill[0]["time_to_first_token"]);
  // The device's part of it.
  EXPECT_LT(prefill[0]["least"].get<double>(),
            prefill[0]["time_to_first_token"]["most"].get<double>());
  EXPECT_GT(prefill[0]["teraflops"].get<double>(), 0);
  EXPECT_FALSE(expected->json["decode"][0].contains("device")) << "a CPU has no such clock";
}

INSTANTIATE_TEST_SUITE_P(Models, TimedEngine, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "experts" : "dense"; });

TEST(TimedEngineMemory, WhatDoesNotFitIsLeftOutSayingSo) {
  const auto made = Make(kTiny);
  ASSERT_NE(made, nullptr);
  EngineTimingOptions options = OnDevice(made->directory());
  options.worker.kv_blocks = 5;
  options.batches = {3};
  options.prompts = {};
  const auto found = TimeEngine(options);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->tokens.empty());
  EXPECT_EQ(found->json["decode"][0]["left_out"],
            "the KV memory holds 5 blocks, and 3 sequences need 10");
}

TEST(TimingModel, EveryOpRuns) {
  std::string config(kTiny);
  config.replace(config.find("float32"), 7, "bfloat16");
  auto kernels = kernels::CreateCudaKernels(testing::TestedDevice());
  ASSERT_TRUE(kernels.ok()) << kernels.status();
  TimingModel model(**kernels, Config(config), /*max_rows=*/20, /*max_tokens=*/128);
  std::vector<std::string> names;
  for (const StepShape& step : {StepShape{3, 1, 30}, {1, 20, 5}}) {
    names.clear();
    model.EachOp(step, [&](const std::string& name, int64_t bytes, int64_t flops,
                           const std::function<void()>& op) {
      names.push_back(name);
      EXPECT_GT(bytes, 0) << name;
      EXPECT_GE(flops, 0) << name;
      (*kernels)->BeginStep(step.sequences * step.rows);
      op();
      (*kernels)->EndStep();
    });
    (*kernels)->Synchronize();
  }
  EXPECT_THAT(names, ::testing::ElementsAre("add_residual_rms_norm", "matmul_qkv", "qkv_to_cache",
                                            "attention", "matmul_o", "matmul_gate_up", "silu_mul",
                                            "matmul_silu_mul", "matmul_down", "matmul_head",
                                            "choose", "choose_top_p"));
}

}  // namespace
}  // namespace phalanx::timing
