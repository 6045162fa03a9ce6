#include "parallel/planner.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/specs.h"

namespace phalanx::parallel {
namespace {

using ::testing::HasSubstr;

PlanOptions For(ModelSpec model, ClusterSpec cluster, Objective objective = Objective::kLatency) {
  PlanOptions options;
  options.model = std::move(model);
  options.cluster = std::move(cluster);
  options.objective = objective;
  if (objective == Objective::kThroughput) options.workload.concurrency = 256;
  return options;
}

TEST(PlannerTest, SplitsTheMatricesForLatencyAndReplicatesForThroughput) {
  const auto latency = PlanLayouts(For(Llama8b(), H100Cluster(1)));
  ASSERT_TRUE(latency.ok()) << latency.status();
  EXPECT_EQ(latency->candidates[0].layout.ToString(), "tp=8");
  const auto throughput = PlanLayouts(For(Llama8b(), H100Cluster(1), Objective::kThroughput));
  ASSERT_TRUE(throughput.ok()) << throughput.status();
  EXPECT_EQ(throughput->candidates[0].layout.ToString(), "dp=8");
}

TEST(PlannerTest, PutsAModelTooLargeForANodeIntoStages) {
  const auto plan = PlanLayouts(For(Llama405b(), H100Cluster(4)));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Layout& layout = plan->candidates[0].layout;
  EXPECT_EQ(layout.tp, 8);
  EXPECT_GE(layout.pp * layout.sp, 2);
  EXPECT_FALSE(plan->candidates[0].tp_across_nodes);
}

TEST(PlannerTest, EveryCandidateFitsAndIsOrdered) {
  for (const Objective objective : {Objective::kLatency, Objective::kThroughput}) {
    const auto plan = PlanLayouts(For(Qwen235b(), H100Cluster(4), objective));
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (size_t i = 0; i < plan->candidates.size(); ++i) {
      const Candidate& c = plan->candidates[i];
      EXPECT_GE(c.free_bytes(), 0) << c.layout.ToString();
      EXPECT_LE(c.layout.world_size(), 32);
      EXPECT_GT(c.tokens_per_s, 0);
      EXPECT_LE(c.sequences, objective == Objective::kLatency ? 16 : 256);
      if (i < 2) continue;  // the first is the smallest of those that are equal
      const Candidate& before = plan->candidates[i - 1];
      if (objective == Objective::kLatency) {
        EXPECT_LE(before.request_s, c.request_s);
      } else {
        EXPECT_GE(before.tokens_per_s, c.tokens_per_s);
      }
    }
  }
}

TEST(PlannerTest, TriesSizesThatAreNoPowersOfTwo) {
  const auto plan = PlanLayouts(For(Llama8b(), H100Cluster(1)));
  ASSERT_TRUE(plan.ok());
  bool three = false;
  bool six = false;
  for (const Candidate& c : plan->candidates) {
    three = three || c.layout.tp == 3;
    six = six || c.layout.pp == 6;
  }
  EXPECT_TRUE(three);
  EXPECT_TRUE(six);
}

TEST(PlannerTest, RefusesWhatFitsNowhereAndSaysByHowMuch) {
  const auto plan = PlanLayouts(For(Llama405b(), H100Cluster(1)));
  ASSERT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(plan.status().message());
  EXPECT_THAT(message, HasSubstr("Llama-3.1-405B does not fit this cluster of 8 devices"));
  EXPECT_THAT(message, HasSubstr("may hold 72.0 GiB"));
  EXPECT_THAT(message, HasSubstr("too much on that rank"));
}

TEST(PlannerTest, TensorGroupsCrossNodesOnlyWhereNothingElseFits) {
  // Two devices a node, and a model whose one layer is too large for two of them.
  ModelSpec spec = Llama8b();
  spec.shape.num_layers = 1;
  spec.shape.vocab_size = 1024;
  spec.shape.intermediate_size = int64_t{1} << 24;
  PlanOptions options = For(spec, H100Cluster(4, 2));
  const auto plan = PlanLayouts(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->candidates[0].tp_across_nodes);
  EXPECT_GT(plan->candidates[0].layout.tp, 2);
  EXPECT_THAT(Reason(options, *plan), HasSubstr("across nodes"));
}

TEST(PlannerTest, ATensorGroupMayLieOnTwoNodesThatAreSmallerThanTheOthers) {
  ClusterSpec mixed = H100Cluster(2);
  mixed.nodes.push_back(H100Node("small", 4));
  mixed.nodes.push_back(H100Node("small", 4));
  PlanOptions options = For(Llama8b(), mixed);
  options.pp = 3;
  options.tp = 8;
  const auto plan = PlanLayouts(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->candidates[0].layout.ToString(), "pp=3,tp=8");
  EXPECT_TRUE(plan->candidates[0].tp_across_nodes);
  // It is the last resort: two groups have a node each.
  options.pp = 2;
  const auto whole = PlanLayouts(options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_FALSE(whole->candidates[0].tp_across_nodes);
}

TEST(PlannerTest, SettledAxesAreKept) {
  PlanOptions options = For(Llama8b(), H100Cluster(1));
  options.tp = 2;
  options.pp = 3;
  const auto plan = PlanLayouts(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const Candidate& c : plan->candidates) {
    EXPECT_EQ(c.layout.tp, 2);
    EXPECT_EQ(c.layout.pp, 3);
  }
  options.tp = 9;
  EXPECT_THAT(std::string(PlanLayouts(options).status().message()),
              HasSubstr("--reduction-leaves 9"));
}

TEST(PlannerTest, LessKvMemoryMeansFewerSequencesAndLongerRequests) {
  PlanOptions options = For(Llama8b(), H100Cluster(1, 1));
  options.workload = {32000, 512, 64};
  const auto roomy = PlanLayouts(options);
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_LT(roomy->candidates[0].sequences, 64);
  options.cluster.nodes[0].memory_bytes = int64_t{40} << 30;
  const auto tight = PlanLayouts(options);
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_LT(tight->candidates[0].sequences, roomy->candidates[0].sequences);
  EXPECT_GT(tight->candidates[0].request_s, roomy->candidates[0].request_s);
}

TEST(PlannerTest, AMixIsAsFastAsItsSlowestMember) {
  ClusterSpec mixed = H100Cluster(1);
  mixed.nodes.push_back(H100Node("old"));
  mixed.nodes[1].read_bytes_per_s /= 3;
  PlanOptions options = For(Llama8b(), mixed);
  options.pp = 2;
  options.tp = 8;
  const auto slow = PlanLayouts(options);
  ASSERT_TRUE(slow.ok()) << slow.status();
  options.cluster = H100Cluster(2);
  const auto even = PlanLayouts(options);
  ASSERT_TRUE(even.ok());
  EXPECT_GT(slow->candidates[0].tpot_s, 1.3 * even->candidates[0].tpot_s);
  // Left to itself it keeps to the fast node.
  const auto open = PlanLayouts(For(Llama8b(), mixed));
  ASSERT_TRUE(open.ok());
  EXPECT_LE(open->candidates[0].layout.world_size(), 8);
}

TEST(PlannerTest, ExpertsMayBeSettledToo) {
  PlanOptions options = For(Mixtral8x22b(), H100Cluster(1));
  options.ep = 2;
  const auto plan = PlanLayouts(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const Candidate& c : plan->candidates) EXPECT_EQ(c.layout.ep, 2);
}

TEST(PlannerTest, BadWorkloadsAreRefused) {
  PlanOptions options = For(Llama8b(), H100Cluster(1));
  options.workload.prompt_tokens = 0;
  EXPECT_EQ(PlanLayouts(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.workload = {200000, 1, 1};
  const auto plan = PlanLayouts(options);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("more than the context"));
}

TEST(PlannerTest, ARunnerUpIsToldWhatItLosesBy) {
  const PlanOptions options = For(Llama8b(), H100Cluster(1));
  const auto plan = PlanLayouts(options);
  ASSERT_TRUE(plan.ok());
  const std::string text =
      Compare(plan->candidates[0], plan->candidates.back(), Objective::kLatency);
  EXPECT_THAT(text, HasSubstr("time per request"));
  EXPECT_THAT(text, HasSubstr("matmuls"));
  EXPECT_THAT(Reason(options, *plan), HasSubstr("least time per request"));
}

}  // namespace
}  // namespace phalanx::parallel
