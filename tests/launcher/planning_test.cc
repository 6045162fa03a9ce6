#include "launcher/planning.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/pack.h"
#include "launcher/random_checkpoint.h"
#include "parallel/gpu_types.h"
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
  if (file->config.worker().device() == v1::WorkerConfig::DEVICE_CUDA) service.rank.device = "cuda";
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
  RankOptions rank;
  rank.threads = 3;
  const auto cluster = MakeCluster(nullptr, "a:2,b", rank, "");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->nodes.size(), 2u);
  EXPECT_EQ(cluster->nodes[0].devices, 2);
  EXPECT_EQ(cluster->nodes[1].name, "b");
  EXPECT_EQ(cluster->devices(), 3);
  EXPECT_EQ(cluster->ThreadsOn(cluster->nodes[0], 2), 3);
  EXPECT_FALSE(MakeCluster(nullptr, "a:none", rank, "").ok());
}

TEST(PlanningTest, AGpuTypeDescribesMachinesThatAreNotHere) {
  RankOptions rank;
  rank.device = "cuda";
  rank.gpu_memory_fraction = 0.5;
  const auto one = MakeCluster(nullptr, "", rank, "h200");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->devices(), 1);
  EXPECT_FALSE(one->nodes[0].shared);
  EXPECT_EQ(one->nodes[0].memory_bytes, int64_t{139} << 30);
  EXPECT_EQ(one->memory_share, 0.5);
  EXPECT_EQ(MakeCluster(nullptr, "", rank, "8xh100-sxm")->devices(), 8);
  // Hosts say how many ranks each is given.
  const auto hosts = MakeCluster(nullptr, "a:4,b:2", rank, "8xh100-sxm");
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_EQ(hosts->nodes[0].devices, 4);
  EXPECT_EQ(hosts->nodes[1].devices, 2);
  EXPECT_GT(hosts->nodes[0].network.bytes_per_s, 0);
  for (const char* bad : {"8xT4", "0xh200", "h100", "8x", "x", "-1xh200"}) {
    const auto cluster = MakeCluster(nullptr, "", rank, bad);
    EXPECT_EQ(cluster.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("a100-80g, h100-sxm or h200"));
  }
  EXPECT_THAT(std::string(MakeCluster(nullptr, "", RankOptions(), "h200").status().message()),
              HasSubstr("--gpu-type is for --device cuda"));
}

TEST(PlanningTest, AGpuTypeIsForGpusThatNoFileDescribes) {
  RankOptions rank;
  EXPECT_TRUE(CheckGpuType(nullptr, rank, "").ok());
  EXPECT_THAT(std::string(CheckGpuType(nullptr, rank, "h200").message()),
              HasSubstr("--gpu-type is for --device cuda"));
  rank.device = "cuda";
  EXPECT_TRUE(CheckGpuType(nullptr, rank, "h200").ok());
  const auto file = ParseConfig(
      "cluster: {nodes: [{name: n, device: cuda, devices: 4, gpu_type: h200}]}", "c.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(CheckGpuType(&*file, rank, "").ok());
  EXPECT_THAT(std::string(CheckGpuType(&*file, rank, "h100-sxm").message()),
              HasSubstr("--gpu-type: c.yaml describes the machines already"));
  // Whether the layout is planned or given: a group on fewer hosts is planned, too.
  const std::string path = ::testing::TempDir() + "/gpu-type.yaml";
  std::ofstream(path) << "cluster: {nodes: [{name: n, device: cuda, devices: 4, gpu_type: h200}]}";
  PlanningOptions planning;
  planning.gpu_type = "h200";
  for (const char* layout : {"tp=2", "auto"}) {
    ServiceOptions service;
    service.rank = rank;
    service.rank.layout = layout;
    service.cluster_file = path;
    EXPECT_THAT(std::string(SettleLayout(planning, service).message()),
                HasSubstr("describes the machines already"))
        << layout;
  }
  std::filesystem::remove(path);
}

TEST(PlanningTest, GpusThatNobodyDescribesAreThisMachines) {
  RankOptions rank;
  rank.device = "cuda";
  const auto devices = kernels::CudaDeviceCount();
  const auto cluster = MakeCluster(nullptr, "", rank, "");
  if (cluster.ok()) {
    EXPECT_EQ(cluster->devices(), *devices);
  } else {
    // Without a driver, or with GPUs of another type.
    EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("--gpu-type"));
    EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("--cluster"));
  }
}

