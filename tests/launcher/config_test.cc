#include "launcher/config.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;

// The lines of what ParseConfig says of `text`; none where it is valid.
std::vector<std::string> Faults(const std::string& text) {
  const auto file = ParseConfig(text, "c.yaml");
  if (file.ok()) return {};
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  return absl::StrSplit(std::string(file.status().message()), '\n');
}

// What `serve` makes of flags and a file.
struct Applied {
  ServiceOptions options;
  ServingOptions serving;
  absl::Status status;
};
Applied Apply(const std::string& text, const std::vector<std::string>& arguments = {},
              const std::string& path = "/etc/phalanx/c.yaml") {
  Applied out;
  CLI::App app;
  AddServiceOptions(app, out.options);
  AddServingOptions(app, out.serving);
  app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  const auto file = ParseConfig(text, path);
  out.status = file.ok() ? ApplyConfig(*file, app, out.options, &out.serving) : file.status();
  return out;
}

TEST(ConfigTest, EveryFileOfClusterConfigsIsValid) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(PHALANX_SOURCE_DIR "/cluster-configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    const auto file = ReadConfig(entry.path().string());
    ASSERT_TRUE(file.ok()) << file.status().message();
    ServiceOptions options;
    ServingOptions serving;
    CLI::App app;
    AddServiceOptions(app, options);
    const absl::Status applied = ApplyConfig(*file, app, options, &serving);
    EXPECT_TRUE(applied.ok()) << applied.message();
    EXPECT_FALSE(options.rank.model.empty());
  }
  EXPECT_GE(files, 2);
}

TEST(ConfigTest, AllFaultsAreReportedWithLineAndColumn) {
  const std::vector<std::string> faults = Faults(
      "model: demo\n"                 // 1
      "modle: demo\n"                 // 2
      "layout:\n"                     // 3
      "  tp: two\n"                   // 4
      "  pp: 0\n"                     // 5
      "  tp: 2\n"                     // 6
      "worker:\n"                     // 7
      "  device: gpu\n"               // 8
      "  kv_cache_bytes: 8 apples\n"  // 9
      "control:\n"                    // 10
      "  start_timeout_ms: soon\n"    // 11
      "scheduler: fast\n"             // 12
      "cluster:\n"                    // 13
      "  hosts:\n"                    // 14
      "    - slots: 1\n");            // 15
  EXPECT_THAT(
      faults,
      ElementsAre("c.yaml: 9 faults in the configuration",
                  StartsWith("c.yaml:2:1: unknown key \"modle\"; the keys here are model, "),
                  StartsWith("c.yaml:4:7: layout.tp: expected a whole number, found \"two\""),
                  "c.yaml:5:7: layout.pp: \"0\" is out of range; expected 1 to 65536",
                  "c.yaml:6:3: layout.tp: the key is given twice",
                  "c.yaml:8:11: worker.device: expected cpu or cuda, found \"gpu\"",
                  StartsWith("c.yaml:9:19: worker.kv_cache_bytes: expected a size such as 512MiB"),
                  StartsWith("c.yaml:11:21: control.start_timeout_ms: expected a duration such as"),
                  "c.yaml:12:12: scheduler: expected a mapping, found \"fast\"",
                  "c.yaml:15:7: cluster.hosts[0]: the host's name is missing"));
}

TEST(ConfigTest, OneFaultIsOneLine) {
  EXPECT_THAT(Faults("layout: {tp: \"2\"}"),
              ElementsAre("c.yaml:1:14: layout.tp: expected a whole number, found the text \"2\""));
  EXPECT_THAT(Faults("layout: {tp: 2.0}"), ElementsAre(HasSubstr("expected a whole number")));
  EXPECT_THAT(Faults("layout: {tp: 99999999999999999999}"),
              ElementsAre(HasSubstr("is out of range; expected 1 to 65536")));
  EXPECT_THAT(Faults("worker: {kv_cache_bytes: 99999999999999999999}"),
              ElementsAre(HasSubstr("is out of range")));
  EXPECT_THAT(Faults("scheduler: {prefix_cache: yes}"),
              ElementsAre(HasSubstr("expected true or false, found \"yes\"")));
  EXPECT_THAT(Faults("service: {drain_timeout_ms: -1s}"), ElementsAre(HasSubstr("out of range")));
  EXPECT_THAT(Faults("service: {drain_timeout_ms: 1us}"),
              ElementsAre(HasSubstr("not a whole number of milliseconds")));
  EXPECT_THAT(Faults("model:"), ElementsAre("c.yaml:1:1: model: expected a text, found nothing"));
  EXPECT_THAT(Faults("cluster: {hosts: a}"),
              ElementsAre(HasSubstr("expected a list, found \"a\"")));
  EXPECT_THAT(Faults("cluster: {hosts: [{name: \"a:4\"}]}"),
              ElementsAre(HasSubstr("is not a host's name")));
  EXPECT_THAT(Faults("cluster: {hosts: [{name: a}, {name: a}]}"),
              ElementsAre(HasSubstr("the host a is given twice")));
  EXPECT_THAT(Faults("cluster: {launcher: {kind: unspecified}}"),
              ElementsAre(HasSubstr("expected mpirun or threads or external")));
  EXPECT_THAT(Faults("cluster: {launcher: {pass_environment: [A=1]}}"),
              ElementsAre(HasSubstr("is not the name of an environment variable")));
  EXPECT_THAT(Faults("[1, 2]"), ElementsAre(HasSubstr("expected a mapping, found a list")));
  EXPECT_THAT(Faults("model: a\n---\nmodel: b\n"), ElementsAre(HasSubstr("a second document")));
  EXPECT_THAT(Faults("layout: {tp: 2\nmodel: [a"), ElementsAre(StartsWith("c.yaml:")));
}

