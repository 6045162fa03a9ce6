// The scheduler: continuous batching under a token budget (Yu et al., OSDI 2022), chunked prefill
// (Agrawal et al., arXiv:2308.16369), paged KV with preemption by recompute, prefix reuse, n
// samples that share their prompt's blocks (Kwon et al., arXiv:2309.06180), FCFS.
//
// Sequence parallelism: each of the sp ranks holds num_blocks KV blocks. Block ids of a plan are
// global, id g lies on sp rank g / num_blocks as its local block g % num_blocks, and a sequence's
// block with absolute index b lies on the rank that owns stripe b mod V (block_striping.h). Memory
// is therefore counted rank by rank. A copy stays on its rank: source and destination have the same
// absolute index.
//
// No threads, no I/O, no clock of its own: it is simulated and fuzzed. What it decides never
// changes a token (section 1 of the design), only when it comes.
//
// Pipeline parallelism: up to max_plans_in_flight plans are out, one for each stage. Ranks handle
// plans in order, so a plan may build on what an earlier one stores; what it can't build on is a
// token that an earlier one chooses. A sequence is therefore in several plans at once only with
// consecutive prefill chunks, of which the newest alone may be the one that a token is chosen from:
// the chunks of one long prompt fill a pipeline. Otherwise plans are over disjoint sequences.
// Decodes are shared evenly between the plans, and prefills smaller than the budget are cut so that
// every stage gets work. Blocks are freed and published at commit, and a block that was freed may
// be written by a plan that is made afterwards, while earlier ones that read it are still out: they
// have read it before, on each rank, by the same order.
//
// Look-ahead: with one plan in flight in which every running sequence chooses its next token, the
// one after it can be made at once: each sequence feeds the token that is being chosen
// (SequenceStep::pending_slot), so that the ranks go on without waiting for the result to come and
// the next plan to go. A sequence that ends with the token has had one row computed for nothing;
// it is dropped at commit like that of a cancelled request. Not where the plan would need more than
// the token (penalties), memory that isn't free, or a place for something that waits.
//
// Use: Add requests; while Schedule() gives a plan, have it computed; Commit() results in the
// plans' order; TakeOutputs() after any call.
#ifndef PHALANX_RUNTIME_SCHEDULER_SCHEDULER_H_
#define PHALANX_RUNTIME_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/cache/block_striping.h"
#include "runtime/sampling/sampling_params.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::scheduler {

struct SchedulerOptions {
  int64_t max_batch_tokens = 2048;   // rows of one plan, >= 1
  int64_t max_batch_sequences = 64;  // sequences in one plan, >= 1
  int64_t prefill_chunk = 0;         // rows of one sequence in one plan; 0: max_batch_tokens
  // With several plans in flight, prompts that would fill fewer plans than stages are cut into
  // plans of equal size, which hold at least so many prefill rows, >= 1.
  int64_t min_prefill_chunk = 64;
  int64_t max_queued_requests = 1024;  // not yet admitted, >= 1
  int64_t max_plans_in_flight = 1;     // pipeline stages, >= 1
  bool look_ahead = false;             // used with one plan in flight: a second one may follow it
  int64_t num_blocks = 0;              // KV blocks that every sp rank holds, >= 1
  int sequence_ranks = 1;              // sp, 1 to sequence_stripes
  int sequence_stripes = 8;            // V of the profile, >= 1
  int32_t block_tokens = 32;           // the profile's block size
  int64_t max_context = 0;             // tokens of prompt and answer together, >= 2
  std::vector<int32_t> eos_token_ids;
  bool prefix_reuse = true;
};
// INVALID_ARGUMENT naming the option.
absl::Status ValidateOptions(const SchedulerOptions& options);

