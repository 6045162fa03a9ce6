#include "launcher/rank_launcher.h"

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kGuard = {"/bin/phalanx", "guard", "--leash", "a:1"};

RankLaunch Launch(int ranks, std::vector<HostSlots> hosts) {
  RankLaunch out;
  out.num_ranks = ranks;
  out.hosts = std::move(hosts);
  out.command = {"/bin/phalanx", "worker"};
  out.environment = {{"PHALANX_CONTROL_TOKEN", "secret"}};
  return out;
}

std::string Mpirun(const ServiceOptions& options, const RankLaunch& launch) {
  return absl::StrJoin(MpirunArguments(options, launch, kGuard), " ");
}
std::string Srun(const ServiceOptions& options, const RankLaunch& launch) {
  return absl::StrJoin(SrunArguments(options, launch, kGuard), " ");
}

TEST(MpirunArguments, NamesHostsAndHoldsTheirOrtedsByTheLeash) {
  const std::string line = Mpirun({}, Launch(3, {{"a", 2}, {"b", 1}}));
  EXPECT_THAT(line, HasSubstr("mpirun -np 3 "));
  EXPECT_THAT(line, HasSubstr(" --host a:2,b:1 "));
  EXPECT_THAT(line, HasSubstr("orte_launch_agent /bin/phalanx guard --leash a:1 orted "));
  EXPECT_THAT(line, HasSubstr(" --bind-to none "));
  EXPECT_THAT(line, Not(HasSubstr("--oversubscribe")));
}

TEST(MpirunArguments, OnThisMachineThereAreNoOrteds) {
  const std::string line = Mpirun({}, Launch(3, {}));
  EXPECT_THAT(line, HasSubstr(" --oversubscribe --mca orte_default_hostfile none "));
  EXPECT_THAT(line, Not(HasSubstr("--host")));
  EXPECT_THAT(line, Not(HasSubstr("orte_launch_agent")));
}

TEST(MpirunArguments, HandsOnTheTokenByNameAlone) {
  const std::string line = Mpirun({}, Launch(1, {}));
  EXPECT_THAT(line, HasSubstr(" -x PHALANX_CONTROL_TOKEN "));
  EXPECT_THAT(line, Not(HasSubstr("secret")));
}

TEST(MpirunArguments, HandsOnWhatNcclIsTold) {
  RankLaunch launch = Launch(1, {});
  launch.environment["NCCL_CROSS_NIC"] = "1";
  EXPECT_THAT(Mpirun({}, launch), HasSubstr(" -x NCCL_CROSS_NIC -x PHALANX_CONTROL_TOKEN "));
}

TEST(MpirunArguments, FurtherArgumentsComeLast) {
  ServiceOptions options;
  options.mpirun_args = {"--mca", "btl", "tcp,self"};
  EXPECT_THAT(Mpirun(options, Launch(1, {})), HasSubstr(" --mca btl tcp,self /bin/phalanx worker"));
}

TEST(MpirunArguments, CoreBindingGivesEachRankItsThreads) {
  ServiceOptions options;
  options.binding = "core";
  options.rank.threads = 4;
  EXPECT_THAT(Mpirun(options, Launch(2, {})), HasSubstr(" --map-by slot:PE=4 --bind-to core "));
}

TEST(SrunArguments, NamesEachRanksNodeAndHoldsEachRankByTheLeash) {
  const std::string line = Srun({}, Launch(3, {{"a", 2}, {"b", 1}}));
  EXPECT_THAT(line, HasSubstr("srun --mpi=pmix "));
  EXPECT_THAT(line, HasSubstr(" --ntasks=3 --nodes=2 --distribution=arbitrary --nodelist=a,a,b "));
  EXPECT_THAT(line, HasSubstr(" --overlap "));
  EXPECT_THAT(line, HasSubstr(" --cpu-bind=none "));
  EXPECT_THAT(line, HasSubstr(" /bin/phalanx guard --leash a:1 --deaf /bin/phalanx worker"));
}

TEST(SrunArguments, HandsOnTheEnvironmentWhateverTheJobSays) {
  EXPECT_THAT(Srun({}, Launch(1, {})), HasSubstr(" --export=ALL "));
}

TEST(SrunArguments, EveryRankSeesAllGpusOfItsNode) {
  ServiceOptions options;
  EXPECT_THAT(Srun(options, Launch(2, {})), Not(HasSubstr("gpu")));
  options.rank.device = "cuda";
  EXPECT_THAT(Srun(options, Launch(2, {})), HasSubstr(" --gpu-bind=none "));
}

TEST(SrunArguments, CountsAHostOnceThatIsNamedTwice) {
  EXPECT_THAT(Srun({}, Launch(3, {{"a", 1}, {"b", 1}, {"a", 1}})), HasSubstr(" --nodes=2 "));
}

TEST(SrunArguments, WithoutHostsAllRanksAreOnOneNode) {
  const std::string line = Srun({}, Launch(2, {}));
  EXPECT_THAT(line, HasSubstr(" --ntasks=2 --nodes=1 "));
  EXPECT_THAT(line, Not(HasSubstr("--nodelist")));
}

TEST(SrunArguments, CoreBindingDoesNotOvercommit) {
  ServiceOptions options;
  options.binding = "core";
  options.rank.threads = 4;
  const std::string line = Srun(options, Launch(2, {}));
  EXPECT_THAT(line, HasSubstr(" --cpus-per-task=4 --cpu-bind=cores "));
  EXPECT_THAT(line, Not(HasSubstr("--overcommit")));
}

TEST(RankLauncher, ACommandLineForPeopleHasTheTokenAndNoLeash) {
  const RankLauncher launcher({}, "127.0.0.1:1");
  RankLaunch launch = Launch(2, {});
  launch.command.push_back("it's");
  const std::string line = launcher.CommandLine(launch);
  EXPECT_THAT(line, HasSubstr("PHALANX_CONTROL_TOKEN=secret mpirun -np 2 "));
  EXPECT_THAT(line, Not(HasSubstr("guard")));
  EXPECT_THAT(line, HasSubstr("worker 'it'\\''s'"));
}

TEST(RankLauncher, NamesAProgramThatIsNotThere) {
  ServiceOptions options;
  options.workers = "mpirun";
  options.mpirun = "no-such-mpirun";
  RankLauncher launcher(options, "127.0.0.1:1");
  const absl::Status status = launcher.Start(Launch(1, {}));
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-mpirun"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--mpirun"));
}

}  // namespace
}  // namespace phalanx::launcher
