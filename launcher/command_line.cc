#include "launcher/command_line.h"

#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "launcher/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

// A descriptor that was closed would be given to the next socket, and what is printed sent there.
void FillStandardDescriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) >= 0) continue;
    // The wrong way round, so that using it is an error.
    (void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

// gRPC 1.51 closes its port for good where a connection finds no free descriptor, and 1,024 are
// many shells' default.
void RaiseDescriptorLimit() {
  constexpr rlim_t kEnough = 65536;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
  limit.rlim_cur = std::min(limit.rlim_max, kEnough);
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

// `code`, or kExitFailed where answers were printed and haven't all been written.
int CheckOutput(const CLI::App& app, int code) {
  std::cout.flush();
  if (std::cout.good() || (code != kExitDone && code != kExitFailedItems)) return code;
  std::string name = "phalanx";
  for (const CLI::App* command : app.get_subcommands()) {
    absl::StrAppend(&name, " ", command->get_name());
  }
  std::cerr << name
            << ": not everything could be written to stdout: is it closed, or its disk full?\n";
  return kExitFailed;
}

}  // namespace

int RunCommandLine(int argc, char** argv, const WorkerHooks& hooks) {
  FillStandardDescriptors();
  RaiseDescriptorLimit();
  ExplainRefusedResources();
  CLI::App app{
      "Phalanx: distributed LLM inference on MPI and Slurm clusters.\n"
      "Results go to stdout, logs to stderr. Exit codes: 0 done, 1 failed while running, 2 wrong\n"
      "usage, configuration or model, 3 some of several prompts failed, 75 stopped before the end\n"
      "(run it again).",
      "phalanx"};
  app.set_version_flag("--version", std::string("phalanx ") + kVersion);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app.fallthrough();
  app.failure_message([](const CLI::App* top, const CLI::Error& error) {
    const std::vector<CLI::App*> commands = top->get_subcommands();
    std::string name = top->get_name();
    for (const CLI::App* command : commands) absl::StrAppend(&name, " ", command->get_name());
    std::string message = error.what();
    // The library says only that a command is required where an unknown one was given.
    const std::vector<std::string> unknown = top->remaining(/*recurse=*/true);
    const CLI::App* const last = commands.empty() ? top : commands.back();
    if (last->get_require_subcommand_min() > 0 && last->get_subcommands().empty() &&
        !unknown.empty()) {
      message = absl::StrCat("unknown command or flag \"", unknown[0], "\"");
    } else if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError)) {
      // The library lists what follows an unknown flag, too, and from the end.
      const std::vector<std::string> rest = top->remaining(/*recurse=*/true);
      const auto flag = std::find_if(rest.begin(), rest.end(),
                                     [](const std::string& word) { return word[0] == '-'; });
      message =
          absl::StrCat("unknown flag or argument \"", flag == rest.end() ? rest[0] : *flag, "\"");
    }
    return absl::StrCat(name, ": ", message, " (", name, " --help shows what there is)\n");
  });

  Command run;
  AddRunCommand(app, &run);
  AddServeCommand(app, &run);
  AddWorkerCommand(app, &run, hooks);
  AddKeeperCommand(app, &run);
  AddGenerateCommand(app, &run);
  AddStatusCommand(app, &run);
  AddTokenizeCommand(app, &run);
  AddPlanCommand(app, &run);
  AddBenchCommand(app, &run);
  AddGuardCommand(app, &run);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return CheckOutput(app, code == 0 ? kExitDone : kExitUsage);
  }
  // A client's bad bytes are answered with the field's name; protobuf's own line would say less, in
  // our log.
  google::protobuf::SetLogHandler(nullptr);
  spdlog::set_default_logger(spdlog::stderr_color_mt("phalanx"));
  spdlog::set_pattern("%^[%H:%M:%S.%e %l]%$ %v");
  spdlog::set_level(spdlog::level::from_str(log_level));
  return CheckOutput(app, run());
}

}  // namespace phalanx::launcher
