// The coordinator's loop thread and the mailbox through which everybody else talks to it. Private
// to coordinator.cc and loop.cc.
#ifndef PHALANX_RUNTIME_COORDINATOR_LOOP_H_
#define PHALANX_RUNTIME_COORDINATOR_LOOP_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/text_stream.h"

namespace phalanx::coordinator {

class Coordinator::Loop {
 public:
  Loop(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group);
  ~Loop();

  absl::Status Start();
  absl::StatusOr<RequestHandle> Submit(GenerateRequest request, EventCallback callback);
  bool Cancel(absl::string_view request_id);
  CoordinatorStatus GetStatus() const;
  absl::Status Drain(absl::Duration timeout);
  void Stop();
  void Wake();

 private:
  // A request between Submit and its last event. Handed over through the mailbox, then the loop's.
  struct Live {
    uint64_t serial = 0;
    GenerateRequest request;      // its prompt and sampling have moved to `spec`
    scheduler::RequestSpec spec;  // moved to the scheduler
    EventCallback callback;
    uint64_t seed = 0;
    absl::Time submitted;
    bool admitted = false;
    bool has_first_token = false;
    std::vector<std::unique_ptr<TextStream>> texts;  // by sample
    Usage usage;
  };
  struct Mailbox {
    std::vector<std::unique_ptr<Live>> submissions;
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

  absl::Status CheckAccepting() const;  // mu_ held
  std::string DrawId();                 // mu_ held

  // The loop thread's.
  void Run();
  bool WaitForMail(Mailbox& mail);  // false: stop
  void Accept(std::unique_ptr<Live> live);
  void Commit(absl::StatusOr<scheduler::StepResult> result);
  void SubmitPlans();
  void Fail(absl::Status cause);
  void EndAll(const absl::Status& status);
  void Deliver();
  void DeliverOne(Live& live, scheduler::RequestOutput output);
  // Adds the token's text to `out`; true when its sample ended with a stop string.
  bool AddText(Live& live, const scheduler::SampleToken& token, SampleOutput& out);
  void PublishStatus();

  const CoordinatorOptions options_;
  const std::unique_ptr<WorkerGroup> group_;

  mutable std::mutex mu_;
  std::condition_variable mail_came_;
  std::condition_variable request_ended_;
  // Guarded by mu_.
  CoordinatorState state_ = CoordinatorState::kLoading;
  absl::Status failure_;
  Mailbox mailbox_;
  bool wake_ = false;
  bool stop_ = false;
  std::unordered_map<std::string, uint64_t> live_ids_;
  int64_t queued_ = 0;      // accepted, not admitted
  int64_t unfinished_ = 0;  // accepted, last event not delivered
  uint64_t next_serial_ = 1;
  uint64_t id_prefix_ = 0;
  scheduler::SchedulerOptions scheduler_options_;  // fixed once serving
  CoordinatorStatus status_;
  std::deque<Mark> marks_;

  std::mutex stop_mu_;  // one Stop() at a time; taken before mu_
  std::thread thread_;

  // The loop thread's alone once it runs.
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::map<uint64_t, std::unique_ptr<Live>> live_;
  bool failed_ = false;
  int64_t compute_us_ = 0;
  int64_t finished_requests_ = 0;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_LOOP_H_
