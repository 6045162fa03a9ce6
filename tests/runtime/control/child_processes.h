// Processes for a test to kill.
#ifndef PHALANX_TESTS_RUNTIME_CONTROL_CHILD_PROCESSES_H_
#define PHALANX_TESTS_RUNTIME_CONTROL_CHILD_PROCESSES_H_

#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

namespace phalanx::control {

// Ends those that are left, and reaps all, when it ends itself.
class ChildProcesses {
 public:
  // Name of this host.
  static std::string Host() {
    std::array<char, 256> name{};
    gethostname(name.data(), name.size() - 1);
    return name.data();
  }

 protected:
  ~ChildProcesses() {
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

 private:
  std::vector<pid_t> children_;
};

}  // namespace phalanx::control

#endif  // PHALANX_TESTS_RUNTIME_CONTROL_CHILD_PROCESSES_H_
