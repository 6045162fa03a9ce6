// The coordinator: accepts requests, runs the loop schedule -> send -> commit over one worker
// group, and hands every request its tokens and its one terminal status.
//
// Threads: Start() makes one loop thread, the only writer of request state. Every public method may
// be called from any thread, except that Stop() and Drain() must not be called from an
// EventCallback. Callbacks run on the loop thread.
#ifndef PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_
#define PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/coordinator/request.h"
#include "runtime/coordinator/validate.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/scheduler/scheduler.h"

namespace phalanx::coordinator {

struct CoordinatorOptions {
  ModelLimits limits;                     // see validate.h
  std::vector<int32_t> eos_token_ids;     // from generation_config.json or config.json
  scheduler::SchedulerOptions scheduler;  // num_blocks 0: as many as the group holds
  // Null: events carry no text and stop strings are refused.
  TextDecoderFactory text_decoder;
  std::function<absl::Time()> clock = absl::Now;
  // Draws the seed of a request that names none. Null: std::random_device.
  std::function<uint64_t()> draw_seed;
};

enum class CoordinatorState { kLoading, kServing, kDraining, kFailed, kStopped };
absl::string_view Name(CoordinatorState state);  // "loading", "serving", ...

// A consistent snapshot, as of the loop's last turn.
struct CoordinatorStatus {
  CoordinatorState state = CoordinatorState::kLoading;
  absl::Status failure;         // kFailed: what ended the group
  GroupInfo group;              // epoch, layout, ranks; empty while loading
  int64_t queued_requests = 0;  // accepted, not yet admitted to the batch
  int64_t running_requests = 0;
  int64_t running_sequences = 0;  // samples that hold KV blocks
  cache::BlockPoolStats blocks;   // total, free, cached, in use, hits
  int64_t steps = 0;
  int64_t prompt_tokens = 0;  // computed in prefill, recomputed ones included
  int64_t cached_prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t finished_requests = 0;           // whatever their status
  int64_t compute_us = 0;                  // sum of StepResult.compute_us
  double prompt_tokens_per_second = 0;     // over the last 10 seconds
  double generated_tokens_per_second = 0;  // over the last 10 seconds
};

class Coordinator {
 public:
  // `group` has not been started.
  Coordinator(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group);
  ~Coordinator();  // Stop()s
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Starts the group, blocking until every rank has loaded, then the loop. Once only.
  // INVALID_ARGUMENT: options out of range; else the group's own error.
  absl::Status Start();

  // Validates and queues; returns at once. After an error `callback` is never called; after OK it
  // gets events up to and including exactly one with done = true.
  // INVALID_ARGUMENT naming the field; ALREADY_EXISTS: a live request has that id;
  // RESOURCE_EXHAUSTED: the queue is full, or the KV memory can never hold the request;
  // DEADLINE_EXCEEDED: the deadline has passed; UNAVAILABLE: loading, draining, failed or stopped.
  absl::StatusOr<RequestHandle> Submit(GenerateRequest request, EventCallback callback);

  // The request ends with CANCELLED and its blocks are free by the end of the step in flight.
  // False: no live request has that id.
  bool Cancel(absl::string_view request_id);

  CoordinatorStatus GetStatus() const;

  // Refuses new requests from now on and waits until every accepted one has ended.
  // DEADLINE_EXCEEDED: some had not after `timeout`; they go on.
  absl::Status Drain(absl::Duration timeout);

  // Ends unfinished requests with UNAVAILABLE, the loop and the group. Idempotent.
  void Stop();

  // Makes the loop look at the clock again; for clocks that don't advance by themselves.
  void Wake();

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_
