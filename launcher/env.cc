#include "launcher/env.h"

#include <cstdlib>

#include "absl/strings/numbers.h"

namespace phalanx::launcher {

Environment ReadEnvironment() {
  Environment out;
  if (const char* token = std::getenv(kControlTokenVariable)) out.control_token = token;
  int ntasks = 0;
  if (const char* text = std::getenv("SLURM_NTASKS"); text != nullptr) {
    if (absl::SimpleAtoi(text, &ntasks)) out.slurm_ntasks = ntasks;
  }
  out.launched_by_mpi =
      std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
  int local_ranks = 1;
  if (const char* text = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE"); text != nullptr) {
    if (absl::SimpleAtoi(text, &local_ranks) && local_ranks > 0) out.local_ranks = local_ranks;
  }
  return out;
}

}  // namespace phalanx::launcher
