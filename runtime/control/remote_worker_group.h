// A worker group whose ranks are processes that reach the coordinator over the control stream.
#ifndef PHALANX_RUNTIME_CONTROL_REMOTE_WORKER_GROUP_H_
#define PHALANX_RUNTIME_CONTROL_REMOTE_WORKER_GROUP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/control/control_server.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::control {

struct RemoteGroupOptions {
  uint64_t epoch = 1;  // rising from group to group of a replica
  int replica = 0;     // data-parallel replica: ranks of others don't come to this group
  int world_size = 1;  // ranks to wait for
  // The only rank that may send results: the first of the last pipeline stage, (pp - 1) * sp * tp.
  // A result from any other ends the group.
  int result_rank = 0;
  // Where ranks were told to register, for messages. Empty: not said.
  std::string address;
  // What every rank must be started with; compared with its own. Empty: the ranks are only compared
  // with each other. The digest of the known-answer runs is always compared between ranks (R6).
  std::string layout;
  std::string profile;
  std::string checkpoint_digest;
  // What steps and contexts may be as large as: ranks that were sized for less are refused. 0: any.
  int64_t max_step_tokens = 0;
  int64_t max_context = 0;

  absl::Duration start_timeout = absl::Minutes(10);  // until the last rank has loaded
  // From `launch` until the last rank has registered; without `launch` there is no such limit.
  absl::Duration register_timeout = absl::Minutes(1);
  // A registered rank that is not heard of for longer is stopped, or its host out of reach. Ranks
  // send a heartbeat every second, loading or not.
  absl::Duration heartbeat_timeout = absl::Seconds(10);
  // A step is out, every rank is heard of, but none has begun a step or a collective for so long:
  // they wait for each other. Only where there are several ranks; a rank alone has no collectives.
  absl::Duration hang_timeout = absl::Seconds(30);
  absl::Duration step_timeout = absl::Minutes(5);  // a step that takes longer is a hang
  absl::Duration stop_timeout = absl::Seconds(5);  // for ranks to leave by themselves
  // A peer finds a process dead as soon as its first thread is; its end can be seen after its last.
  // So long the end of one on this host is waited for before the peer that reports is named.
  absl::Duration naming_patience = absl::Milliseconds(500);

  // All hooks are optional and are called without locks held.
  // Starts the rank processes; called once by Start, when ranks can be accepted.
  std::function<absl::Status()> launch;
  // Whether what `launch` started still runs; called about ten times a second from one thread at a
  // time. An error ends the group, e.g. "mpirun exited with code 1".
  std::function<absl::Status()> liveness;
  // Ends what is left of the processes and waits for them; called once by Stop. `fence`: the group
  // has died; nothing of it may go on, and nothing that it would say is of interest.
  std::function<void(bool fence)> terminate;
  // Bytes loaded so far and in total, all ranks together; only while Start runs.
  std::function<void(int64_t loaded, int64_t total)> on_progress;
  // One line for the log: a rank registered, refused, left early.
  std::function<void(absl::string_view)> log;
};

// The last that was heard of a rank.
struct RankHealth {
  int rank = 0;             // in its replica
  uint64_t step = 0;        // last step begun
  uint64_t collective = 0;  // number of collectives begun
  absl::Duration age;       // time since the last heartbeat
  int replica = 0;
};

class RemoteWorkerGroup final : public coordinator::WorkerGroup {
 public:
  // `server` outlives the group.
  RemoteWorkerGroup(ControlServer& server, RemoteGroupOptions options);
  ~RemoteWorkerGroup() override;  // Stop()

  // Waits until world_size ranks have registered and loaded. DEADLINE_EXCEEDED (start_timeout)
  // names the ranks that are missing; the first error that a rank reports is returned as it is, the
  // rank named. UNAVAILABLE: what had begun to load has died or fallen silent, which may pass;
  // ABORTED: what `launch` started ended, by `liveness`, before any rank had registered. All end
  // with the last refusal, if there was one. FAILED_PRECONDITION: the weights that ranks have read
  // differ, or another group of this replica is attached to the server. INVALID_ARGUMENT: the
  // server is for fewer replicas, or result_rank is no rank. Once per object.
  absl::StatusOr<coordinator::GroupInfo> Start(ResultCallback on_result) override;
  // UNAVAILABLE: the group is dead or stopped. `plan.epoch` is that of GroupInfo.
  absl::Status Submit(scheduler::StepPlan plan) override;
  // Tells the ranks to leave, waits up to stop_timeout, breaks what streams are left, calls
  // `terminate`. Of a group that has died: breaks the streams and terminates at once. May be called
  // while Start runs in another thread, which then returns CANCELLED; not from a callback or a
  // hook.
  void Stop() override;

  // By rank, the registered ones. Any thread.
  std::vector<RankHealth> Health() const;
  // The same for somebody who may outlive the group; then nothing.
  std::function<std::vector<RankHealth>()> HealthReader() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_REMOTE_WORKER_GROUP_H_
