// One data-parallel replica: its worker groups, one after the other, its scheduler, the loop thread
// over both and the mailbox through which everybody else talks to it. Private to
// runtime/coordinator.
//
// While there is no group (the first is loading, or one has died and the next is on its way), the
// loop goes on: requests are queued, cancelled and expire. When the next group is up, every
// unfinished request goes on exactly where it was.
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
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/group_source.h"
#include "runtime/coordinator/router.h"
#include "runtime/coordinator/supervisor.h"
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

// What a replica tells its coordinator, from its loop thread and with no lock held; and what it
// asks, from any thread.
class ReplicaOwner {
 public:
  virtual ~ReplicaOwner() = default;
  // Of the whole service; never changes once a replica has started.
  virtual int num_replicas() const = 0;
  // The request's last event is about to be delivered: its id is free.
  virtual void OnEnding(const LiveRequest& live) = 0;
  // It has been delivered.
  virtual void OnEnded() = 0;
  // `replica` will have no group any more: its requests may go on elsewhere. Those that can't stay
  // in the list.
  struct Orphan {
    std::unique_ptr<LiveRequest> live;
    std::unique_ptr<scheduler::Scheduler::Departed> request;
  };
  virtual void Rehome(int replica, std::vector<Orphan>& orphans) = 0;
  // A cancellation came for a request that `replica` does not have any more.
  virtual void CancelElsewhere(int replica, uint64_t serial) = 0;
};

class Replica {
 public:
  // `options` and `owner` outlive the replica.
  Replica(int index, const CoordinatorOptions& options, std::unique_ptr<GroupSource> source,
          ReplicaOwner& owner);
  ~Replica();  // Stop()s

  // Start in two halves, so that all replicas load at the same time.
  void BeginStart();
  // Blocks until the first group has loaded. Then the loop runs.
  absl::Status AwaitStart();

  // For a replica that has started: of the group that is or was up last.
  GroupInfo group_info() const;
  std::string layout() const;
  scheduler::SchedulerOptions scheduler_options() const;
  // kServing: a group is there. kRecovering: requests wait for the next. kFailed: there will be
  // none; requests submitted end UNAVAILABLE.
  CoordinatorState state() const;
  absl::Status failure() const;  // kFailed: why; else OK
  int index() const { return index_; }
  int64_t queued() const { return queued_; }
  ReplicaLoad load() const;
  PrefixIndex& prefixes() { return prefixes_; }

  // Takes a request over: from now on its callback is called.
  void Submit(std::unique_ptr<LiveRequest> live);
  void Cancel(uint64_t serial);
  // Takes over a request of a replica that has none left to compute it.
  void Adopt(ReplicaOwner::Orphan orphan);
  ReplicaStatus GetStatus() const;
  // Ends unfinished requests with UNAVAILABLE, the loop and the group. Idempotent. One caller at a
  // time.
  void Stop();
  void Wake();

 private:
  // What the supervisor says, in order.
  struct Result {
    uint64_t epoch = 0;
    absl::StatusOr<scheduler::StepResult> result;
  };
  struct Up {
    GroupInfo info;
    std::optional<Recovery> recovery;
  };
  struct GaveUp {
    absl::Status why;
  };
  using News = std::variant<Result, Up, GaveUp>;
  struct Mailbox {
    std::vector<std::unique_ptr<LiveRequest>> submissions;
    std::vector<ReplicaOwner::Orphan> orphans;
    std::vector<uint64_t> cancellations;
    std::vector<News> news;
    bool empty() const {
      return submissions.empty() && orphans.empty() && cancellations.empty() && news.empty();
    }
  };
  // Rates are those of so long a time.
  static constexpr absl::Duration kRateWindow = absl::Seconds(10);
  // Totals at one moment, for rates.
  struct Mark {
    absl::Time time;
    int64_t prompt_tokens = 0;
    int64_t generated_tokens = 0;
  };

  // The request comes to this replica's account (+1), or leaves it (-1).
  void Reckon(const LiveRequest& live, int sign);
  Supervisor::Callbacks MakeCallbacks();
  void Post(News news);

  // The loop thread's.
  void Main();
  // From what a group says of itself.
  absl::StatusOr<scheduler::SchedulerOptions> MakeSchedulerOptions(const GroupInfo& info) const;
  void Run();
  bool WaitForMail(Mailbox& mail);  // false: stop
  void Accept(std::unique_ptr<LiveRequest> live);
  void Accept(ReplicaOwner::Orphan orphan);
  // Hands every request to other replicas, where there are any; the rest ends with `why`.
  void GiveAway(const std::string& why);
  void Handle(Result result);
  void Handle(Up up);
  void Handle(GaveUp gave_up);
  void SubmitPlans();
  // The group of that epoch is dead.
  void OnDeath(uint64_t epoch, const absl::Status& cause, bool newest_was_sent = true);
  // Every unfinished request ends; `why` says how far each had come where there is something to
  // say.
  void EndAll(absl::string_view why);
  void Deliver();
  void DeliverOne(LiveRequest& live, scheduler::RequestOutput output);
  void Account(LiveRequest& live, const scheduler::SampleToken& token);
  void CloseAccount(LiveRequest& live);
  // Adds the token's text to `out`; true when its sample ended with a stop string.
  bool AddText(LiveRequest& live, const scheduler::SampleToken& token, SampleOutput& out);
  void PublishStatus();

  const int index_;
  const CoordinatorOptions& options_;
  ReplicaOwner& owner_;

  PrefixIndex prefixes_;
  std::atomic<int64_t> queued_{0};  // accepted, not admitted
  std::atomic<int64_t> work_tokens_{0};
  std::atomic<int64_t> held_tokens_{0};

  mutable std::mutex mu_;
  std::condition_variable mail_came_;
  std::condition_variable started_;
  // Guarded by mu_.
  CoordinatorState state_ = CoordinatorState::kLoading;  // never kDraining
  absl::Status failure_;
  absl::StatusOr<bool> start_ = false;  // true: the first group is up
  GroupInfo info_;
  scheduler::SchedulerOptions scheduler_options_;
  Mailbox mailbox_;
  bool wake_ = false;
  bool stop_ = false;
  ReplicaStatus status_;
  std::deque<Mark> marks_;

  std::atomic<int64_t> kv_tokens_{0};  // of the whole group

  // The loop thread's alone.
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::map<uint64_t, std::unique_ptr<LiveRequest>> live_;
  bool up_ = false;            // the group of scheduler_->epoch() takes plans
  uint64_t dead_epoch_ = 0;    // the last that died
  bool first_result_ = false;  // of this epoch has come
  absl::Status gave_up_;       // not OK: there will be no group any more
  int64_t compute_us_ = 0;
  int64_t finished_requests_ = 0;
  std::vector<int64_t> expert_tokens_;

  // Last: their threads use the rest.
  std::thread thread_;
  Supervisor supervisor_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_REPLICA_H_
