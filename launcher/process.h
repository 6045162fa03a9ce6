// One child process, in a process group of its own. It may outlive this one: a leash
// (launcher/guard.h) is what ties it.
#ifndef PHALANX_LAUNCHER_PROCESS_H_
#define PHALANX_LAUNCHER_PROCESS_H_

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace phalanx::launcher {

// This process's environment, "NAME=VALUE" each, with `changes` (by name) in place of what they
// name.
std::vector<std::string> EnvironmentWith(const std::map<std::string, std::string>& changes);
// For exec: the texts, which are borrowed, and a null pointer at the end.
std::vector<char*> Pointers(const std::vector<std::string>& texts);

class Process {
 public:
  // Starts `arguments[0]` (looked up in PATH) with this process's environment plus `environment`.
  // Its stdout and stderr are forwarded to our stderr line by line.
  // NOT_FOUND names a program that isn't there.
  static absl::StatusOr<std::unique_ptr<Process>> Start(
      const std::vector<std::string>& arguments,
      const std::map<std::string, std::string>& environment);
  ~Process();  // Kill()s

  pid_t pid() const { return pid_; }
  // "exited with code 1", "was ended by signal 9 (Killed)"; nothing while it runs.
  std::optional<std::string> Ended();
  // It has ended, with exit code 0.
  bool Succeeded();
  // Waits for the end. False: it still runs after `timeout`.
  bool Wait(absl::Duration timeout);
  // SIGTERM to the child, SIGKILL to its process group after `grace`; returns when it has ended.
  void Kill(absl::Duration grace);

 private:
  Process(pid_t pid, int output);
  void ForwardOutput(int output);
  void Reap(int flags);

  const pid_t pid_;
  std::thread forwarder_;
  bool reaped_ = false;
  int wait_status_ = 0;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PROCESS_H_
