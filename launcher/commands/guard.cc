// `phalanx guard`: what the launcher puts before mpirun, srun, orted and ranks. Not for people.

#include "launcher/guard.h"

#include <memory>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"

namespace phalanx::launcher {

void AddGuardCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand(
      "guard",
      "Runs COMMAND until the leash is let go; serve and run put it before what they start");
  auto options = std::make_shared<GuardOptions>();
  app->fallthrough(false);  // the command's words are its own
  app->prefix_command();
  app->add_option("--leash", options->leash, "HOST:PORT of the coordinator")->required();
  app->add_flag("--deaf", options->deaf, "COMMAND ignores SIGTERM, SIGINT, SIGUSR1 and SIGUSR2");
  app->add_option("--files", options->files, "Directory for Open MPI's files, of this name");
  app->group("");  // not in --help
  app->callback([app, options, run] {
    *run = [app, options] {
      options->command = app->remaining();
      const absl::StatusOr<int> code = RunGuard(*options);
      return code.ok() ? *code : Fail("guard", code.status());
    };
  });
}

}  // namespace phalanx::launcher
