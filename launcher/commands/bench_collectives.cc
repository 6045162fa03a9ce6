// `phalanx bench collectives`: what `plan --calibrate --hosts` starts by mpirun, and by hand.

#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/mpi/mpi_environment.h"
#include "launcher/calibration.h"
#include "launcher/commands/bench.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"
#include "launcher/measure.h"

namespace phalanx::launcher {
namespace {

struct CollectivesOptions {
  int threads = 0;
  int ranks_per_node = 0;
  int nodes = 1;
  bool quick = false;
};

absl::Status RunCollectives(const CollectivesOptions& options) {
  const int here = ReadEnvironment().local_ranks;
  comm::MpiOptions mpi_options;
  mpi_options.ranks_per_node = options.ranks_per_node;
  mpi_options.threads_per_rank =
      options.threads > 0 ? options.threads : std::max(1, AvailableCores() / std::max(1, here));
  auto mpi = comm::MpiEnvironment::Init(mpi_options);
  if (!mpi.ok()) return mpi.status();
  comm::Communicator& world = (*mpi)->World();
  absl::Status status;
  if (world.size() < 2) {
    status = absl::InvalidArgumentError(
        "one rank has nobody to talk to; start it as: mpirun -np 2 phalanx bench collectives");
  } else if (world.size() % options.nodes != 0) {
    status = absl::InvalidArgumentError(
        absl::StrCat("--nodes ", options.nodes, " must divide the ", world.size(), " ranks"));
  }
  v1::Calibration out;
  out.set_machine(HostName());
  if (status.ok()) {
    auto measured = MeasureCollectives(world, options.nodes, options.quick);
    status = measured.status();
    if (measured.ok()) {
      for (v1::CollectiveMeasurement& m : *measured) *out.add_collectives() = std::move(m);
    }
  }
  if (!status.ok()) {
    world.Abort(std::string(status.message()));
    return status;
  }
  if (world.rank() == 0) std::cout << ToYaml(out) << std::flush;
  return (*mpi)->Finalize();
}

}  // namespace

void AddBenchCollectivesCommand(CLI::App& bench, Command* run) {
  CLI::App* app = bench.add_subcommand(
      "collectives", "Under mpirun: every collective by size, as a calibration file on stdout");
  auto options = std::make_shared<CollectivesOptions>();
  app->add_option("--nodes", options->nodes,
                  "Nodes that the ranks are on, as many on each: groups across them are measured")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app->add_option("--threads", options->threads,
                  "Compute threads per rank (default: cores / ranks)")
      ->check(CLI::Range(1, 1024));
  app->add_option("--ranks-per-node", options->ranks_per_node,
                  "For tests: as if so many consecutive ranks were a node")
      ->check(CLI::Range(0, 1024));
  app->add_flag("--quick", options->quick, "Fewer repeats and sizes");
  app->callback([options, run] {
    *run = [options] {
      const absl::Status status = RunCollectives(*options);
      return status.ok() ? kExitDone : Fail("bench collectives", status);
    };
  });
}

}  // namespace phalanx::launcher
