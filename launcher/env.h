// The environment, read here and nowhere else.
#ifndef PHALANX_LAUNCHER_ENV_H_
#define PHALANX_LAUNCHER_ENV_H_

#include <string>

namespace phalanx::launcher {

// Hands workers the secret that they register with; set by whoever starts them.
inline constexpr char kControlTokenVariable[] = "PHALANX_CONTROL_TOKEN";

struct Environment {
  std::string control_token;  // PHALANX_CONTROL_TOKEN, or empty
  // A job's script or shell: SLURM_JOB_ID is set, but this is no task of one of its steps.
  bool in_slurm_allocation = false;
  // This is a task of a step (SLURM_STEP_ID) of so many tasks (SLURM_STEP_NUM_TASKS, else
  // SLURM_NTASKS); 0: it is none.
  int slurm_step_tasks = 0;
  std::string slurm_nodes;           // SLURM_JOB_NODELIST
  std::string slurm_tasks_per_node;  // SLURM_TASKS_PER_NODE
  std::string slurm_node_name;       // SLURMD_NODENAME: this node, in a batch script
  bool launched_by_mpirun = false;   // OMPI_COMM_WORLD_SIZE is set
  bool launched_by_pmix = false;     // PMIX_RANK is set: by mpirun or srun --mpi=pmix
  std::string mpi_session_base;      // OMPI_MCA_orte_tmpdir_base: where Open MPI keeps its files
  // Ranks of the job on this host: OMPI_COMM_WORLD_LOCAL_SIZE, or where srun started them
  // SLURM_STEP_TASKS_PER_NODE at SLURM_NODEID.
  int local_ranks = 1;
  int local_rank = 0;  // among them: OMPI_COMM_WORLD_LOCAL_RANK or SLURM_LOCALID
  int rank = 0;        // in the job: OMPI_COMM_WORLD_RANK, PMIX_RANK or SLURM_PROCID
};

Environment ReadEnvironment();

// Where mpirun has put all ranks on this host and nobody has said otherwise, asks Open MPI for its
// point-to-point layer for shared memory and TCP (OMPI_MCA_pml=ob1) in place of the best one that
// it finds. Looking at the others takes 0.2 s in every MPI_Init: Debian's drivers of Intel fabrics
// measure the clock when they are loaded. Before MPI_Init.
void PreferSharedMemory();

// Whether `name` can be started: a path, or found in PATH.
bool IsProgram(const std::string& name);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_ENV_H_
