// One rank: its device, its slice of the weights, its KV shard and its communicators. Runs step
// plans; keeps no request state between them.
#ifndef PHALANX_RUNTIME_WORKER_WORKER_H_
#define PHALANX_RUNTIME_WORKER_WORKER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "kernels/kernels.h"
#include "parallel/mesh.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/model/decoder.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::worker {

struct WorkerOptions {
  std::string model_directory;
  parallel::Layout layout;
  model::Profile profile;  // weights: taken from the checkpoint
  kernels::CpuOptions cpu;
  int64_t max_step_tokens = 512;  // rows of the largest step: the scheduler's token budget
  int64_t max_positions = 0;      // context; 0: the checkpoint's
  int64_t kv_memory_bytes = 0;    // of this rank; used where kv_blocks is 0
  int64_t kv_blocks = 0;          // blocks to hold, whatever they weigh; 0: by kv_memory_bytes
  // Loading: elements packed so far and in all. Called on the loading thread.
  std::function<void(int64_t done, int64_t total)> progress;
};

class Worker {
 public:
  // Opens device and checkpoint and runs the known-answer inputs: what a rank is compared by before
  // it loads. Touches no weights. Collective over `group`, which is borrowed. A rank that fails
  // aborts the group, so that the others don't wait.
  static absl::StatusOr<std::unique_ptr<Worker>> Open(const WorkerOptions& options,
                                                      comm::Communicator& group);
  ~Worker();

  // What the coordinator may have settled since Open. Before Load.
  WorkerOptions& options();
  // Packs this rank's share of the weights and allocates its KV shard. Collective; a rank that
  // fails aborts the group.
  absl::Status Load();

  // What this rank tells the coordinator.
  const coordinator::RankInfo& info() const;
  const model::Profile& profile() const;

  // Computes one plan. Collective: every rank of the group calls it with the same plan. The result
  // is filled on the lead (rank 0 of the group) and otherwise holds epoch and number alone.
  absl::StatusOr<scheduler::StepResult> Execute(const scheduler::StepPlan& plan);

 private:
  struct Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_WORKER_H_
