// Binds each axis of the mesh to a communicator, for one rank.
#ifndef PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_
#define PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_

#include <memory>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "parallel/mesh.h"

namespace phalanx::worker {

struct ParallelContext {
  parallel::Mesh mesh{parallel::Layout{}};
  parallel::MeshCoordinates at;
  comm::Communicator* group = nullptr;     // every rank of the worker group; borrowed
  std::unique_ptr<comm::Communicator> tp;  // ranks that differ in t alone

  // Splits `group`, collectively. INVALID_ARGUMENT where its size isn't the layout's;
  // UNIMPLEMENTED for an axis other than tp that is larger than 1, by name.
  static absl::StatusOr<ParallelContext> Create(const parallel::Layout& layout,
                                                comm::Communicator& group);
};

// The checks of Create that need no communicator: what a command line can be refused for before
// anything starts.
absl::Status CheckLayout(const parallel::Layout& layout, int reduction_leaves);

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_