TEST(PlanningTest, MachinesAreOfTheDeviceThatRanksComputeOn) {
  const auto gpus = ReadConfig(absl::StrCat(kConfigs, "one-gpu.yaml"));
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  const auto refused = MakeCluster(&*gpus, "", RankOptions(), "");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("described with device: cuda, but ranks are to compute on cpu"));
  const auto cpus = ParseConfig(
      "cluster: {nodes: [{name: n, cores: 4, memory_bytes: 1GiB, read_gb_per_s: 9, "
      "matrix_tflops: 1}]}",
      "c.yaml");
  ASSERT_TRUE(cpus.ok()) << cpus.status();
  RankOptions rank;
  rank.device = "cuda";
  EXPECT_THAT(std::string(MakeCluster(&*cpus, "", rank, "").status().message()),
              HasSubstr("c.yaml: cluster.nodes: n is described without device: cuda"));
}

TEST(PlanningTest, FiguresBesideAGpuTypeTakeItsPlace) {
  const auto file = ParseConfig(
      "cluster: {nodes: [{name: n, device: cuda, devices: 2, gpu_type: a100-80g, "
      "memory_bytes: 40GiB, link_gb_per_s: 20, op_us: 5}]}",
      "c.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  RankOptions rank;
  rank.device = "cuda";
  const auto cluster = MakeCluster(&*file, "", rank, "");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const parallel::NodeSpec& node = cluster->nodes[0];
  const parallel::NodeSpec type = parallel::GpuNode(*parallel::FindGpuType("a100-80g"), 2);
  EXPECT_EQ(node.name, "n");
  EXPECT_EQ(node.memory_bytes, int64_t{40} << 30);
  EXPECT_EQ(node.link.bytes_per_s, 20e9);
  EXPECT_EQ(node.link.latency_s, type.link.latency_s);
  EXPECT_DOUBLE_EQ(node.op_s, 5e-6);
  EXPECT_EQ(node.read_bytes_per_s, type.read_bytes_per_s);
  EXPECT_EQ(node.matrix_flops_per_s, type.matrix_flops_per_s);
}

TEST(PlanningTest, RanksShareDescribedGpusOnlyWhereTheyAreStaged) {
  const auto file = ParseConfig(
      "cluster: {nodes: [{name: n, device: cuda, devices: 4, gpu_type: h200}]}", "c.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  RankOptions rank;
  rank.device = "cuda";
  EXPECT_EQ(MakeCluster(&*file, "a:3", rank, "")->devices(), 3);
  EXPECT_THAT(std::string(MakeCluster(&*file, "a:5", rank, "").status().message()),
              HasSubstr("host a has 5 slots, but cluster.nodes says that n has 4 GPUs"));
  rank.device_comm = "staged";
  const auto shared = MakeCluster(&*file, "a:5", rank, "");
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(shared->devices(), 5);
  EXPECT_EQ(shared->nodes[0].memory_bytes, (int64_t{139} << 30) / 2);
}

// What a GPU's kernels make of a weight and of a KV block, without a GPU.
TEST(PlanningTest, MemoryOnAGpuIsWhatItsKernelsPack) {
  struct Case {
    const char* dtype;
    kernels::DType type;
  };
  for (const Case& c : {Case{"bfloat16", kernels::DType::kBF16},
                        {"float16", kernels::DType::kF16},
                        {"float32", kernels::DType::kF32}}) {
    ScratchDirectory scratch;
    // Heads of 40: keys and values are padded each in its own way.
    std::ofstream(scratch / "config.json") << absl::StrCat(
        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 120,
        "intermediate_size": 424, "num_hidden_layers": 1, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 40, "vocab_size": 1013,
        "max_position_embeddings": 256, "torch_dtype": ")",
        c.dtype, R"("})");
    const auto spec = ReadModelSpec(scratch / "");
    ASSERT_TRUE(spec.ok()) << spec.status();
    const parallel::Layout layout;
    const parallel::DecoderShards shards(spec->shape, layout, 1, 1);
    const parallel::RankMemory memory =
        parallel::MemoryModel(*spec, CudaTraits(c.type), shards, 64).rank(0);
    EXPECT_EQ(memory.kv_block_bytes, kernels::cuda::KvLayout(c.type, 3, 40).block_bytes) << c.dtype;
    parallel::ModelSpec fp8 = *spec;
    fp8.fp8_kv = true;
    for (const int64_t d : {40, 33}) {  // 33: a head's bytes are padded
      fp8.shape.head_dim = d;
      const kernels::KvShape shape = {c.type, 3, d, kernels::KvFormat::kF8E4M3};
      const auto bytes = [&](const parallel::DeviceTraits& traits) {
        return parallel::MemoryModel(fp8, traits, shards, 64).rank(0).kv_block_bytes;
      };
      EXPECT_EQ(bytes(CudaTraits(c.type)), kernels::cuda::LayoutOf(shape).block_bytes) << c.dtype;
      EXPECT_EQ(bytes(CpuTraits(c.type)), (*kernels::CreateCpuKernels({}))->KvBlockBytes(shape))
          << c.dtype;
    }
    const auto packed = [&](int64_t n, int64_t k,
                            kernels::WeightFormat format = kernels::WeightFormat::kPlain) {
      kernels::WeightPlan plan;
      plan.dtype = c.type;
      plan.format = format;
      plan.n = n;
      plan.k = kernels::RoundUp(k, kernels::kDotGroup);
      return kernels::cuda::NumUnits(plan) * kernels::cuda::UnitBytes(plan);
    };
    const int64_t vectors = 3 * 120 * 4;  // norms
    const int64_t embedding = 1013 * 120 * kernels::SizeOf(c.type);
    EXPECT_EQ(memory.weight_bytes, packed(3 * 120, 120) + packed(120, 120) + packed(2 * 424, 120) +
                                       packed(120, 424) + packed(1013, 120) + vectors + embedding)
        << c.dtype;
    if (c.type != kernels::DType::kBF16) continue;
    parallel::ModelSpec coded = *spec;
    coded.fp8_matrices = {parallel::kAllLayerMatrices};
    constexpr auto kFp8 = kernels::WeightFormat::kF8E4M3;
    EXPECT_EQ(parallel::MemoryModel(coded, CudaTraits(c.type), shards, 64).rank(0).weight_bytes,
              packed(3 * 120, 120, kFp8) + packed(120, 120, kFp8) + packed(2 * 424, 120, kFp8) +
                  packed(120, 424, kFp8) + packed(1013, 120) + vectors + embedding);
    coded.fp8_matrices = {1 << parallel::kO};
    EXPECT_EQ(parallel::MemoryModel(coded, CudaTraits(c.type), shards, 64).rank(0).weight_bytes,
              memory.weight_bytes - packed(120, 120) + packed(120, 120, kFp8));
  }
}

// Meta's FP8 checkpoint of 405B leaves attention, and the MLP of the first and the last layer,
// alone.
TEST(PlanningTest, MatricesThatAnFp8CheckpointLeavesAloneCountWhole) {
  constexpr uint8_t kMlp = 1 << parallel::kGateUp | 1 << parallel::kDown;
  ScratchDirectory scratch;
  std::ifstream in(absl::StrCat(kModels, "llama-3.1-405b/config.json"));
  std::string config{std::istreambuf_iterator<char>(in), {}};
  config.insert(config.find('{') + 1, R"("quantization_config": {"quant_method": "fbgemm_fp8",
      "modules_to_not_convert": ["self_attn", "lm_head", "model.layers.0.mlp",
      "model.layers.125"]},)");
  std::ofstream(scratch / "config.json") << config;
  const auto spec = ReadModelSpec(scratch / "");
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->fp8_matrices.size(), 126u);
  for (int layer = 0; layer < 126; ++layer) {
    EXPECT_EQ(spec->fp8(layer), layer == 0 || layer == 125 ? 0 : kMlp) << layer;
  }
  const int64_t mlps = int64_t{124} * 3 * 16384 * 53248;
  EXPECT_EQ(spec->ParameterBytes(), 2 * spec->Parameters() - 2 * mlps + mlps / 32 * 34);
  // The largest of a step is read from memory: a layer with codes takes less time.
  parallel::ModelSpec half = *spec;
  for (int layer = 0; layer < 126; ++layer) half.fp8_matrices[layer] = layer < 63 ? kMlp : 0;
  parallel::ClusterSpec cluster;
  cluster.nodes = {parallel::GpuNode(*parallel::FindGpuType("h200"), 8)};
  const parallel::Layout layout = *parallel::ParseLayout("pp=2,tp=4");
  const parallel::DecoderShards shards(half.shape, layout, 8, 8);
  const auto placement = parallel::Placement::Make(cluster, layout, /*split_tp=*/false);
  const parallel::DeviceTraits traits = CudaTraits(kernels::DType::kBF16);
  const parallel::CostModel cost(half, traits, cluster, shards, *placement);
  const parallel::StepCost step = cost.Step({1, 1, 100, 1}, 0, 1, 1);
  EXPECT_LT(step.stages[0].matmul, 0.8 * step.stages[1].matmul);
}

