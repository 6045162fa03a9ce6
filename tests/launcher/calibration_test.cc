#include "launcher/calibration.h"

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/measure.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kFile[] = R"(node: h100
cores: 64
weights: BF16
handover_us: 31.5
rates:
  - ranks: 2
    threads: 4
    read_gb_per_s: 12.5
    matrix_gflops: 640
    matmul:
      - { rows: 1, ns: 0.25 }
      - { rows: 64, ns: 1 }
    op_ns: 900
    attention:
      - { rows: 1, ns: 0.5 }
    norm_ns: 0.75
collectives:
  - op: reduce_scatter
    members: 2
    running: 4
    across_nodes: true
    times:
      - { size: 256, us: 3.5 }
      - { size: 65536, us: 20 }
)";

std::vector<std::string> Faults(const std::string& text) {
  const auto parsed = ParseCalibration(text, "c.yaml");
  if (parsed.ok()) return {};
  return absl::StrSplit(std::string(parsed.status().message()), '\n');
}

parallel::ClusterSpec ClusterOf(const std::vector<std::string>& names) {
  parallel::ClusterSpec cluster;
  for (const std::string& name : names) {
    parallel::NodeSpec node;
    node.name = name;
    cluster.nodes.push_back(node);
  }
  return cluster;
}

TEST(CalibrationTest, WhatIsWrittenIsWhatIsRead) {
  const auto parsed = ParseCalibration(kFile, "c.yaml");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto again = ParseCalibration(ToYaml(*parsed), "again.yaml");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), parsed->SerializeAsString());
}

TEST(CalibrationTest, ReachesTheNodesThatItNames) {
  const auto parsed = ParseCalibration(kFile, "c.yaml");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  parallel::ClusterSpec cluster = ClusterOf({"h100", "a100"});
  ASSERT_TRUE(Apply(*parsed, cluster).ok());
  ASSERT_EQ(cluster.nodes[0].measured.size(), 1u);
  EXPECT_TRUE(cluster.nodes[1].measured.empty());
  const parallel::ComputeRates& rates = cluster.nodes[0].measured[0];
  EXPECT_EQ(rates.ranks, 2);
  EXPECT_DOUBLE_EQ(rates.read_bytes_per_s, 12.5e9);
  EXPECT_DOUBLE_EQ(rates.matmul_weight.At(64), 1e-9);
  EXPECT_DOUBLE_EQ(rates.op, 900e-9);
  ASSERT_EQ(cluster.collectives.size(), 1u);
  EXPECT_EQ(cluster.collectives[0].op, parallel::Collective::kReduceScatter);
  EXPECT_TRUE(cluster.collectives[0].across_nodes);
  EXPECT_DOUBLE_EQ(cluster.collectives[0].seconds.At(65536), 20e-6);
  EXPECT_DOUBLE_EQ(cluster.handover_s, 31.5e-6);

  parallel::ClusterSpec other = ClusterOf({"v100"});
  EXPECT_THAT(std::string(Apply(*parsed, other).message()), HasSubstr("node h100"));
}

TEST(CalibrationTest, AllFaultsAreReportedAtOnceWithTheirPlace) {
  EXPECT_THAT(
      Faults("rates:\n  - ranks: 0\n    threads: 1\n    matmul:\n      - { rows: 2, ns: 1 }\n"
             "      - { rows: 1, ns: fast }\n    flops: 3\n"),
      ElementsAre(HasSubstr("5 faults"),
                  HasSubstr("c.yaml:2:5: rates[0]: read_gb_per_s is missing"),
                  HasSubstr("c.yaml:2:12: rates[0].ranks: \"0\" is out of range"),
                  HasSubstr("c.yaml:6:9: rates[0].matmul[1]: rows must rise"),
                  HasSubstr("c.yaml:6:24: rates[0].matmul[1].ns: expected a number"),
                  HasSubstr("c.yaml:7:5: rates[0]: unknown key \"flops\"")));
  EXPECT_THAT(Faults("collectives:\n  - op: all_of_it\n    members: 2\n    running: 2\n"
                     "    times: [ { size: 1, us: -1 } ]\n"),
              ElementsAre(HasSubstr("2 faults"), HasSubstr("expected all_reduce or "),
                          HasSubstr("expected a number above 0")));
}

TEST(CalibrationTest, AFileThatIsNotThereIsNamed) {
  EXPECT_THAT(std::string(ReadCalibration("/nowhere/c.yaml").status().message()),
              HasSubstr("--calibration /nowhere/c.yaml: there is no such file"));
}

// Not the figures, which are the machine's: that every one of them is there.
TEST(CalibrationTest, MeasuringFillsEveryRateAndCollective) {
  v1::Calibration out;
  const auto statuses = testing::RunRanks(2, [&](comm::Communicator& world) -> absl::Status {
    const auto rates = MeasureRates(world, kernels::CpuOptions{},
                                    {.rounds = 3, .few_rows = true, .segment_s = 1e-4});
    if (!rates.ok()) return rates.status();
    const auto collectives = MeasureCollectives(world, /*nodes=*/1, /*quick=*/true);
    if (!collectives.ok()) return collectives.status();
    if (world.rank() != 0) return absl::OkStatus();
    *out.add_rates() = *rates;
    for (const auto& m : *collectives) *out.add_collectives() = m;
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(out.rates_size(), 1);
  EXPECT_EQ(out.rates(0).ranks(), 2);
  EXPECT_GT(out.rates(0).read_gb_per_s(), 0);
  EXPECT_GT(out.rates(0).matrix_gflops(), 0);
  EXPECT_EQ(out.rates(0).matmul_size(), 3);
  EXPECT_EQ(out.rates(0).matmul_small_size(), 3);
  EXPECT_EQ(out.rates(0).attention_size(), 3);
  EXPECT_EQ(out.collectives_size(), 6);
  const auto again = ParseCalibration(ToYaml(out), "c.yaml");
  EXPECT_TRUE(again.ok()) << again.status();
}

}  // namespace
}  // namespace phalanx::launcher
