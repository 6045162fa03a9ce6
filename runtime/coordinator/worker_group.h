// The coordinator's view of one group of ranks: real (mpirun workers behind the control stream),
// in-process (ranks as threads) and fake (tests).
#ifndef PHALANX_RUNTIME_COORDINATOR_WORKER_GROUP_H_
#define PHALANX_RUNTIME_COORDINATOR_WORKER_GROUP_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::coordinator {

// How long the parts of a rank's start took: for measurements. Zero where nobody measures.
struct RankTimes {
  absl::Duration mpi_init;
  absl::Duration open;       // Worker::Open
  absl::Duration registers;  // until the coordinator had accepted it
  absl::Duration weights;    // mapped and checked, or read and packed
  bool weights_were_kept = false;
  absl::Duration agreement;
  absl::Duration kv;
  absl::Duration total;  // from the process's start until all is loaded
};

// What a rank says of itself when it has loaded.
struct RankInfo {
  int rank = 0;
  std::string host;
  int64_t pid = 0;
  std::string device;     // Kernels::Describe()
  std::string op_digest;  // KnownAnswerDigest (R6)
  std::string checkpoint_digest;
  // Of every tensor slice that the rank's group has read, known once it has loaded: the same for
  // every layout of one checkpoint.
  std::string content_digest;
  int64_t weight_bytes = 0;    // packed weights held
  int64_t kv_block_bytes = 0;  // one block over all its layers
  int64_t kv_blocks = 0;       // blocks that fit its KV budget
  RankTimes times;
};

struct GroupInfo {
  uint64_t epoch = 0;
  std::string layout;           // "tp=2"
  std::vector<RankInfo> ranks;  // by rank
  // When its start began, the last rank registered, and the last rank had loaded.
  absl::Time launched = absl::InfinitePast();
  absl::Time registered = absl::InfinitePast();
  absl::Time loaded = absl::InfinitePast();
  // Blocks every rank can hold: what the block pool is sized by.
  int64_t kv_blocks() const {
    int64_t n = ranks.empty() ? 0 : ranks[0].kv_blocks;
    for (const RankInfo& r : ranks) n = r.kv_blocks < n ? r.kv_blocks : n;
    return n;
  }
};

class WorkerGroup {
 public:
  // Called from any thread, once per submitted plan in order, or once with an error, after which
  // the group is dead: the message names rank, host, pid and step where they are known.
  using ResultCallback = std::function<void(absl::StatusOr<scheduler::StepResult>)>;

  virtual ~WorkerGroup() = default;
  // Blocks until every rank has loaded and registered, and checks that they agree (R6).
  virtual absl::StatusOr<GroupInfo> Start(ResultCallback on_result) = 0;
  // Hands a plan to the ranks; returns at once. Plans are computed in the order submitted.
  virtual absl::Status Submit(scheduler::StepPlan plan) = 0;
  // Ends the ranks and waits for them. Idempotent. No callback runs after it returns.
  virtual void Stop() = 0;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_WORKER_GROUP_H_
