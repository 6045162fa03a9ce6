// The command line: from main's arguments to the exit code.
#ifndef PHALANX_LAUNCHER_COMMAND_LINE_H_
#define PHALANX_LAUNCHER_COMMAND_LINE_H_

#include "launcher/commands/worker.h"

namespace phalanx::launcher {

// Parses the arguments and runs the chosen command; `hooks` are those of `worker`. Returns the
// process's exit code. Once in a process's life.
int RunCommandLine(int argc, char** argv, const WorkerHooks& hooks);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_COMMAND_LINE_H_
