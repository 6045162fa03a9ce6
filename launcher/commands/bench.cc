// `phalanx bench`: the project's measurements.

#include "launcher/commands/bench.h"

#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/bench/kernel_bench.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"

namespace phalanx::launcher {

void AddBenchCommand(CLI::App& parent, Command* run) {
  CLI::App* bench = parent.add_subcommand("bench", "Measurements, each a ratio within one run");
  bench->require_subcommand(1);
  AddBenchPlanCommand(*bench, run);
  AddBenchCollectivesCommand(*bench, run);
  AddBenchRecoveryCommand(*bench, run);
  CLI::App* app = bench->add_subcommand(
      "kernels", "Decode bandwidth and prefill rate on Llama-3.2-1B's shape against the machine's");
  auto options = std::make_shared<kernels::KernelBenchOptions>();
  options->threads = AvailableCores();
  auto path = std::make_shared<std::string>();
  app->add_option("--threads", options->threads, "Compute threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--cpu-path", *path, "portable, avx2, avx512 or amx (default: the fastest)");
  app->add_option("--pairs", options->pairs, "Interleaved pairs of measurements")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_flag("--quick", options->quick, "Smaller and less exact");
  app->add_flag("--json", options->json, "One JSON object");
  app->callback([options, path, run] {
    *run = [options, path] {
      for (const kernels::CpuPath available : kernels::AvailableCpuPaths()) {
        if (path->empty() || *path == kernels::Name(available)) options->path = available;
      }
      absl::Status status;
      if (!path->empty() && *path != kernels::Name(options->path)) {
        status = absl::InvalidArgumentError(
            absl::StrCat("--cpu-path ", *path, ": this machine does not have it"));
      } else {
        status = kernels::RunKernelBench(*options, std::cout);
      }
      return status.ok() ? kExitDone : Fail("bench kernels", status);
    };
  });
}

}  // namespace phalanx::launcher
