// One data-parallel replica: a worker group, its scheduler, the loop thread over both and the
// mailbox through which everybody else talks to it. Private to runtime/coordinator.
#ifndef PHALANX_RUNTIME_COORDINATOR_REPLICA_H_
#define PHALANX_RUNTIME_COORDINATOR_REPLICA_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/router.h"
#include "runtime/coordinator/text_stream.h"

namespace phalanx::coordinator {

// A request between Submit and its last event. Filled by the coordinator, then its replica's
// loop's.
struct LiveRequest {
  uint64_t serial = 0;          // unique over all replicas
  GenerateRequest request;      // its prompt and sampling have moved to `spec`
  scheduler::RequestSpec spec;  // moved to the scheduler
  EventCallback callback;
  uint64_t seed = 0;
  absl::Time submitted;
  bool admitted = false;
  bool has_first_token = false;
  std::vector<std::unique_ptr<TextStream>> texts;  // by sample
  Usage usage;

  // For routing. The prompt's hasher, then one per sample; empty: prefixes don't matter.
  std::vector<PrefixHasher> prefixes;
  int64_t prompt_work = 0;              // rows reckoned until the first token
  std::vector<int64_t> tokens_to_come;  // by sample, reckoned
  int64_t held_tokens = 0;              // as in ReplicaLoad
};

// What a replica tells its coordinator, from its loop thread and with no lock held.
class ReplicaOwner {
 public:
  virtual ~ReplicaOwner() = default;
  // The request's last event is about to be delivered: its id is free.
  virtual void OnEnding(const LiveRequest& live) = 0;
  // It has been delivered.
  virtual void OnEnded() = 0;
};

class Replica {
 public:
  // `options` and `owner` outlive the replica.
  Replica(int index, const CoordinatorOptions& options, std::unique_ptr<WorkerGroup> group,
          ReplicaOwner& owner);
  ~Replica();  // Stop()s

  // Start in two halves, so that all replicas load at the same time. The group is started and
  // stopped by the loop thread: what a group's launch hook starts may be tied to the life of its
  // thread.
  void BeginStart();
  // Blocks until the group has loaded. Then the loop runs.
  absl::Status AwaitStart();

  // For a replica that has started.
  const GroupInfo& group_info() const { return info_; }
  const scheduler::SchedulerOptions& scheduler_options() const { return scheduler_options_; }
  // Whether the group is there; requests submitted to one that isn't end UNAVAILABLE.
  bool alive() const;
  absl::Status failure() const;  // OK while alive
  int64_t queued() const { return queued_; }
  ReplicaLoad load() const;
  PrefixIndex& prefixes() { return prefixes_; }

  // Takes a request over: from now on its callback is called.
  void Submit(std::unique_ptr<LiveRequest> live);
  void Cancel(uint64_t serial);
  ReplicaStatus GetStatus() const;
  // Ends unfinished requests with UNAVAILABLE, the loop and the group. Idempotent. One caller at a
  // time.
  void Stop();
  void Wake();

 private:
  struct Mailbox {
    std::vector<std::unique_ptr<LiveRequest>> submissions;
    std::vector<uint64_t> cancellations;
    std::vector<absl::StatusOr<scheduler::StepResult>> results;
    bool empty() const { return submissions.empty() && cancellations.empty() && results.empty(); }
  };
  // Totals at one moment, for rates.
  struct Mark {
    absl::Time time;
    int64_t prompt_tokens = 0;
    int64_t generated_tokens = 0;
  };

  // One caller at a time: the loop thread, and Stop() during the start.
  void StopGroup();

  // The loop thread's.
  void Main();
  absl::Status StartGroup();
  absl::Status MakeSchedulerOptions();
  void Run();
  bool WaitForMail(Mailbox& mail);  // false: stop
  void Accept(std::unique_ptr<LiveRequest> live);
  void Commit(absl::StatusOr<scheduler::StepResult> result);
  void SubmitPlans();
  void Fail(const absl::Status& cause);
  void EndAll(const absl::Status& status);
  void Deliver();
  void DeliverOne(LiveRequest& live, scheduler::RequestOutput output);
  void Account(LiveRequest& live, const scheduler::SampleToken& token);
  void CloseAccount(LiveRequest& live);
  // Adds the token's text to `out`; true when its sample ended with a stop string.
  bool AddText(LiveRequest& live, const scheduler::SampleToken& token, SampleOutput& out);
  void PublishStatus();

  const int index_;
  const CoordinatorOptions& options_;
  const std::unique_ptr<WorkerGroup> group_;
  std::mutex group_stop_mu_;
  ReplicaOwner& owner_;

  PrefixIndex prefixes_;
  std::atomic<int64_t> queued_{0};  // accepted, not admitted
  std::atomic<int64_t> work_tokens_{0};
  std::atomic<int64_t> held_tokens_{0};

  mutable std::mutex mu_;
  std::condition_variable mail_came_;
  std::condition_variable started_;
  // Guarded by mu_.
  CoordinatorState state_ = CoordinatorState::kLoading;  // kLoading, kServing, kFailed, kStopped
  absl::Status failure_;
  absl::StatusOr<bool> start_ = false;  // true: the loop runs
  Mailbox mailbox_;
  bool wake_ = false;
  bool stop_ = false;
  ReplicaStatus status_;
  std::deque<Mark> marks_;

  std::thread thread_;

  // Written before the start is over, read-only afterwards.
  GroupInfo info_;
  scheduler::SchedulerOptions scheduler_options_;
  int64_t kv_tokens_ = 0;  // of the whole group

  // The loop thread's alone.
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::map<uint64_t, std::unique_ptr<LiveRequest>> live_;
  bool failed_ = false;
  int64_t compute_us_ = 0;
  int64_t finished_requests_ = 0;
  std::vector<int64_t> expert_tokens_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_REPLICA_H_
