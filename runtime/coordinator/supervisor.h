// Keeps one replica in worker groups: starts the first, and another whenever one has died, until it
// is stopped or gives up. Private to runtime/coordinator.
//
// A group is one unit of failure with an epoch. Whoever owns the supervisor says that the group is
// dead (a result that is an error, a plan that can't be submitted); the supervisor then fences it
// (nothing of it runs or is listened to any more), asks its source for the next and starts that.
#ifndef PHALANX_RUNTIME_COORDINATOR_SUPERVISOR_H_
#define PHALANX_RUNTIME_COORDINATOR_SUPERVISOR_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/coordinator/group_source.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::coordinator {

struct RestartOptions {
  // Groups that may fail one after the other, not counting one that died after it had computed
  // something or been up for settled_after. 0: a group that dies is not replaced.
  int max_tries = 10;
  absl::Duration settled_after = absl::Minutes(1);
  // max_tries 0: why, and what the user can do; said after the cause of the death.
  std::string why_never;
  // Before the second try in a row; doubled for each that follows, up to longest_pause.
  absl::Duration first_pause = absl::Milliseconds(200);
  absl::Duration longest_pause = absl::Seconds(5);
};

// One recovery, for status and measurements.
struct Recovery {
  uint64_t epoch = 0;  // of the new group
  std::string cause;
  absl::Time noticed;  // that the group before is dead
  absl::Time fenced;   // that one has been stopped
  absl::Time started;  // the start of the new one, the last of its tries, began
  absl::Time up;       // it has loaded
};

class Supervisor {
 public:
  // Called from any thread, with no lock of the supervisor held.
  struct Callbacks {
    // Of the group of that epoch, as WorkerGroup::ResultCallback.
    std::function<void(uint64_t epoch, absl::StatusOr<scheduler::StepResult>)> on_result;
    // A group is up; `recovery` is null for the first.
    std::function<void(const GroupInfo& info, const Recovery* recovery)> on_up;
    // There will be no group any more.
    std::function<void(const absl::Status& why)> on_gave_up;
    // A line for the log.
    std::function<void(const std::string& line)> log;
    std::function<absl::Time()> clock;
  };

  // `source` is used by the supervisor's thread alone.
  Supervisor(std::unique_ptr<GroupSource> source, RestartOptions options, Callbacks callbacks);
  ~Supervisor();  // Stop()s

  // Starts the thread, which brings up the first group. Once.
  void Begin();
  // To the group that is up. UNAVAILABLE: there is none.
  absl::Status Submit(scheduler::StepPlan plan);
  // The group of that epoch has died. Ignored where it is not the present one.
  void Down(uint64_t epoch, const absl::Status& cause);
  // The present group has computed a step: what comes now is no failure in a row.
  void NoteProgress();
  // Ends the group and the thread. Idempotent, from any thread but the callbacks'.
  void Stop();

 private:
  void Main();
  // Makes and starts a group. The caller stops it.
  absl::StatusOr<GroupInfo> StartGroup(const GroupNeed& need, std::shared_ptr<WorkerGroup>* group);
  void StopGroup();
  // False: stopped meanwhile.
  bool Pause(absl::Duration duration);

  const std::unique_ptr<GroupSource> source_;
  const RestartOptions options_;
  const Callbacks callbacks_;

  std::mutex stop_group_mu_;  // WorkerGroup::Stop is called by one thread at a time
  std::mutex mu_;
  std::condition_variable changed_;
  // Guarded by mu_.
  std::shared_ptr<WorkerGroup> group_;  // starting or up
  uint64_t epoch_ = 0;                  // of group_
  bool up_ = false;
  bool down_ = false;  // the group of epoch_ has died
  absl::Status cause_;
  absl::Time noticed_;
  bool progress_ = false;
  bool stop_ = false;

  std::thread thread_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_SUPERVISOR_H_
