// Where a measurement keeps what it makes for itself.
#ifndef PHALANX_LAUNCHER_SCRATCH_DIRECTORY_H_
#define PHALANX_LAUNCHER_SCRATCH_DIRECTORY_H_

#include <string>

#include "launcher/signals.h"

namespace phalanx::launcher {

// The path of a directory of one's own among the system's temporary files. What was written there
// is gone with this object, and where SIGINT, SIGTERM or SIGUSR1 ends `command` (kExitAgain): make
// it before other threads, as a StopOnSignal.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(const char* command);
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  // The directory isn't made yet.
  const std::string& path() const { return path_; }

 private:
  void Remove();

  const std::string path_;
  const StopOnSignal stop_;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_SCRATCH_DIRECTORY_H_
