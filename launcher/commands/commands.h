// The subcommands. Each adds its flags to `parent` and, when chosen, sets `*run` to what to do.
#ifndef PHALANX_LAUNCHER_COMMANDS_COMMANDS_H_
#define PHALANX_LAUNCHER_COMMANDS_COMMANDS_H_

#include <functional>

// CLI11 (declared alone: its header takes the compiler ten seconds).
namespace CLI {
class App;
}  // namespace CLI

namespace phalanx::launcher {

// Returns the process's exit code.
using Command = std::function<int()>;

void AddRunCommand(CLI::App& parent, Command* run);
void AddServeCommand(CLI::App& parent, Command* run);
void AddKeeperCommand(CLI::App& parent, Command* run);
void AddGenerateCommand(CLI::App& parent, Command* run);
void AddStatusCommand(CLI::App& parent, Command* run);
void AddTokenizeCommand(CLI::App& parent, Command* run);
void AddPlanCommand(CLI::App& parent, Command* run);
void AddBenchCommand(CLI::App& parent, Command* run);
void AddGuardCommand(CLI::App& parent, Command* run);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_COMMANDS_COMMANDS_H_
