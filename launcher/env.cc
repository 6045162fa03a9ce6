#include "launcher/env.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launcher/slurm.h"

namespace phalanx::launcher {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The value of the first of these variables that holds a number from 0; 0 where none does.
int FirstNumber(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    int value = 0;
    if (absl::SimpleAtoi(Variable(name), &value) && value >= 0) return value;
  }
  return 0;
}

}  // namespace

Environment ReadEnvironment() {
  Environment out;
  if (const char* token = std::getenv(kControlTokenVariable)) out.control_token = token;
  if (const char* base = std::getenv("OMPI_MCA_orte_tmpdir_base")) out.mpi_session_base = base;
  out.launched_by_mpirun = !Variable("OMPI_COMM_WORLD_SIZE").empty();
  out.launched_by_pmix = !Variable("PMIX_RANK").empty();
  out.slurm_nodes = Variable("SLURM_JOB_NODELIST");
  out.slurm_tasks_per_node = Variable("SLURM_TASKS_PER_NODE");
  out.slurm_node_name = Variable("SLURMD_NODENAME");
  // Batch scripts, interactive shells and the like have numbers from the top.
  constexpr uint32_t kMaxNormalStep = 0xfffffff0;
  uint32_t step = 0;
  const bool in_step = absl::SimpleAtoi(Variable("SLURM_STEP_ID"), &step) && step < kMaxNormalStep;
  out.in_slurm_allocation = !Variable("SLURM_JOB_ID").empty() && !in_step;
  int tasks = 0;
  if (in_step && (absl::SimpleAtoi(Variable("SLURM_STEP_NUM_TASKS"), &tasks) ||
                  absl::SimpleAtoi(Variable("SLURM_NTASKS"), &tasks))) {
    out.slurm_step_tasks = tasks;
  }

  int local_ranks = 0;
  size_t node = 0;
  if (absl::SimpleAtoi(Variable("OMPI_COMM_WORLD_LOCAL_SIZE"), &local_ranks)) {
    out.local_ranks = std::max(local_ranks, 1);
  } else if (in_step && absl::SimpleAtoi(Variable("SLURM_NODEID"), &node)) {
    const auto counts = ParseTaskCounts(Variable("SLURM_STEP_TASKS_PER_NODE"));
    if (counts.ok() && node < counts->size()) out.local_ranks = (*counts)[node];
  }
  // Under mpirun in a Slurm job, Slurm's variables are those of the daemon that mpirun started.
  out.local_rank = FirstNumber({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"});
  out.rank = FirstNumber({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"});
  return out;
}

void PreferSharedMemory() {
  const char* world = std::getenv("OMPI_COMM_WORLD_SIZE");
  const char* here = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  if (world == nullptr || here == nullptr || std::strcmp(world, here) != 0) return;
  setenv("OMPI_MCA_pml", "ob1", /*overwrite=*/0);
}

bool IsProgram(const std::string& name) {
  if (absl::StrContains(name, '/')) return access(name.c_str(), X_OK) == 0;
  const char* path = std::getenv("PATH");
  for (const absl::string_view directory : absl::StrSplit(path == nullptr ? "/bin" : path, ':')) {
    if (access(absl::StrCat(directory, "/", name).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace phalanx::launcher
