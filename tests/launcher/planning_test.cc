#include "launcher/planning.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/random_checkpoint.h"
#include "runtime/worker/in_process_group.h"

namespace phalanx::launcher {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const char kModels[] = PHALANX_SOURCE_DIR "/tests/parallel/models/";
const char kConfigs[] = PHALANX_SOURCE_DIR "/cluster-configs/";

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = fs::temp_directory_path() / "phalanx-planning-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~ScratchDirectory() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

absl::StatusOr<parallel::PlanOptions> OptionsFor(const std::string& model,
                                                 const std::string& config) {
  const auto file = ReadConfig(kConfigs + config);
  if (!file.ok()) return file.status();
  ServiceOptions service;
  service.rank.model = kModels + model;
  service.rank.layout = "auto";
  return MakePlanOptions(service, {}, &*file);
}

TEST(PlanningTest, ShapesOfPublishedModelsAreReadWithoutTheirWeights) {
  for (const auto& [name, billions] :
       {std::pair("llama-3.1-405b", 405.9), {"mixtral-8x22b", 140.6}, {"qwen3-235b-a22b", 235.1}}) {
    const auto spec = ReadModelSpec(absl::StrCat(kModels, name));
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->name, name);
    EXPECT_NEAR(static_cast<double>(spec->Parameters()) / 1e9, billions, 0.1);
    EXPECT_EQ(spec->element_bytes, 2);
  }
}

TEST(PlanningTest, EveryModelIsPlannedOrRefusedOnEveryClusterConfiguration) {
  int plans = 0;
  int refusals = 0;
  for (const char* model : {"llama-3.1-405b", "mixtral-8x22b", "qwen3-235b-a22b"}) {
    for (const auto& entry : fs::directory_iterator(kConfigs)) {
      if (entry.path().extension() != ".yaml") continue;
      const auto options = OptionsFor(model, entry.path().filename());
      ASSERT_TRUE(options.ok()) << options.status();
      const auto plan = parallel::PlanLayouts(*options);
      if (plan.ok()) {
        ++plans;
        EXPECT_GE(plan->candidates[0].free_bytes(), 0);
        EXPECT_EQ(plan->ranks.size(), static_cast<size_t>(plan->candidates[0].layout.group_size()));
        for (const parallel::RankPlan& rank : plan->ranks) {
          EXPECT_LE(rank.memory.fixed_bytes(), rank.budget_bytes);
        }
      } else {
        ++refusals;
        EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
        EXPECT_THAT(std::string(plan.status().message()), HasSubstr("too much on that rank"));
      }
    }
  }
  // 4x8 and 16x8 hold all three; eight H100s and the mix hold Mixtral and Qwen3.
  EXPECT_GE(plans, 10);
  EXPECT_GE(refusals, 4);
}

TEST(PlanningTest, TheIndexSaysTheTypeWhereTheConfigurationDoesNot) {
  ScratchDirectory scratch;
  std::ifstream in(absl::StrCat(kModels, "mixtral-8x22b/config.json"));
  std::string config((std::istreambuf_iterator<char>(in)), {});
  const size_t at = config.find("\"torch_dtype\"");
  config.erase(at, config.find('\n', at) - at);
  std::ofstream(scratch / "config.json") << config;
  EXPECT_EQ(ReadModelSpec(scratch / "")->element_bytes, 2);
  std::ofstream(scratch / "model.safetensors.index.json")
      << R"({"metadata": {"total_size": 562480000000}, "weight_map": {}})";
  EXPECT_EQ(ReadModelSpec(scratch / "")->element_bytes, 4);
}

TEST(PlanningTest, MachinesAreCheckedWholeWithTheirPlace) {
  const auto file = ParseConfig(
      "model: m\ncluster:\n  nodes:\n    - name: x\n      device: cuda\n      devices: 8\n"
      "      cores: 4\n      memory_bytes: 80GiB\n      read_gb_per_s: 0\n"
      "      matrix_tflops: .inf\n    - { count: 2, device: cpu }\n  hosts: [{ name: a }]\n",
      "c.yaml");
  ASSERT_FALSE(file.ok());
  const std::string faults(file.status().message());
  EXPECT_THAT(faults, HasSubstr("6 faults"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:4:5: cluster.nodes: describes 3 machines"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:4:7: cluster.nodes[0]: link_us, link_gb_per_s, "
                                "network_us, network_gb_per_s are missing"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:7:14: cluster.nodes[0].cores: has no effect"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:9:22: cluster.nodes[0].read_gb_per_s: expected a number "
                                "above 0"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:10:22: cluster.nodes[0].matrix_tflops: expected a number"));
  EXPECT_THAT(faults, HasSubstr("c.yaml:11:7: cluster.nodes[1]: name, memory_bytes"));
}

TEST(PlanningTest, HostsAreTakenToBeLikeThisMachine) {
  const auto cluster = MakeCluster(nullptr, "a:2,b", 3);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->nodes.size(), 2u);
  EXPECT_EQ(cluster->nodes[0].devices, 2);
  EXPECT_EQ(cluster->nodes[1].name, "b");
  EXPECT_EQ(cluster->devices(), 3);
  EXPECT_EQ(cluster->ThreadsOn(cluster->nodes[0], 2), 3);
  EXPECT_FALSE(MakeCluster(nullptr, "a:none", 0).ok());
}

TEST(PlanningTest, AxesOfTheLayoutFlagAreSettled) {
  const auto file = ReadConfig(absl::StrCat(kConfigs, "4x8-h100.yaml"));
  ASSERT_TRUE(file.ok());
  ServiceOptions service;
  service.rank.model = absl::StrCat(kModels, "llama-3.1-405b");
  service.rank.layout = "pp=4,dp=1";
  const auto options = MakePlanOptions(service, {}, &*file);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->pp, 4);
  EXPECT_EQ(options->dp, 1);
  EXPECT_EQ(options->tp, 0);
}

