// What a rank is made of: worker.cc opens and loads it, step.cc computes plans.
#ifndef PHALANX_RUNTIME_WORKER_WORKER_IMPL_H_
#define PHALANX_RUNTIME_WORKER_WORKER_IMPL_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "runtime/model/batch.h"
#include "runtime/sampling/sampler.h"
#include "runtime/worker/worker.h"

namespace phalanx::worker {

// Slots of a plan for which there is room from the start: more than most plans have.
inline constexpr int64_t kLeastSlots = 512;

// What one plan chooses.
struct Choices {
  int64_t room = 0;  // slots
  kernels::Buffer device;
  // On the rank that samples:
  kernels::Buffer host;
  kernels::Buffer expert_tokens;  // [num_experts] int64_t on the host: what the plan sent to each
};

// A plan as this rank computes it.
struct StepWork {
  model::Batch batch;
  std::vector<std::vector<int32_t>> tables;  // sp > 1: local block tables
  std::vector<int32_t> rows;                 // whose logits are wanted
  std::vector<sampling::LogitUse> uses;      // of each of them
};

// A plan whose result is on its way.
struct Started {
  scheduler::StepResult result;  // but for ids that the device chooses
  absl::Time begin;
  const kernels::Choice* choices = nullptr;  // on the host, once `done` has passed
  const int64_t* expert_tokens = nullptr;    // likewise, [num_experts]
  std::unique_ptr<kernels::Marker> done;     // null: nothing is to be waited for
};

struct Worker::Impl {
  Impl(const WorkerOptions& options, comm::Communicator& group) : options(options), group(group) {}

  absl::Status Open();
  absl::Status Load();
  // The digest of all that the group has read.
  absl::StatusOr<uint64_t> AgreeOnContent(const model::DecoderOptions& decoder_options);
  absl::StatusOr<int64_t> AgreeOnKvBlocks();
  // Bytes for KV blocks where nobody said how many: what the device has left beside weights and all
  // that the largest step takes.
  absl::StatusOr<int64_t> ProfiledKvBytes();
  absl::Status RunLargestStep();
  absl::Status CheckPlan(const scheduler::StepPlan& plan) const;
  // Makes what the last plan chose known on every rank, where `plan` feeds any of it.
  absl::Status ShareChosen(const scheduler::StepPlan& plan);
  // Makes room for what a plan of `slots` slots chooses; what was there before is lost.
  absl::Status MakeRoom(Choices& room, int64_t slots);
  // The rows of `plan`, and which logits are wanted for what.
  void MakeBatch(const scheduler::StepPlan& plan, StepWork& work) const;
  // A plan's result, once everything is on the host.
  absl::StatusOr<scheduler::StepResult> Complete(Started started);
  void Trace(uint64_t step, bool begin) const;
  // The copies between blocks of this rank, as its own ids.
  std::vector<scheduler::BlockCopy> LocalCopies(
      const std::vector<scheduler::BlockCopy>& copies) const;

  WorkerOptions options;
  comm::Communicator& group;
  std::unique_ptr<kernels::Kernels> kernels;
  std::optional<ParallelContext> context;  // set by Open; its communicators use the device
  coordinator::RankInfo info;
  LoadTimes load_times;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  std::unique_ptr<model::Decoder> decoder;
  std::atomic<const model::Decoder*> computing{nullptr};  // `decoder`, once it is there
  std::unique_ptr<sampling::Sampler> sampler;             // on the result rank
  uint64_t last_plan = 0;
  int64_t last_slots = 0;  // of that plan
  Choices choices[2];      // of the plans in turn
  int turn = 0;            // the last plan's
  std::mutex mutex;
  // Guarded by mutex.
  std::deque<Started> started;  // oldest first
  int unfinished = 0;           // those, and one whose Finish is under way
  absl::Time last_finished = absl::InfinitePast();
};

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_WORKER_IMPL_H_
