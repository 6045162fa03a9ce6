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
#include "absl/time/time.h"
#include "comm/communicator.h"
#include "kernels/device.h"
#include "parallel/mesh.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/model/decoder.h"
#include "runtime/scheduler/step_plan.h"
#include "runtime/worker/parallel_context.h"
#include "runtime/worker/step_executor.h"

namespace phalanx::worker {

// One line of a rank's step trace: its stage begins to work on a step, or has ended.
struct StepEvent {
  int rank = 0;
  int stage = 0;  // pipeline stage of the rank
  uint64_t step = 0;
  bool begin = true;
  absl::Time time;
};

struct WorkerOptions {
  std::string model_directory;
  parallel::Layout layout;
  // Weights: taken from the checkpoint; device and numerics: from `device`.
  model::Profile profile;
  kernels::DeviceOptions device;
  DeviceTransport device_transport = DeviceTransport::kAuto;
  // Of a device's memory, what ranks may take; those that share a device share it (cuda).
  double gpu_memory_fraction = 0.9;
  int64_t max_step_tokens = 512;  // rows of the largest step: the scheduler's token budget
  int64_t max_positions = 0;      // context; 0: the checkpoint's
  // Of this rank; used where kv_blocks is 0. 0 (on a device with memory of its own): all that
  // weights and the largest step leave.
  int64_t kv_memory_bytes = 0;
  int64_t kv_blocks = 0;  // blocks to hold, whatever they weigh; 0: by kv_memory_bytes
  // By kv_memory_bytes: no more blocks than this many sequences of full context use; 0: no limit.
  int64_t max_kv_sequences = 0;
  // Steps of at least this many rows shard the residual stream by token (DecoderOptions).
  int64_t shard_rows = model::DecoderOptions{}.shard_rows;
  // Where packed weights survive this rank; null: nowhere. Outlives Load. `packer`: see
  // model::DecoderOptions.
  model::WeightStore* store = nullptr;
  std::string packer;
  // Loading: elements packed so far and in all. Called on the loading thread.
  std::function<void(int64_t done, int64_t total)> progress;
  // Called when a step's input is here and when its output is made. From the thread that starts
  // plans and from the one that finishes them, at times together.
  std::function<void(const StepEvent&)> trace;
};

class Worker : public StepExecutor {
 public:
  // Opens device and checkpoint and runs the known-answer inputs: what a rank is compared by before
  // it loads. Touches no weights. Collective over `group`, which is borrowed. A rank that fails
  // aborts the group, so that the others don't wait.
  static absl::StatusOr<std::unique_ptr<Worker>> Open(const WorkerOptions& options,
                                                      comm::Communicator& group);
  ~Worker() override;

  // What the coordinator may have settled since Open. Before Load.
  WorkerOptions& options();
  // Packs this rank's share of the weights and allocates its KV shard. Collective. The
  // caller of a rank that fails aborts the group once it has said why: the others' errors would
  // otherwise be heard first.
  absl::Status Load();

  // How the time of Load was spent.
  struct LoadTimes {
    bool weights_were_kept = false;
    absl::Duration weights;  // mapped and checked, or read and packed
    absl::Duration agreement;
    absl::Duration kv;
  };
  const LoadTimes& load_times() const;

  // What this rank tells the coordinator.
  const coordinator::RankInfo& info() const;
  const model::Profile& profile() const;
  // Tokens of the longest context.
  int64_t max_context() const;

  // The rank whose Finish gives the result: the last stage's first.
  int result_rank() const;
  // Collectives begun so far: what a hang is named by. From any thread.
  uint64_t collective_number() const;
  // Layers computed so far: a sign of life. From any thread; 0 while it loads.
  uint64_t layers_computed() const;

  // See StepExecutor. The result is filled on result_rank().
  absl::Status Start(const scheduler::StepPlan& plan) override;
  absl::StatusOr<scheduler::StepResult> Finish() override;
  // Start and Finish, with nothing else under way.
  absl::StatusOr<scheduler::StepResult> Execute(const scheduler::StepPlan& plan);
  // Once it has loaded.
  bool gives_results() const override;
  bool finishes_later() const override;

 private:
  struct Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_WORKER_H_