// What the coordinator asks for; validated there (validate.h).
struct RequestSpec {
  uint64_t request_id = 0;      // the caller's, unique among unfinished requests
  std::vector<int32_t> prompt;  // at least one, fewer than max_context
  sampling::SamplingParams sampling;
  int64_t max_tokens = 0;  // per sample, >= 1; the context may end a sample earlier
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t n = 1;
  std::string cache_salt;
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason {
  kNone,    // not finished
  kStop,    // an eos or stop id, or a stop string
  kLength,  // max_tokens or the context
};

struct SampleToken {
  int32_t sample_index = 0;
  TokenLogprobs token;
  FinishReason finish = FinishReason::kNone;  // this token was the sample's last
  int32_t stop_token_id = -1;                 // kStop: the id that ended it
  int64_t num_generated = 0;                  // this one included
};

struct RequestOutput {
  uint64_t request_id = 0;
  bool admitted = false;      // left the queue for the first time; the tokens below come later
  int64_t cached_tokens = 0;  // with `admitted`
  std::vector<TokenLogprobs> prompt_logprobs;  // with the first tokens
  std::vector<SampleToken> tokens;
  bool done = false;        // the last output of the request
  absl::Status status;      // done: OK or why it ended early
  int64_t preemptions = 0;  // done: how often one of its samples was preempted
};

struct SchedulerStats {
  int64_t queued_requests = 0;    // never admitted yet
  int64_t running_requests = 0;   // admitted, unfinished (preempted ones too)
  int64_t running_sequences = 0;  // hold blocks
  int64_t plans_in_flight = 0;
  int64_t steps = 0;          // committed
  int64_t prompt_tokens = 0;  // rows computed that were not decodes
  int64_t cached_tokens = 0;  // rows that a prefix hit saved
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  cache::BlockPoolStats blocks;
};

class Scheduler {
 public:
  // Precondition: ValidateOptions(options).ok(). `epoch` goes into every plan.
  Scheduler(SchedulerOptions options, uint64_t epoch);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // OK when `spec`, alone in the pool, can run to its end; RESOURCE_EXHAUSTED naming the blocks
  // needed and available and, where sp > 1, the sp rank that is short first. Reads options only.
  static absl::Status CheckFits(const SchedulerOptions& options, const RequestSpec& spec);

  // Queues. INVALID_ARGUMENT, ALREADY_EXISTS (request_id), RESOURCE_EXHAUSTED (queue full, or
  // CheckFits).
  absl::Status Add(RequestSpec spec);

  // Ends the request with `status`. What is in flight is computed and dropped; its blocks are free
  // after the commit of the last plan that it is in, at once when there is none. False: no such
  // unfinished request.
  bool Cancel(uint64_t request_id, absl::Status status);

  // Ends one sample with kStop: its text completed a stop string. Its last SampleToken was reported
  // without a finish. False: no such unfinished sample. Between the Commit() that gave the token
  // and the next Schedule(): what is in flight of the sample can then only be a look ahead.
  bool FinishSample(uint64_t request_id, int32_t sample_index);

  // Ends requests whose deadline is at or before `now` with DEADLINE_EXCEEDED.
  void Expire(absl::Time now);
  // The earliest deadline of an unfinished request; InfiniteFuture: none.
  absl::Time NextDeadline() const;

  // The next plan, or nullopt: nothing to do, or max_plans_in_flight are out (and one more, where
  // the scheduler may look ahead).
  std::optional<StepPlan> Schedule();

  // Takes the result of the oldest plan in flight. INTERNAL when the result doesn't answer that
  // plan (then nothing has changed: treat the group as broken).
  absl::Status Commit(const StepResult& result);

  // What has happened since the last call, in order; one entry per request and call.
  std::vector<RequestOutput> TakeOutputs();

  // The worker group has died. Requests that were in flight are suspects: one that is in flight at
  // two deaths without having come further in between is computed alone from then on, until it
  // comes further, and one that is alone in flight at such a death ends with INTERNAL and `cause`
  // (it is quarantined: whatever it is that kills the workers must not end its neighbours).
  // Everything else is as after Restart() with the next epoch and the same memory.
  // `newest_was_sent`: false where the group was found dead when the newest plan was to be handed
  // over; then nobody began to compute it.
  void OnGroupDeath(const absl::Status& cause, bool newest_was_sent = true);

  // A new worker group with empty KV memory takes over: plans in flight are forgotten and every
  // unfinished request is queued again as its prompt and committed tokens, the boundary kept, in
  // its old order. Requests that the new pool can never hold end with RESOURCE_EXHAUSTED. The new
  // group's `num_blocks` (per sp rank), sp and number of plans are >= 1; a 0 for one of the last
  // two leaves it as it is.
  void Restart(uint64_t epoch, int64_t num_blocks, int sequence_ranks = 0,
               int64_t max_plans_in_flight = 0);

