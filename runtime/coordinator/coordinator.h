// The coordinator: accepts requests, runs the loop schedule -> send -> commit over the worker
// groups of one or more data-parallel replicas, and hands every request its tokens and its one
// terminal status.
//
// Every replica is a worker group with its own scheduler and KV memory; a request lives on one of
// them, chosen at Submit: the one with the longest cached prefix unless it is much busier
// (router.h). The answer never depends on the choice: seeds are drawn per request, and all ranks of
// all replicas agree on kernels and weights (R6).
//
// A worker group that dies is replaced (supervisor.h): its replica's requests pause and go on
// exactly where they were, by the promise of the design's section 1; other replicas don't notice.
// Where there will be no group any more, the replica's requests go on with the other replicas or,
// where there is none, end with UNAVAILABLE. A request
// whose computing kills its workers again and again ends with INTERNAL (Scheduler::OnGroupDeath).
//
// Threads: Start() makes one loop thread per replica, the only writer of its requests' state. Every
// public method may be called from any thread, except that Stop() and Drain() must not be called
// from an EventCallback. Callbacks run on the request's loop thread.
#ifndef PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_
#define PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/coordinator/group_source.h"
#include "runtime/coordinator/request.h"
#include "runtime/coordinator/supervisor.h"
#include "runtime/coordinator/validate.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/scheduler/scheduler.h"

namespace phalanx::coordinator {

struct CoordinatorOptions {
  ModelLimits limits;                  // see validate.h
  std::vector<int32_t> eos_token_ids;  // from generation_config.json or config.json
  // The same for every replica. What follows from the group is filled in when it has started:
  // num_blocks 0 is as many as it holds, max_plans_in_flight is at least its pipeline stages.
  // max_queued_requests counts over all replicas.
  scheduler::SchedulerOptions scheduler;
  // Null: events carry no text and stop strings are refused.
  TextDecoderFactory text_decoder;
  std::function<absl::Time()> clock = absl::Now;
  // Draws the seed of a request that names none. Null: std::random_device.
  std::function<uint64_t()> draw_seed;
  RestartOptions restart;
  // A line for the log; may be null. From any thread.
  std::function<void(const std::string& line)> log;
  // A replica has a new group, or is lost, and GetStatus() says so; may be null. From its loop, for
  // which Stop() waits: takes no lock that is held across Stop().
  std::function<void()> replica_changed;
};

// kRecovering: the workers have died and others are on their way; requests are accepted and wait.
enum class CoordinatorState { kLoading, kServing, kRecovering, kDraining, kFailed, kStopped };
absl::string_view Name(CoordinatorState state);  // "loading", "serving", ...

// Counters and gauges of one replica, or their sums over all.
struct EngineCounters {
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
  // Rows still to compute, as the router reckons (ReplicaLoad::work_tokens).
  int64_t reckoned_tokens = 0;
  // Tokens routed to each expert, over all steps and layers; empty for dense models.
  std::vector<int64_t> expert_tokens;

  void Add(const EngineCounters& other);
  // The largest of expert_tokens over their mean, >= 1; 0 where there are none yet.
  double ExpertImbalance() const;
};

struct ReplicaStatus : EngineCounters {
  int replica = 0;
  CoordinatorState state = CoordinatorState::kLoading;  // never kDraining
  absl::Status failure;                                 // kFailed: what ended the group
  // Epoch, layout, ranks of the group that is or was up last; empty while the first loads.
  GroupInfo group;
  int64_t recoveries = 0;
  std::optional<Recovery> last_recovery;
  absl::Time first_result;  // of the present group; InfinitePast: none yet
};

// Every replica's part is a consistent snapshot, as of its loop's last turn.
struct CoordinatorStatus : EngineCounters {
  // kFailed: every replica has failed. kRecovering: of those that have not, none is up.
  CoordinatorState state = CoordinatorState::kLoading;
  absl::Status failure;  // kFailed: what ended each group
  std::string layout;    // of all ranks, "dp=2,tp=2"; empty while loading
  GroupInfo group;       // the first replica's
  std::vector<ReplicaStatus> replicas;
};

class Coordinator {
 public:
  // One source per replica, at least one.
  Coordinator(CoordinatorOptions options, std::vector<std::unique_ptr<GroupSource>> sources);
  // Groups that can't be replaced, one per replica; none has been started.
  Coordinator(CoordinatorOptions options, std::vector<std::unique_ptr<WorkerGroup>> groups);
  Coordinator(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group);
  ~Coordinator();  // Stop()s
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Starts the groups, all at once, blocking until every rank has loaded, then the loops. Once
  // only. INVALID_ARGUMENT: options out of range. FAILED_PRECONDITION: ranks of two replicas don't
  // agree. Else the first error of a group; the other groups are then stopped.
  absl::Status Start();

  // Validates and queues; returns at once. After an error `callback` is never called; after OK it
  // gets events up to and including exactly one with done = true.
  // INVALID_ARGUMENT naming the field; ALREADY_EXISTS: a live request has that id;
  // RESOURCE_EXHAUSTED: the queue is full, or no replica's KV memory can ever hold the request;
  // DEADLINE_EXCEEDED: the deadline has passed; UNAVAILABLE: loading, draining, stopped, or every
  // replica has failed.
  absl::StatusOr<RequestHandle> Submit(GenerateRequest request, EventCallback callback);

  // The request ends with CANCELLED and its blocks are free by the end of the step in flight.
  // False: no live request has that id.
  bool Cancel(absl::string_view request_id);

  CoordinatorStatus GetStatus() const;
  // As in the status.
  std::string layout() const;

  // Refuses new requests from now on and waits until every accepted one has ended.
  // DEADLINE_EXCEEDED: some had not after `timeout`; they go on.
  absl::Status Drain(absl::Duration timeout);

  // Ends unfinished requests with UNAVAILABLE, saying how far each had come, the loops and the
  // groups. Idempotent.
  void Stop();

  // Makes the loops look at the clock again; for clocks that don't advance by themselves.
  void Wake();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_COORDINATOR_H_
