// A rank's end of the control plane.
#ifndef PHALANX_RUNTIME_CONTROL_WORKER_CLIENT_H_
#define PHALANX_RUNTIME_CONTROL_WORKER_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/control_server.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::control {

// Who this rank is; compared with the coordinator and the other ranks.
struct WorkerIdentity {
  int rank = 0;
  int world_size = 1;
  int replica = 0;  // data-parallel replica that the rank belongs to
  // Of the worker group that the rank was started for; 0: whichever is there.
  uint64_t epoch = 0;
  std::string host;
  int64_t pid = 0;
  int64_t launcher_pid = 0;  // the process that started this one; 0: not told
  std::string device;        // Kernels::Describe()
  std::string layout;        // of the worker group: "pp=2,tp=2"
  std::string profile;
  int64_t max_step_tokens = 0;  // rows of the largest step it was sized for; 0: not told
  int64_t max_context = 0;      // and tokens of a context
  std::string op_digest;
  std::string checkpoint_digest;
  std::string build_version;
  int protocol_version = kProtocolVersion;
};

struct WorkerClientOptions {
  std::string coordinator;  // "HOST:PORT"
  std::string token;
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration heartbeat_interval = absl::Seconds(1);
  // A coordinator that answers no ping for their sum counts as gone.
  absl::Duration keepalive_time = absl::Seconds(4);
  absl::Duration keepalive_timeout = absl::Seconds(6);
  // Number of the last collective begun (Communicator::collective_number), for heartbeats. Called
  // from the heartbeat thread.
  std::function<uint64_t()> collective_number;
  // Number of layers computed so far; likewise.
  std::function<uint64_t()> layers_computed;
  // Called at most once, from a thread of the client: the coordinator is gone, which nobody asked
  // for. A worker process ends itself here, so that it never outlives its coordinator. Not called
  // after a SendError or the start of the destructor; a rank that was asked to leave and is still
  // busy when the stream ends has been given up.
  std::function<void(const absl::Status&)> on_disconnect;
  // Called at most once, from a thread of the client: the coordinator has asked this rank to leave.
  // The lead also learns it from NextPlan.
  std::function<void(const std::string& reason)> on_shutdown;
};

// One stream to the coordinator. Methods may be called from any thread; NextPlan from one.
class WorkerClient {
 public:
  // Connects and registers, trying again until connect_timeout. UNAVAILABLE: nobody answers there.
  // FAILED_PRECONDITION: refused, with the coordinator's reason. DEADLINE_EXCEEDED: something
  // answers, but does not accept ranks.
  static absl::StatusOr<std::unique_ptr<WorkerClient>> Connect(const WorkerClientOptions& options,
                                                               const WorkerIdentity& identity);
  ~WorkerClient();
  WorkerClient(const WorkerClient&) = delete;
  WorkerClient& operator=(const WorkerClient&) = delete;

  uint64_t epoch() const;

  // How far loading is. Cheap enough to call for every tensor: sent at most ten times a second and
  // when complete.
  void ReportProgress(int64_t bytes_loaded, int64_t bytes_total);
  // The rank can compute. Sizes as in coordinator::RankInfo.
  absl::Status ReportReady(int64_t weight_bytes, int64_t kv_block_bytes, int64_t kv_blocks,
                           const std::string& content_digest = "",
                           const coordinator::RankTimes& times = {});

  // Blocks until a plan arrives (lead only) or the coordinator asks to leave: nullopt. UNAVAILABLE:
  // the coordinator is gone.
  absl::StatusOr<std::optional<scheduler::StepPlan>> NextPlan();
  absl::Status SendResult(const scheduler::StepResult& result);
  // Reports that this rank cannot go on (`step` 0: outside steps) and waits up to two seconds until
  // the coordinator has taken note. Nothing can be sent afterwards.
  void SendError(const absl::Status& error, uint64_t step);
  // For the heartbeats of ranks that get no plans from here; NextPlan notes the lead's own.
  void NoteStep(uint64_t step);

 private:
  class Impl;
  explicit WorkerClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_WORKER_CLIENT_H_