  // A request that has left its scheduler, with all that is known of it.
  class Departed;
  // All unfinished requests leave, in their order; nothing is said of them in outputs.
  // Precondition: no plan is in flight.
  std::vector<Departed> TakeUnfinished();
  // A request of another scheduler of the same model goes on here exactly where it was, behind
  // those that are here. One that the pool can never hold ends with RESOURCE_EXHAUSTED.
  // Precondition: its request_id is nobody else's here.
  void Adopt(Departed request);

  SchedulerStats stats() const;
  uint64_t epoch() const { return epoch_; }
  // For tests: the pool's invariants, and reference counts against the block tables.
  absl::Status CheckInvariants() const;

 private:
  struct Request;
  struct Sequence;
  struct InFlight;
  // FCFS: by arrival, then sample.
  using Order = std::pair<uint64_t, int32_t>;
  static Order OrderOf(const Sequence& sequence);

  RequestOutput& OutputOf(const Request& request);
  bool MakeWritable(Sequence& sequence, StepPlan& plan);
  bool PreemptFor(const Sequence& sequence, int64_t index);
  void Preempt(Sequence& sequence);
  bool Admit(Sequence& sequence);
  int64_t DecodeShare(int64_t decoding) const;
  int64_t PrefillShare(int64_t rows) const;
  static int32_t SlotOf(const InFlight& plan, const Sequence& sequence);
  // The plan that follows the one in flight before its tokens are known, if there may be one.
  std::optional<StepPlan> LookAhead();
  void AddToPlan(Sequence& sequence, int64_t count, StepPlan& plan, InFlight& in_flight);
  absl::Status CheckResult(const InFlight& plan, const StepResult& result) const;
  void CommitSequence(Sequence& sequence, int64_t count, const SequenceResult& result);
  void PublishFullBlocks(Sequence& sequence);
  void AppendToken(Sequence& sequence, const TokenLogprobs& token);
  // Whether the sample has all its tokens once the sequence is `size` long.
  bool EndsByLength(const Sequence& sequence, int64_t size) const;
  void ReleaseBlocks(Sequence& sequence);
  void FinishSequence(Sequence& sequence);
  // Erases the request: keep a shared_ptr if it is used afterwards.
  void EndRequest(Request& request, absl::Status status);

  void MakePool();
  // How far the request has ever come, in rows computed and tokens chosen: what has been repeated
  // after a preemption or a death doesn't count twice.
  static int64_t ReachedBy(const Request& request);
  // The oldest request that has to be computed alone, or null.
  Request* Isolated() const;
  std::optional<StepPlan> ScheduleIsolated(Request& request);
  std::optional<StepPlan> Finish(StepPlan plan, InFlight in_flight);

  SchedulerOptions options_;
  cache::BlockStriping striping_;
  uint64_t epoch_ = 0;
  uint64_t next_plan_ = 1;
  uint64_t next_arrival_ = 1;
  uint64_t next_sequence_ = 1;
  std::unique_ptr<cache::BlockPool> pool_;
  cache::BlockPoolStats counted_before_;                   // by the pools of earlier epochs
  std::map<uint64_t, std::shared_ptr<Request>> requests_;  // unfinished, by request_id
  std::map<Order, Sequence*> waiting_;                     // hold no blocks
  std::map<Order, Sequence*> running_;                     // hold blocks, unfinished
  std::set<std::pair<absl::Time, uint64_t>> deadlines_;
  std::deque<InFlight> in_flight_;
  std::vector<RequestOutput> outputs_;
  std::map<uint64_t, size_t> output_index_;  // of each request's entry in outputs_
  SchedulerStats counters_;
};

class Scheduler::Departed {
 public:
  uint64_t request_id() const;

 private:
  friend class Scheduler;
  explicit Departed(std::shared_ptr<Request> request) : request_(std::move(request)) {}
  std::shared_ptr<Request> request_;
};

}  // namespace phalanx::scheduler

#endif  // PHALANX_RUNTIME_SCHEDULER_SCHEDULER_H_