// Each leaves the second layer's down projection alone and says so in its own way.
TEST(PlanningTest, TensorsAndConfigurationTellTheSameMatrices) {
  constexpr parallel::LayerMatrices kAll = 0b1111;
  for (const char* name : {"llama-fp8-row", "llama-fp8-tensor", "qwen3-fp8-block"}) {
    const std::string model = absl::StrCat(PHALANX_SOURCE_DIR "/tests/goldens/models/", name);
    ScratchDirectory scratch;
    fs::copy_file(absl::StrCat(model, "/config.json"), scratch / "config.json");
    for (const std::string& directory : {model, scratch / ""}) {
      const auto spec = ReadModelSpec(directory);
      ASSERT_TRUE(spec.ok()) << spec.status();
      EXPECT_EQ(spec->fp8_matrices,
                (std::vector<parallel::LayerMatrices>{kAll, kAll & ~(1 << parallel::kDown)}))
          << directory;
    }
  }
}

TEST(PlanningTest, AxesOfTheLayoutFlagAreSettled) {
  const auto file = ReadConfig(absl::StrCat(kConfigs, "4x8-h100.yaml"));
  ASSERT_TRUE(file.ok());
  ServiceOptions service;
  service.rank.model = absl::StrCat(kModels, "llama-3.1-405b");
  service.rank.layout = "pp=4,dp=1";
  service.rank.device = "cuda";
  const auto options = MakePlanOptions(service, {}, &*file);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->pp, 4);
  EXPECT_EQ(options->dp, 1);
  EXPECT_EQ(options->tp, 0);
}

