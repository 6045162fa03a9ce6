// The measurements of `phalanx bench`, each a subcommand of it.
#ifndef PHALANX_LAUNCHER_COMMANDS_BENCH_H_
#define PHALANX_LAUNCHER_COMMANDS_BENCH_H_

#include "launcher/commands/commands.h"

namespace phalanx::launcher {

void AddBenchCollectivesCommand(CLI::App& bench, Command* run);
void AddBenchPlanCommand(CLI::App& bench, Command* run);
void AddBenchRecoveryCommand(CLI::App& bench, Command* run);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_COMMANDS_BENCH_H_