TEST(ConfigTest, AFieldWithoutEffectIsRefused) {
  EXPECT_THAT(
      Faults("cluster: {launcher: {kind: threads, mpirun_path: x}, hosts: [{name: a}]}\n"
             "control: {listen: \"127.0.0.1:0\"}\n"),
      ElementsAre("c.yaml: 3 faults in the configuration",
                  HasSubstr("cluster.launcher.mpirun_path: has no effect"),
                  HasSubstr("cluster.hosts: has no effect where cluster.launcher.kind is threads"),
                  StartsWith("c.yaml:2:19: control.listen: has no effect")));
}

TEST(ConfigTest, EveryFieldIsApplied) {
  const Applied applied = Apply(
      "model: sub/m\nmodel_name: name\n"
      "cluster: {hosts: [{name: a, slots: 2}, {name: b}], launcher: {kind: mpirun, "
      "mpirun_path: /m, extra_args: [--mca, btl, self], pass_environment: [A]}}\n"
      "layout: {tp: 3, pp: 1, sp: 1, ep: 1, dp: 1}\n"
      "worker: {device: cuda, device_comm: staged, gpu_memory_fraction: 0.75, cpu_path: avx2, "
      "threads: 3, kv_cache_bytes: 2GiB, "
      "profile: {reduction_leaves: 16, sequence_stripes: 4, numerics: fast, "
      "weight_dtype: fp8_e4m3, kv_dtype: fp8_e4m3}}\n"
      "scheduler: {max_step_tokens: 100, max_running_sequences: 7, max_waiting_requests: 9, "
      "prefill_chunk_tokens: 50, max_context_length: 1000, prefix_cache: false}\n"
      "service: {listen: \"h:1\", max_request_bytes: 1MiB, drain_timeout_ms: 1500}\n"
      "control: {listen: \"h:2\", start_timeout_ms: 1m30s, step_timeout_ms: 500ms}\n");
  ASSERT_TRUE(applied.status.ok()) << applied.status.message();
  const ServiceOptions& o = applied.options;
  EXPECT_EQ(o.rank.model, "/etc/phalanx/sub/m");
  EXPECT_EQ(o.rank.layout, "tp=3,pp=1,sp=1,ep=1,dp=1");
  EXPECT_EQ(o.rank.device, "cuda");
  EXPECT_EQ(o.rank.device_comm, "staged");
  EXPECT_EQ(o.rank.gpu_memory_fraction, 0.75);
  EXPECT_EQ(o.rank.cpu_path, "avx2");
  EXPECT_EQ(o.rank.threads, 3);
  EXPECT_EQ(o.rank.kv_memory, "2147483648");
  EXPECT_EQ(o.rank.reduction_leaves, 16);
  EXPECT_EQ(o.rank.sequence_stripes, 4);
  EXPECT_EQ(o.rank.numerics, "fast");
  EXPECT_EQ(o.rank.weight_dtype, "fp8_e4m3");
  EXPECT_EQ(o.rank.kv_dtype, "fp8_e4m3");
  EXPECT_EQ(o.rank.max_step_tokens, 100);
  EXPECT_EQ(o.rank.max_context, 1000);
  EXPECT_EQ(o.workers, "mpirun");
  EXPECT_EQ(o.mpirun, "/m");
  EXPECT_EQ(o.hosts, "a:2,b:1");
  EXPECT_THAT(o.mpirun_args, ElementsAre("--mca", "btl", "self", "-x", "A"));
  EXPECT_EQ(o.control_listen, "h:2");
  EXPECT_EQ(o.start_timeout, 90);
  EXPECT_EQ(o.step_timeout, 0.5);
  EXPECT_EQ(o.max_sequences, 7);
  EXPECT_EQ(o.max_queue, 9);
  EXPECT_EQ(o.prefill_chunk, 50);
  EXPECT_FALSE(o.prefix_reuse);
  EXPECT_EQ(applied.serving.model_name, "name");
  EXPECT_EQ(applied.serving.listen, "h:1");
  EXPECT_EQ(applied.serving.max_request_bytes, 1 << 20);
  EXPECT_EQ(applied.serving.grace, 1.5);
}

