// `phalanx` with points at which a rank can be made to fail (injector.h). It starts itself as its
// workers, so a service of this executable has them in every rank.
//
// One more command, for the tests: phalanx_with_faults write-checkpoint DIRECTORY CONFIG SEED
// writes a checkpoint of random weights for the config.json text CONFIG.

#include <signal.h>

#include <cstdlib>
#include <string_view>
#include <thread>

#include "launcher/command_line.h"
#include "launcher/exit_code.h"
#include "launcher/random_checkpoint.h"
#include "tests/faults/fault_communicator.h"
#include "tests/faults/injector.h"

namespace {

phalanx::launcher::WorkerHooks MakeHooks(phalanx::faults::Injector& injector) {
  phalanx::launcher::WorkerHooks hooks;
  hooks.wrap = [&injector](phalanx::comm::Communicator& world) {
    return phalanx::faults::WithFaults(world, injector);
  };
  hooks.accepted = [&injector](int replica, int rank, uint64_t epoch) {
    injector.Accepted(replica, rank, epoch);
  };
  hooks.loading = [&injector](int64_t done, int64_t total) { injector.Loading(done, total); };
  hooks.loaded = [&injector] { injector.Loaded(); };
  hooks.step_begin = [&injector](const phalanx::scheduler::StepPlan& plan) {
    injector.StepBegin(plan);
  };
  hooks.step_end = [&injector](const phalanx::scheduler::StepPlan&) { injector.StepEnd(); };
  return hooks;
}

// A thread that waits for SIGUSR2, which is blocked in all others.
void FailOnSignal(phalanx::faults::Injector& injector) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([&injector, signals] {
    int signal = 0;
    while (sigwait(&signals, &signal) == 0) injector.Idle();
  }).detach();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view(argv[1]) == "write-checkpoint") {
    const absl::Status status =
        phalanx::launcher::WriteRandomCheckpoint(argv[2], argv[3], std::atoi(argv[4]));
    return status.ok() ? phalanx::launcher::kExitDone
                       : phalanx::launcher::Fail("write-checkpoint", status);
  }
  phalanx::launcher::WorkerHooks hooks;
  const char* source = std::getenv("PHALANX_FAULT");
  // Only where it is the command itself: mpirun's guard has the same word further on, and no thread
  // but its own may take its signals.
  if (source != nullptr && *source != '\0' && argc > 1 && std::string_view(argv[1]) == "worker") {
    // For as long as the process: the signal's thread is never joined.
    auto* injector = new phalanx::faults::Injector(source, phalanx::faults::Perform);
    FailOnSignal(*injector);
    hooks = MakeHooks(*injector);
  }
  return phalanx::launcher::RunCommandLine(argc, argv, hooks);
}