TEST(PlanningTest, AContextBeyondTheModelsIsRefused) {
  ServiceOptions service;
  service.rank.model = absl::StrCat(kModels, "mixtral-8x22b");
  service.rank.max_context = 65536;
  EXPECT_TRUE(MakePlanOptions(service, {}, nullptr).ok());
  service.rank.max_context = 65537;
  EXPECT_THAT(std::string(MakePlanOptions(service, {}, nullptr).status().message()),
              HasSubstr("--max-context 65537: the model was made for at most 65536 tokens"));
}

TEST(PlanningTest, RequestsAreCutToTheContext) {
  parallel::PlanOptions plan;
  plan.model.max_positions = 300;
  FitWorkload(plan);
  EXPECT_EQ(plan.workload.prompt_tokens, 44);
  EXPECT_EQ(plan.workload.output_tokens, 256);
  plan.max_positions = 100;
  FitWorkload(plan);
  EXPECT_EQ(plan.workload.prompt_tokens, 1);
  EXPECT_EQ(plan.workload.output_tokens, 99);
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

TEST(PlanningTest, NoLayoutIsPlannedForMachinesThatNobodyNames) {
  ScratchDirectory scratch;
  ServiceOptions service;
  service.rank.model = absl::StrCat(kModels, "mixtral-8x22b");
  service.cluster_file = scratch / "c.yaml";
  std::ofstream(service.cluster_file)
      << "cluster: {nodes: [{name: n, count: 2, cores: 64, memory_bytes: 1TiB, read_gb_per_s: 300, "
         "matrix_tflops: 4, network_us: 20, network_gb_per_s: 10}]}";
  service.rank.layout = "auto";
  const absl::Status status = SettleLayout({}, service);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("c.yaml: cluster.nodes describes 2 machines, but no hosts are named"));
  service.hosts = "a:4,b:4";
  EXPECT_TRUE(SettleLayout({}, service).ok());
  // Workers that are started elsewhere, and a layout that somebody has chosen.
  service.hosts = "";
  service.rank.layout = "auto";
  service.workers = "external";
  EXPECT_TRUE(SettleLayout({}, service).ok());
  service.workers = "auto";
  service.rank.layout = "tp=2";
  EXPECT_TRUE(SettleLayout({}, service).ok());
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
