// A worker group whose ranks are threads of this process: for tests, one-process runs and debugging
// a layout without mpirun.
#ifndef PHALANX_RUNTIME_WORKER_IN_PROCESS_GROUP_H_
#define PHALANX_RUNTIME_WORKER_IN_PROCESS_GROUP_H_

#include <memory>

#include "runtime/coordinator/worker_group.h"
#include "runtime/worker/worker.h"

namespace phalanx::worker {

// `options` are those of every rank; `options.progress` is called by rank 0 alone.
std::unique_ptr<coordinator::WorkerGroup> CreateInProcessGroup(const WorkerOptions& options);

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_IN_PROCESS_GROUP_H_
