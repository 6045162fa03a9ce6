#include "runtime/control/local_deaths.h"

#include <unistd.h>

#include <array>

#include "gtest/gtest.h"
#include "tests/runtime/control/child_processes.h"

namespace phalanx::control {
namespace {

class LocalDeathsTest : public ChildProcesses, public testing::Test {};

TEST_F(LocalDeathsTest, NamesTheFirstWhicheverIsAskedFor) {
  for (const int first : {2, 0, 1}) {
    LocalDeaths deaths;
    const std::array<pid_t, 3> pids = {Child(), Child(), Child()};
    for (int rank = 0; rank < 3; ++rank) deaths.Watch(rank, Host(), pids[rank]);
    Kill(pids[first]);
    for (int rank = 0; rank < 3; ++rank) {
      if (rank != first) Kill(pids[rank]);
    }
    for (int asked = 0; asked < 3; ++asked) {
      EXPECT_EQ(deaths.FirstOr(asked, absl::ZeroDuration()), first);
    }
  }
}

TEST_F(LocalDeathsTest, IsTheRankItselfWhileAllLiveOrElsewhere) {
  LocalDeaths deaths;
  const pid_t here = Child();
  deaths.Watch(0, Host(), here);
  deaths.Watch(1, Host() + "-not", getpid());
  EXPECT_EQ(deaths.FirstOr(0, absl::ZeroDuration()), 0);
  Kill(here);
  EXPECT_EQ(deaths.FirstOr(1, absl::ZeroDuration()), 1) << "its host may have died before";
  EXPECT_EQ(deaths.FirstOr(0, absl::ZeroDuration()), 0);
}

TEST_F(LocalDeathsTest, ARankThatComesAgainIsItsNewProcess) {
  LocalDeaths deaths;
  const pid_t before = Child();
  deaths.Watch(0, Host(), before);
  Kill(before);
  deaths.Watch(0, Host(), Child());
  const pid_t other = Child();
  deaths.Watch(1, Host(), other);
  Kill(other);
  EXPECT_EQ(deaths.FirstOr(0, absl::ZeroDuration()), 1);
}

}  // namespace
}  // namespace phalanx::control
