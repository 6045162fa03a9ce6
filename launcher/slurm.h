// What a Slurm allocation gives: https://slurm.schedmd.com/sbatch.html, "output environment
// variables".
#ifndef PHALANX_LAUNCHER_SLURM_H_
#define PHALANX_LAUNCHER_SLURM_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/env.h"
#include "launcher/options.h"
#include "launcher/placement.h"

namespace phalanx::launcher {

// "n[1-3,07],x" to n1, n2, n3, n07, x: SLURM_JOB_NODELIST. INVALID_ARGUMENT.
absl::StatusOr<std::vector<std::string>> ParseNodeList(const std::string& text);
// "2(x3),1" to 2, 2, 2, 1: SLURM_TASKS_PER_NODE. INVALID_ARGUMENT.
absl::StatusOr<std::vector<int>> ParseTaskCounts(const std::string& text);
// The nodes of the allocation, each with as many slots as it has tasks. INVALID_ARGUMENT.
absl::StatusOr<std::vector<HostSlots>> AllocatedHosts(const Environment& environment);

// Inside an allocation (but not inside one of its steps' tasks), where options names no hosts: sets
// options.hosts to the allocation's. One node, this one, is left to be the default.
// INVALID_ARGUMENT.
absl::Status SettleHosts(const Environment& environment, ServiceOptions& options);

// The same, where processes are to be started, and sets options.auto_workers to srun, where that is
// there. Errors: INVALID_ARGUMENT, also for --workers srun outside of an allocation and for
// --binding core without --threads.
absl::Status SettleAllocation(const Environment& environment, ServiceOptions& options);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_SLURM_H_
