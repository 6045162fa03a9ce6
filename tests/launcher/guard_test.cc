#include "launcher/guard.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/group_files.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;

// RunGuard() in a process of its own, which it is made for. The pipe is held by it and by all that
// comes of its command.
class GuardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto leash = Leash::Listen(/*other_hosts=*/true);
    ASSERT_TRUE(leash.ok()) << leash.status();
    leash_ = *std::move(leash);
    ASSERT_EQ(pipe(pipe_.data()), 0);
  }
  void TearDown() override {
    close(pipe_[0]);
    if (guard_ > 0) kill(guard_, SIGKILL);
  }

  void Start(const std::string& script, bool deaf = false, const std::string& files = "") {
    GuardOptions options;
    options.leash = absl::StrCat("127.0.0.1:", leash_->port());
    options.deaf = deaf;
    options.files = files;
    options.command = {"sh", "-c", script};
    guard_ = fork();
    if (guard_ == 0) {
      close(pipe_[0]);
      leash_.reset();  // the parent's is another descriptor of the same port
      dup2(pipe_[1], STDOUT_FILENO);
      close(pipe_[1]);
      const absl::StatusOr<int> code = RunGuard(options);
      _exit(code.ok() ? *code : 100);
    }
    close(pipe_[1]);
  }
  // One byte at a time, up to and without the line's end; empty: all holders have ended.
  std::string ReadLine() {
    std::string line;
    char c = 0;
    while (read(pipe_[0], &c, 1) == 1 && c != '\n') line += c;
    return line;
  }
  int Wait() {
    int status = 0;
    waitpid(guard_, &status, 0);
    guard_ = 0;
    return status;
  }

  std::unique_ptr<Leash> leash_;
  std::array<int, 2> pipe_;
  pid_t guard_ = 0;
};

TEST_F(GuardTest, ReturnsTheCommandsExitCode) {
  Start("exit 7");
  const int status = Wait();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST_F(GuardTest, EndsByTheSignalThatEndedTheCommand) {
  Start("kill -USR2 $$");
  const int status = Wait();
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGUSR2);
}

TEST_F(GuardTest, KillsEverythingWhenTheLeashIsLetGo) {
  // One in a session of its own, a stopped one, and all but that ignore SIGTERM.
  Start(
      "trap '' TERM; setsid sh -c 'echo one; exec tail -f /dev/null' & "
      "sh -c 'echo two; kill -STOP $$' & exec tail -f /dev/null");
  ReadLine();
  ReadLine();
  leash_.reset();
  EXPECT_EQ(ReadLine(), "");  // the pipe's other ends are closed: all are gone
  Wait();
}

TEST_F(GuardTest, KillsWhatTheCommandLeavesBehind) {
  Start("setsid sh -c 'echo left; exec tail -f /dev/null' & exit 3");
  while (!ReadLine().empty()) continue;
  const int status = Wait();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
}

TEST_F(GuardTest, HandsSignalsOn) {
  Start("trap 'echo heard; exit 5' USR1; tail -f /dev/null & echo ready; wait");
  EXPECT_EQ(ReadLine(), "ready");
  kill(guard_, SIGUSR1);
  EXPECT_EQ(ReadLine(), "heard");
  EXPECT_EQ(WEXITSTATUS(Wait()), 5);
}

// mpirun takes a second SIGTERM for impatience and by a third ends without its end.
TEST_F(GuardTest, AsksOnceThenKills) {
  Start("trap 'echo asked' TERM; tail -f /dev/null & echo ready; while :; do wait; done");
  EXPECT_EQ(ReadLine(), "ready");
  kill(guard_, SIGTERM);
  EXPECT_EQ(ReadLine(), "asked");
  kill(guard_, SIGTERM);
  leash_.reset();
  EXPECT_EQ(ReadLine(), "");
  EXPECT_EQ(WTERMSIG(Wait()), SIGKILL);
}

// What it would clean up goes with the files.
TEST_F(GuardTest, KillsAtOnceWhereItOwnsTheFiles) {
  ASSERT_EQ(unsetenv("OMPI_MCA_orte_tmpdir_base"), 0);
  const std::string files = GroupFiles::NewName();
  if (GroupFiles(files).path().empty()) GTEST_SKIP() << "/dev/shm has no room for Open MPI's files";
  Start(
      "trap 'echo asked' TERM; tail -f /dev/null & echo $OMPI_MCA_orte_tmpdir_base; "
      "while :; do wait; done",
      /*deaf=*/false, files);
  const std::string path = ReadLine();
  EXPECT_EQ(path, "/dev/shm/" + files);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  leash_.reset();
  EXPECT_EQ(ReadLine(), "");
  EXPECT_EQ(WTERMSIG(Wait()), SIGKILL);
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(GuardTest, ADeafCommandIgnoresSignalsButNotTheLeash) {
  // A shell can't trap what it was started to ignore.
  Start(
      "trap 'echo heard' TERM; echo ready; kill -TERM $$ $PPID; echo on; "
      "exec tail -f /dev/null",
      /*deaf=*/true);
  EXPECT_EQ(ReadLine(), "ready");
  EXPECT_EQ(ReadLine(), "on");
  leash_.reset();
  EXPECT_EQ(ReadLine(), "");
  EXPECT_EQ(WTERMSIG(Wait()), SIGKILL);
}

TEST_F(GuardTest, StartsNothingWhereNobodyHoldsTheLeash) {
  GuardOptions options;
  options.leash = absl::StrCat("127.0.0.1:", leash_->port());
  options.command = {"true"};
  leash_.reset();
  const absl::StatusOr<int> code = RunGuard(options);
  EXPECT_EQ(code.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(code.status().message()), HasSubstr(options.leash));
  options.leash = "nonsense";
  EXPECT_EQ(RunGuard(options).status().code(), absl::StatusCode::kInvalidArgument);
  close(pipe_[1]);
}

}  // namespace
}  // namespace phalanx::launcher
