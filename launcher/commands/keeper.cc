// `phalanx keeper`: what the first rank of a service on a host starts. Not for people.

#include "launcher/keeper.h"

#include <memory>

#include "CLI/CLI.hpp"
#include "launcher/commands/commands.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"

namespace phalanx::launcher {

void AddKeeperCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand(
      "keeper", "Keeps the packed weights of this host's ranks for those that take their places");
  auto options = std::make_shared<KeeperOptions>();
  app->add_option("--coordinator", options->coordinator, "HOST:PORT")->required();
  app->group("");  // not in --help
  app->callback([options, run] {
    *run = [options] {
      options->token = ReadEnvironment().control_token;
      const absl::Status status = RunKeeper(*options);
      return status.ok() ? kExitDone : Fail("keeper", status);
    };
  });
}

}  // namespace phalanx::launcher