TEST(PlanningTest, AutoBecomesALayoutThatFitsThisMachine) {
  ScratchDirectory scratch;
  constexpr char kSmall[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128})";
  ASSERT_TRUE(WriteRandomCheckpoint(scratch / "m", kSmall, 1).ok());
  ServiceOptions service;
  service.rank.model = scratch / "m";
  service.rank.layout = "auto";
  const absl::Status status = SettleLayout({}, service);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(parallel::ParseLayout(service.rank.layout).ok()) << service.rank.layout;
  service.rank.layout = "tp=2";
  EXPECT_TRUE(SettleLayout({}, service).ok());
  EXPECT_EQ(service.rank.layout, "tp=2");
}

// Odd sizes everywhere: heads and channels that leaves don't divide, a head padded to a panel.
constexpr char kDense[] = R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
  "hidden_size": 120, "intermediate_size": 424, "num_hidden_layers": 5, "num_attention_heads": 10,
  "num_key_value_heads": 5, "vocab_size": 1013, "max_position_embeddings": 256,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16"})";
constexpr char kExperts[] = R"({"architectures": ["Qwen2MoeForCausalLM"],
  "model_type": "qwen2_moe", "hidden_size": 96, "intermediate_size": 320,
  "moe_intermediate_size": 200, "shared_expert_intermediate_size": 264, "num_hidden_layers": 5,
  "num_attention_heads": 6, "num_key_value_heads": 3, "num_experts": 7, "num_experts_per_tok": 2,
  "decoder_sparse_step": 1, "mlp_only_layers": [1], "vocab_size": 777,
  "max_position_embeddings": 256, "torch_dtype": "bfloat16"})";

class PlannedMemoryTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(PlannedMemoryTest, IsWhatRanksReport) {
  ScratchDirectory scratch;
  const auto [config, layout_text] = GetParam();
  ASSERT_TRUE(WriteRandomCheckpoint(scratch / "m", config, 1).ok());
  const auto layout = parallel::ParseLayout(layout_text);
  ASSERT_TRUE(layout.ok());
  worker::WorkerOptions options;
  options.model_directory = scratch / "m";
  options.layout = *layout;
  options.max_step_tokens = 64;
  options.kv_blocks = 8;
  const std::unique_ptr<coordinator::WorkerGroup> group = worker::CreateInProcessGroup(options);
  const auto info = group->Start([](absl::StatusOr<scheduler::StepResult>) {});
  ASSERT_TRUE(info.ok()) << info.status();
  group->Stop();

  const auto spec = ReadModelSpec(scratch / "m");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const parallel::DeviceTraits traits = CpuTraits(kernels::DType::kBF16);
  const parallel::DecoderShards shards(spec->shape, *layout, 8, 8);
  const parallel::MemoryModel memory(*spec, traits, shards, 64);
  ASSERT_EQ(info->ranks.size(), static_cast<size_t>(layout->group_size()));
  for (const coordinator::RankInfo& rank : info->ranks) {
    EXPECT_EQ(memory.rank(rank.rank).weight_bytes, rank.weight_bytes) << "rank " << rank.rank;
    EXPECT_EQ(memory.rank(rank.rank).kv_block_bytes, rank.kv_block_bytes) << "rank " << rank.rank;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, PlannedMemoryTest,
    ::testing::Values(std::pair(kDense, "tp=1"), std::pair(kDense, "tp=2"),
                      std::pair(kDense, "tp=3"), std::pair(kDense, "tp=8"),
                      std::pair(kDense, "pp=3"), std::pair(kDense, "pp=2,tp=3"),
                      std::pair(kDense, "sp=3,tp=2"), std::pair(kExperts, "tp=1"),
                      std::pair(kExperts, "tp=4,ep=4"), std::pair(kExperts, "tp=4,ep=2"),
                      std::pair(kExperts, "tp=4,ep=1"), std::pair(kExperts, "sp=2,tp=3,ep=3"),
                      std::pair(kExperts, "pp=2,sp=2,ep=2")));

}  // namespace
}  // namespace phalanx::launcher