TEST(ConfigTest, FastNumericsAreOfGpus) {
  EXPECT_THAT(Faults("worker:\n  device: cpu\n  profile: {numerics: fast}\n"),
              ElementsAre("c.yaml:3:23: worker.profile.numerics: fast is of GPUs alone; write "
                          "worker.device: cuda, or leave numerics exact"));
  EXPECT_THAT(Faults("worker: {profile: {numerics: quick}}"),
              ElementsAre(HasSubstr("worker.profile.numerics: expected exact or fast")));
  // The device may be a flag's.
  EXPECT_THAT(Faults("worker: {profile: {numerics: fast}}"), ElementsAre());
  EXPECT_THAT(Faults("worker: {device: cpu, profile: {numerics: exact}}"), ElementsAre());
}

TEST(ConfigTest, KeysAndValuesAreInTheWeightsTypeOrFp8) {
  EXPECT_THAT(Faults("worker: {profile: {kv_dtype: fp8}}"),
              ElementsAre(HasSubstr("worker.profile.kv_dtype: expected auto or fp8_e4m3")));
  EXPECT_THAT(Faults("worker: {device: cpu, profile: {kv_dtype: fp8_e4m3}}"), ElementsAre());
  EXPECT_THAT(Faults("worker: {profile: {weight_dtype: bf16}}"),
              ElementsAre(HasSubstr("worker.profile.weight_dtype: expected auto or fp8_e4m3")));
  EXPECT_THAT(Faults("worker: {device: cpu, profile: {weight_dtype: fp8_e4m3}}"), ElementsAre());
  EXPECT_EQ(Apply("model: m\nworker: {profile: {kv_dtype: auto}}\n").options.rank.kv_dtype, "auto");
}

TEST(ConfigTest, AFlagOverridesTheFileEvenWithTheDefaultsValue) {
  const Applied applied = Apply(
      "model: m\nlayout: {tp: 2}\nscheduler: {prefix_cache: false, max_step_tokens: 9}\n"
      "cluster: {hosts: [{name: a, slots: 2}]}\nservice: {listen: \"h:1\"}\n",
      {"--layout", "tp=1", "--prefix-reuse", "--hosts", "z:1", "--listen", "127.0.0.1:0", "--model",
       "other"});
  ASSERT_TRUE(applied.status.ok()) << applied.status.message();
  EXPECT_EQ(applied.options.rank.model, "other");
  EXPECT_EQ(applied.options.rank.layout, "tp=1");
  EXPECT_TRUE(applied.options.prefix_reuse);
  EXPECT_EQ(applied.options.hosts, "z:1");
  EXPECT_EQ(applied.serving.listen, "127.0.0.1:0");
  EXPECT_EQ(applied.options.rank.max_step_tokens, 9);
}

TEST(ConfigTest, NcclsSettingsAreForTheRanks) {
  const Applied applied = Apply("model: m\ncluster: {nccl: {debug: warn, cross_nic: 0}}\n");
  ASSERT_TRUE(applied.status.ok()) << applied.status.message();
  EXPECT_THAT(applied.options.rank_environment,
              ElementsAre(Pair("NCCL_CROSS_NIC", "0"), Pair("NCCL_DEBUG", "WARN")));
}

TEST(ConfigTest, AFractionOfMemoryIsAboveZeroAndAtMostOne) {
  EXPECT_THAT(Faults("worker: {gpu_memory_fraction: 0}"),
              ElementsAre(HasSubstr("worker.gpu_memory_fraction: expected a number above 0")));
  EXPECT_THAT(Faults("worker: {gpu_memory_fraction: 1.5}"),
              ElementsAre(HasSubstr("expected a number of at most 1, found \"1.5\"")));
  EXPECT_THAT(Faults("worker: {gpu_memory_fraction: 1}"), ElementsAre());
  EXPECT_THAT(Faults("worker: {device_comm: mpi}"),
              ElementsAre(HasSubstr("expected auto or nccl or staged, found \"mpi\"")));
}

