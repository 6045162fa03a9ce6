#include "launcher/slurm.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Environment Allocation(const std::string& nodes, const std::string& tasks) {
  Environment out;
  out.in_slurm_allocation = true;
  out.slurm_nodes = nodes;
  out.slurm_tasks_per_node = tasks;
  return out;
}

TEST(ParseNodeList, ExpandsRangesAndKeepsTheirWidth) {
  EXPECT_THAT(*ParseNodeList("n1"), ElementsAre("n1"));
  EXPECT_THAT(*ParseNodeList("n[1-3,07,9-10],login"),
              ElementsAre("n1", "n2", "n3", "n07", "n9", "n10", "login"));
  EXPECT_THAT(*ParseNodeList("gpu[098-101]-ib"),
              ElementsAre("gpu098-ib", "gpu099-ib", "gpu100-ib", "gpu101-ib"));
  EXPECT_THAT(*ParseNodeList("r[1-2]n[1,3]"), ElementsAre("r1n1", "r1n3", "r2n1", "r2n3"));
}

TEST(ParseNodeList, ShowsTextThatIsNone) {
  for (const char* bad : {"", "n[1-3", "n[3-1]", "n[a]", "n1,,n2", "n1]", "n[1-2-3]",
                          "n[0-99999999999]", "n[]", "a[1-60000]b[1-60000]"}) {
    const auto nodes = ParseNodeList(bad);
    EXPECT_EQ(nodes.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(nodes.status().message()), HasSubstr(bad));
  }
}

TEST(ParseTaskCounts, RepeatsWhatIsRepeated) {
  EXPECT_THAT(*ParseTaskCounts("4"), ElementsAre(4));
  EXPECT_THAT(*ParseTaskCounts("2(x3),1"), ElementsAre(2, 2, 2, 1));
  for (const char* bad : {"", "0", "x", "2(x", "2(x)", "2(x0)", "2x3", "2(x3", "1,"}) {
    EXPECT_EQ(ParseTaskCounts(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(AllocatedHosts, GivesEachNodeItsTasks) {
  EXPECT_THAT(*AllocatedHosts(Allocation("n[1-2],m1", "4(x2),1")),
              ElementsAre(HostSlots{"n1", 4}, HostSlots{"n2", 4}, HostSlots{"m1", 1}));
  EXPECT_THAT(std::string(AllocatedHosts(Allocation("n[1-3]", "4(x2)")).status().message()),
              HasSubstr("3 nodes (n[1-3]), but SLURM_TASKS_PER_NODE has 2"));
}

TEST(SettleAllocation, NamesTheAllocationsHosts) {
  ServiceOptions options;
  options.srun = "/bin/sh";  // any program
  ASSERT_TRUE(SettleAllocation(Allocation("n[1-2]", "2(x2)"), options).ok());
  EXPECT_EQ(options.hosts, "n1:2,n2:2");
  EXPECT_EQ(options.auto_workers, "srun");
}

TEST(SettleAllocation, TakesMpirunWhereThereIsNoSrun) {
  ServiceOptions options;
  options.srun = "/no/such/srun";
  ASSERT_TRUE(SettleAllocation(Allocation("n[1-2]", "2(x2)"), options).ok());
  EXPECT_EQ(options.hosts, "n1:2,n2:2");
  EXPECT_EQ(options.auto_workers, "mpirun");
}

TEST(SettleAllocation, LeavesNamedHostsAndOtherWorkersAlone) {
  for (const char* workers : {"threads", "external"}) {
    ServiceOptions options;
    options.workers = workers;
    ASSERT_TRUE(SettleAllocation(Allocation("n[1-2]", "2(x2)"), options).ok());
    EXPECT_EQ(options.hosts, "");
  }
  ServiceOptions options;
  options.hosts = "n2:1";
  ASSERT_TRUE(SettleAllocation(Allocation("n[1-2]", "2(x2)"), options).ok());
  EXPECT_EQ(options.hosts, "n2:1");
}

TEST(SettleAllocation, OneNodeIsNamedOnlyWhereItIsAnother) {
  ServiceOptions options;
  Environment environment = Allocation("n1", "4");
  environment.slurm_node_name = "n1";
  ASSERT_TRUE(SettleAllocation(environment, options).ok());
  EXPECT_EQ(options.hosts, "");
  // salloc's shell runs on the login node.
  environment.slurm_node_name = "";
  ASSERT_TRUE(SettleAllocation(environment, options).ok());
  EXPECT_EQ(options.hosts, "n1:4");
}

TEST(SettleHosts, TakesTheAllocationsWhateverStartsTheRanks) {
  ServiceOptions options;
  options.workers = "external";
  ASSERT_TRUE(SettleHosts(Allocation("n[1-2]", "2(x2)"), options).ok());
  EXPECT_EQ(options.hosts, "n1:2,n2:2");
  EXPECT_EQ(options.auto_workers, "mpirun");
  ServiceOptions outside;
  ASSERT_TRUE(SettleHosts(Environment(), outside).ok());
  EXPECT_EQ(outside.hosts, "");
  EXPECT_FALSE(SettleHosts(Allocation("n[1-2]", "2"), outside).ok());
}

TEST(SettleAllocation, RefusesSrunWithoutAnAllocationAndCoresWithoutTheirNumber) {
  ServiceOptions options;
  options.workers = "srun";
  EXPECT_THAT(std::string(SettleAllocation(Environment(), options).message()),
              HasSubstr("SLURM_JOB_ID is not set"));
  ServiceOptions bound;
  bound.binding = "core";
  EXPECT_THAT(std::string(SettleAllocation(Environment(), bound).message()),
              HasSubstr("--threads"));
}

}  // namespace
}  // namespace phalanx::launcher
