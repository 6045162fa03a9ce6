// One process of an MPI job. Ranks of one node talk through shared memory, ranks of different nodes
// through MPI point-to-point messages.
//
// MPI is used for starting, and for non-blocking point-to-point only: every one of its collectives
// blocks without a limit and at full speed, so a stopped peer would hang the others unnoticed.
#ifndef PHALANX_COMM_MPI_MPI_ENVIRONMENT_H_
#define PHALANX_COMM_MPI_MPI_ENVIRONMENT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"

namespace phalanx::comm {

struct MpiOptions {
  // Threads that compute on each rank. Ranks spin briefly before they sleep only while all threads
  // of all ranks of the node fit on the cores they may use.
  int threads_per_rank = 1;
  // 0: nodes as they are. k > 0: ranks share memory only within k consecutive ones, as if each k
  // were a node of their own; 1 sends everything through MPI. For tests on one machine.
  int ranks_per_node = 0;
  // How long Init may wait for the other ranks once MPI_Init is through, and Finalize likewise.
  absl::Duration startup_timeout = absl::Seconds(60);
  absl::Duration shutdown_timeout = absl::Seconds(10);
  // As in LocalGroupOptions.
  int64_t slot_bytes = 1 << 20;
  int64_t ring_bytes = 1 << 16;
};

class MpiFabric;

// At most one in a process's life; not thread-safe but for World().Abort().
class MpiEnvironment {
 public:
  // Starts MPI and builds the world's communicator. Collective over all ranks of the job. Errors:
  // FAILED_PRECONDITION if MPI is in use already or offers no serialized threads, UNAVAILABLE if
  // MPI fails, DEADLINE_EXCEEDED naming the ranks that did not come.
  static absl::StatusOr<std::unique_ptr<MpiEnvironment>> Init(const MpiOptions& options = {});

  // Finalize(), its error ignored.
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  // All ranks of the job. Lives until Finalize(). Split calls in one process, on whichever
  // communicator, are made one after another.
  Communicator& World() { return *world_; }
  const std::string& hostname() const { return hostname_; }

  // Leaves the job; communicators made by Split are destroyed before. Waits for the other ranks, at
  // most options.shutdown_timeout: if one does not come or the world was aborted, returns the error
  // and leaves MPI as it is, since MPI_Finalize would hang; exit the process then, mpirun ends the
  // rest. If MPI_Finalize itself hangs, the process ends with code 1 after twice that time.
  absl::Status Finalize();

 private:
  MpiEnvironment() = default;
  absl::Status BuildWorld(const MpiOptions& options);

  std::string hostname_;
  absl::Duration shutdown_timeout_;
  bool finalized_ = false;
  std::shared_ptr<MpiFabric> fabric_;
  std::unique_ptr<Communicator> world_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_MPI_MPI_ENVIRONMENT_H_