TEST(ConfigTest, AGpuTypeStandsForTheFiguresOfAGpu) {
  EXPECT_THAT(Faults("cluster: {nodes: [{name: n, device: cuda, devices: 8, gpu_type: h200}]}"),
              ElementsAre());
  EXPECT_THAT(Faults("cluster:\n  nodes:\n    - { name: n, device: cuda, devices: 1, gpu_type: T4 "
                     "}\n    - { name: m, cores: 4, gpu_type: h200 }\n"),
              ElementsAre("c.yaml: 4 faults in the configuration",
                          HasSubstr("cluster.nodes[0]: network_us, network_gb_per_s are missing"),
                          HasSubstr("nodes[0].gpu_type: expected a100-80g, h100-sxm or h200, found "
                                    "\"T4\""),
                          HasSubstr("cluster.nodes[1]: network_us, network_gb_per_s are missing"),
                          HasSubstr("nodes[1].gpu_type: needs device: cuda")));
  EXPECT_THAT(Faults("cluster: {nodes: [{name: n, device: cuda, devices: 2}]}"),
              ElementsAre(HasSubstr("memory_bytes, read_gb_per_s, matrix_tflops, link_us, "
                                    "link_gb_per_s are missing (or gpu_type: a100-80g, h100-sxm "
                                    "or h200)")));
}

TEST(ConfigTest, HostsNeedASlotForEveryRank) {
  const std::string text = "model: m\ncluster:\n  hosts:\n    - name: a\n      slots: 2\n";
  EXPECT_TRUE(Apply(text, {"--layout", "tp=2"}).status.ok());
  const Applied applied = Apply(text, {"--layout", "tp=4"});
  EXPECT_EQ(applied.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(applied.status.message()),
              StartsWith("/etc/phalanx/c.yaml:4:5: cluster.hosts: 2 slots for the 4 ranks"));
  EXPECT_TRUE(Apply(text, {"--layout", "dp=2"}).status.ok());
  EXPECT_FALSE(Apply(text, {"--layout", "dp=2,tp=2"}).status.ok());
}

TEST(ConfigTest, EmptyFilesAndSectionsLeaveTheDefaults) {
  for (const char* text : {"", "# nothing\n", "scheduler:\n  # max_step_tokens: 9\n"}) {
    const Applied applied = Apply(text);
    EXPECT_TRUE(applied.status.ok()) << applied.status.message();
    EXPECT_EQ(applied.options.rank.max_step_tokens, ServiceOptions().rank.max_step_tokens);
    EXPECT_EQ(applied.options.workers, "auto");
  }
}

TEST(ConfigTest, HostsAreNotForThreads) {
  for (const char* flag : {"--hosts", "--hostfile"}) {
    CLI::App app;
    ServiceOptions options;
    AddServiceOptions(app, options);
    std::vector<std::string> arguments = {"m", "--model", "a", flag};
    app.parse(arguments);
    ASSERT_TRUE(ApplyClusterFile(app, options, nullptr).ok());
    EXPECT_TRUE(options.hosts_are_named);
    options.workers = "threads";
    const absl::Status status = ApplyClusterFile(app, options, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), StartsWith(flag));
  }
}

TEST(ConfigTest, FlagsOfGpusAreHeldAgainstTheDeviceOfTheFile) {
  const std::string path = ::testing::TempDir() + "/device.yaml";
  std::ofstream(path) << "model: m\nworker: {device: cuda}\n";
  for (const bool on_cpu : {false, true}) {
    CLI::App app;
    ServiceOptions options;
    AddServiceOptions(app, options);
    std::vector<std::string> arguments = {path, "--cluster", "staged", "--device-comm"};
    if (on_cpu) arguments.insert(arguments.begin(), {"cpu", "--device"});
    app.parse(arguments);
    const absl::Status status = ApplyClusterFile(app, options, nullptr);
    EXPECT_EQ(status.ok(), !on_cpu) << status;
    EXPECT_EQ(std::string(status.message()).find("--device-comm is for") != std::string::npos,
              on_cpu);
  }
  std::filesystem::remove(path);
}

TEST(ConfigTest, AMissingFileIsNotFoundAndAMissingModelIsNamed) {
  EXPECT_EQ(ReadConfig("/no/such/file.yaml").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadConfig("/").status().code(), absl::StatusCode::kInvalidArgument);
  CLI::App app;
  ServiceOptions options;
  AddServiceOptions(app, options);
  const absl::Status status = ApplyClusterFile(app, options, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--model is missing"));
}

}  // namespace
}  // namespace phalanx::launcher
