#include "parallel/cost_model.h"

#include <memory>

#include "gtest/gtest.h"
#include "tests/parallel/specs.h"

namespace phalanx::parallel {
namespace {

// Everything that a cost model borrows.
struct Scene {
  Scene(ModelSpec model, ClusterSpec machines, const Layout& layout)
      : spec(std::move(model)),
        cluster(std::move(machines)),
        shards(spec.shape, layout, 8, 8),
        placement(*Placement::Make(cluster, shards.layout(), false)),
        cost(spec, traits, cluster, shards, placement) {}

  ModelSpec spec;
  DeviceTraits traits;
  ClusterSpec cluster;
  DecoderShards shards;
  Placement placement;
  CostModel cost;
};

StepShape Decode(double rows, double context = 1024) { return {rows, rows, context, rows}; }
StepShape Prefill(double rows) { return {rows, 1, rows / 2, 1}; }

ClusterSpec CpuMachine(int cores) {
  NodeSpec node;
  node.name = "cpu";
  node.shared = true;
  node.cores = cores;
  node.devices = 16;
  node.memory_bytes = int64_t{64} << 30;
  node.read_bytes_per_s = 40e9;
  node.matrix_flops_per_s = 1e12;
  node.op_s = 1e-6;
  node.link = {2e-6, 5e9};
  node.network = {50e-6, 1e9};
  ClusterSpec cluster;
  cluster.nodes = {node};
  return cluster;
}

TEST(CurveTest, InterpolatesAndGoesOnWithItsLastSlope) {
  const Curve curve({{8, 10}, {2, 4}, {4, 6}});
  EXPECT_EQ(curve.At(1), 4);
  EXPECT_EQ(curve.At(3), 5);
  EXPECT_EQ(curve.At(6), 8);
  EXPECT_EQ(curve.At(12), 14);
  EXPECT_EQ(Curve(3.0).At(1e9), 3);
  EXPECT_EQ(Curve().At(5), 0);
  // Never falls to the right of what was measured.
  EXPECT_EQ(Curve({{1, 5}, {2, 4}}).At(10), 4);
}

TEST(CostModelTest, OneRowTakesAsLongAsReadingTheWeights) {
  const Scene scene(Llama8b(), H100Cluster(1), {});
  const StepCost step = scene.cost.Step(Decode(1, 1), 0, 1, 1);
  const double weights = static_cast<double>(Llama8b().Parameters()) -
                         static_cast<double>(128256 * 4096);  // the embedding's rows are looked up
  EXPECT_NEAR(step.Sum().matmul, weights * 2 / 2.8e12, 0.1 * weights * 2 / 2.8e12);
  EXPECT_EQ(step.Sum().collectives, 0);
}

TEST(CostModelTest, ManyRowsTakeAsLongAsTheirArithmetic) {
  const Scene scene(Llama8b(), H100Cluster(1), {});
  const double rows = 4096;
  const double matmul = scene.cost.Step(Prefill(rows), 0, 1, 1).Sum().matmul;
  const double weights = static_cast<double>(Llama8b().Parameters()) - 2.0 * 128256 * 4096;
  EXPECT_NEAR(matmul, 2 * weights * rows / 600e12, 0.05 * matmul);
}

TEST(CostModelTest, RisesWithRowsAndContext) {
  const Scene scene(Llama8b(), H100Cluster(1), {});
  double last = 0;
  for (const double rows : {1, 8, 64, 512, 4096}) {
    const double now = scene.cost.Step(Decode(rows), 0, 1, 1).Latency();
    EXPECT_GT(now, last) << rows;
    last = now;
  }
  EXPECT_GT(scene.cost.Step(Decode(8, 65536), 0, 1, 1).Sum().attention,
            10 * scene.cost.Step(Decode(8, 1024), 0, 1, 1).Sum().attention);
}

TEST(CostModelTest, WindowsBoundAttention) {
  ModelSpec spec = Llama8b();
  spec.windows.assign(32, 1024);
  const Scene scene(spec, H100Cluster(1), {});
  EXPECT_EQ(scene.cost.Step(Decode(8, 65536), 0, 1, 1).Sum().attention,
            scene.cost.Step(Decode(8, 1024), 0, 1, 1).Sum().attention);
}

TEST(CostModelTest, TensorRanksDivideMatmulsAndPayForSums) {
  ClusterSpec cluster = H100Cluster(1);
  cluster.nodes[0].op_s = 0;
  Layout layout;
  const Scene one(Llama8b(), cluster, layout);
  layout.tp = 4;
  const Scene four(Llama8b(), cluster, layout);
  const CostParts a = one.cost.Step(Decode(8), 0, 1, 1).Sum();
  const CostParts b = four.cost.Step(Decode(8), 0, 1, 1).Sum();
  EXPECT_NEAR(b.matmul, a.matmul / 4, 0.1 * b.matmul);
  EXPECT_GT(b.collectives, 2 * 32 * 10e-6);
}

TEST(CostModelTest, AGroupAcrossNodesPaysForTheNetwork) {
  Layout layout;
  layout.tp = 4;
  layout.sp = 2;
  const Scene inside(Llama8b(), H100Cluster(1), layout);
  const Scene across(Llama8b(), H100Cluster(2, 4), layout);
  EXPECT_GT(across.cost.Step(Decode(8), 0, 1, 1).Sum().collectives,
            inside.cost.Step(Decode(8), 0, 1, 1).Sum().collectives);
}

TEST(CostModelTest, StagesDivideAPlanAndTheSlowestIsTheSlot) {
  Layout layout;
  const Scene one(Llama8b(), H100Cluster(1), layout);
  layout.pp = 4;
  const Scene four(Llama8b(), H100Cluster(1), layout);
  const StepCost a = one.cost.Step(Decode(8), 0, 1, 1);
  const StepCost b = four.cost.Step(Decode(8), 0, 4, 1);
  ASSERT_EQ(b.stages.size(), 4u);
  // The hand-over between stages is all that a plan alone has more of.
  EXPECT_NEAR(b.Latency() - b.Sum().collectives, a.Latency(), 1e-9);
  EXPECT_GE(b.Slot() * 4, b.Latency() - b.handover);
  EXPECT_LT(b.Slot(), a.Latency() / 2);
}

TEST(CostModelTest, ExpertsThatNoRowChoseAreNotRead) {
  const Scene scene(Mixtral8x22b(), H100Cluster(4), {.pp = 4, .tp = 8, .ep = 1});
  const double one = scene.cost.Step(Decode(1), 0, 1, 1).Sum().matmul;
  const double many = scene.cost.Step(Decode(31), 0, 1, 1).Sum().matmul;
  // One row reads 2 of 8 experts, 31 rows nearly all of them.
  EXPECT_GT(many, 2.5 * one);
  EXPECT_LT(many, 4 * one);
}

TEST(CostModelTest, RanksThatShareCoresShareTheirRates) {
  const ClusterSpec cluster = CpuMachine(4);
  const NodeSpec& node = cluster.nodes[0];
  const ComputeRates two = node.Rates(2, 2);
  const ComputeRates four = node.Rates(4, 1);
  const ComputeRates eight = node.Rates(8, 1);
  EXPECT_DOUBLE_EQ(two.matrix_flops_per_s, 2 * four.matrix_flops_per_s);
  EXPECT_DOUBLE_EQ(four.matrix_flops_per_s, 2 * eight.matrix_flops_per_s);
  EXPECT_DOUBLE_EQ(four.read_bytes_per_s, 10e9);
  EXPECT_DOUBLE_EQ(eight.read_bytes_per_s, 5e9);
  EXPECT_EQ(cluster.ThreadsOn(node, 2), 2);
  EXPECT_EQ(cluster.ThreadsOn(node, 8), 1);
}

TEST(CostModelTest, MeasuredRatesTakeThePlaceOfStatedOnes) {
  ClusterSpec cluster = CpuMachine(4);
  ComputeRates rates;
  rates.ranks = 2;
  rates.threads = 2;
  rates.read_bytes_per_s = 7e9;
  rates.matrix_flops_per_s = 3e11;
  rates.matmul_weight = Curve(5e-10);
  cluster.nodes[0].measured = {rates};
  EXPECT_EQ(cluster.nodes[0].Rates(2, 2).read_bytes_per_s, 7e9);
  // Four ranks with a thread each: half as many cores for each of them.
  EXPECT_EQ(cluster.nodes[0].Rates(4, 1).read_bytes_per_s, 3.5e9);
  EXPECT_EQ(cluster.nodes[0].Rates(4, 1).matmul_weight.At(1), 1e-9);
}

TEST(CostModelTest, SmallWeightsHaveRatesOfTheirOwn) {
  ModelSpec spec = Qwen235b();
  spec.shape.hidden_size = 1024;  // experts of 2 x 1536 x 1024 and 1024 x 1536: 6 and 3 MiB
  ClusterSpec cluster = CpuMachine(4);
  ComputeRates rates;
  rates.read_bytes_per_s = 1e10;
  rates.matmul_weight = Curve(1e-10);
  rates.matmul_small_weight = Curve(2e-10);
  cluster.nodes[0].measured = {rates};
  const double large = Scene(spec, cluster, {}).cost.Step(Decode(1), 0, 1, 1).Sum().matmul;
  spec.shape.expert_intermediate_size = 500;  // 2 and 1 MB
  spec.shape.experts_per_token = 8;
  const double small = Scene(spec, cluster, {}).cost.Step(Decode(1), 0, 1, 1).Sum().matmul;
  EXPECT_GT(small, 0.55 * large);  // a third of the weights, twice the time of most
}

TEST(CostModelTest, StagesThatTakeTurnsOnCoresShareTheSlowestOnesTime) {
  ModelSpec spec = Llama8b();
  spec.shape.vocab_size = 4'000'000;  // the head makes the last stage slow
  const Scene roomy(spec, CpuMachine(4), {.pp = 2});
  const Scene tight(spec, CpuMachine(1), {.pp = 2});
  const StepCost stages = roomy.cost.Step(Decode(4), 0, 2, 1);
  EXPECT_DOUBLE_EQ(roomy.cost.Slot(Decode(4), 0, 2, 1), stages.Slot());
  const StepCost turns = tight.cost.Step(Decode(4), 0, 2, 1);
  EXPECT_LT(tight.cost.Slot(Decode(4), 0, 2, 1), turns.Slot());
  EXPECT_GE(tight.cost.Slot(Decode(4), 0, 2, 1), turns.Sum().total() / 2 * 0.999);
}

TEST(CostModelTest, MeasuredCollectivesTakeThePlaceOfLinks) {
  ClusterSpec cluster = CpuMachine(4);
  GroupPlace place;
  place.members = place.per_node = place.running = 2;
  place.node = &cluster.nodes[0];
  const double stated = CollectiveSeconds(cluster, place, Collective::kAllGather, 1 << 20, 0);
  EXPECT_NEAR(stated, 2e-6 + (1 << 20) / 5e9, 1e-9);
  cluster.collectives.push_back(
      {Collective::kAllGather, 2, 2, false, Curve({{0, 1e-5}, {1 << 20, 2e-5}})});
  EXPECT_DOUBLE_EQ(CollectiveSeconds(cluster, place, Collective::kAllGather, 1 << 20, 0), 2e-5);
  EXPECT_DOUBLE_EQ(CollectiveSeconds(cluster, place, Collective::kAllGather, 1 << 19, 0), 1.5e-5);
  // Of another kind, or across nodes, nothing was measured.
  EXPECT_NE(CollectiveSeconds(cluster, place, Collective::kAllToAll, 1 << 20, 0), 2e-5);
  place.members = 1;
  EXPECT_EQ(CollectiveSeconds(cluster, place, Collective::kAllGather, 1 << 20, 0), 0);
}

TEST(PlacementTest, KeepsTensorGroupsOnOneNode) {
  const ClusterSpec cluster = H100Cluster(2);
  const auto placement = Placement::Make(cluster, {.pp = 2, .tp = 6}, false);
  ASSERT_TRUE(placement.has_value());
  EXPECT_EQ(placement->node[5], 0);
  EXPECT_EQ(placement->node[6], 1);
  EXPECT_FALSE(Placement::Make(cluster, {.pp = 3, .tp = 5}, false).has_value());
  EXPECT_TRUE(Placement::Make(cluster, {.pp = 3, .tp = 5}, true).has_value());
}

}  // namespace
}  // namespace phalanx::parallel
