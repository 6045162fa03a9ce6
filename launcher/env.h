// The environment, read here and nowhere else.
#ifndef PHALANX_LAUNCHER_ENV_H_
#define PHALANX_LAUNCHER_ENV_H_

#include <optional>
#include <string>

namespace phalanx::launcher {

// Hands workers the secret that they register with; set by whoever starts them.
inline constexpr char kControlTokenVariable[] = "PHALANX_CONTROL_TOKEN";

struct Environment {
  std::string control_token;        // PHALANX_CONTROL_TOKEN, or empty
  std::optional<int> slurm_ntasks;  // SLURM_NTASKS
  bool launched_by_mpi = false;     // OMPI_COMM_WORLD_SIZE or PMIX_RANK is set
  int local_ranks = 1;              // ranks of the job on this host: OMPI_COMM_WORLD_LOCAL_SIZE
};

Environment ReadEnvironment();

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_ENV_H_
