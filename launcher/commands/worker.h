// `phalanx worker`: one rank. Hooks let a test build of the binary watch a rank and disturb it.
#ifndef PHALANX_LAUNCHER_COMMANDS_WORKER_H_
#define PHALANX_LAUNCHER_COMMANDS_WORKER_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "comm/communicator.h"
#include "launcher/commands/commands.h"
#include "runtime/scheduler/step_plan.h"

// CLI11 (declared alone: its header takes the compiler ten seconds).
namespace CLI {
class App;
}  // namespace CLI

namespace phalanx::launcher {

// Called by a rank at points of its life, on the thread that computes. All may be empty, and all
// are in the binary that is shipped: a rank can be disturbed by a test's executable alone
// (tests/faults/).
struct WorkerHooks {
  // Before the rank binds its axes: what it returns takes the place of `world`, which it may use
  // and which outlives it.
  std::function<std::unique_ptr<comm::Communicator>(comm::Communicator& world)> wrap;
  // The coordinator has accepted the rank.
  std::function<void(int replica, int rank, uint64_t epoch)> accepted;
  // Elements packed so far and in all.
  std::function<void(int64_t done, int64_t total)> loading;
  // All is loaded; the coordinator has not been told.
  std::function<void()> loaded;
  // A plan is here and nothing of it is computed; it is computed and its result is sent.
  std::function<void(const scheduler::StepPlan& plan)> step_begin;
  std::function<void(const scheduler::StepPlan& plan)> step_end;
};

// `hooks` is copied.
void AddWorkerCommand(CLI::App& parent, Command* run, const WorkerHooks& hooks);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_COMMANDS_WORKER_H_
