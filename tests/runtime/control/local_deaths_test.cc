#include "runtime/control/local_deaths.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx::control {
namespace {

std::string Host() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

class LocalDeathsTest : public testing::Test {
 protected:
  ~LocalDeathsTest() override {
    for (const pid_t pid : children_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }
  pid_t Child() {
    const pid_t pid = fork();
    if (pid == 0) {
      while (true) pause();
    }
    children_.push_back(pid);
    return pid;
  }
  // Returns once it is dead; nobody has been told.
  static void Kill(pid_t pid) {
    kill(pid, SIGKILL);
    siginfo_t info;
    waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
  }

  std::vector<pid_t> children_;
};

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
