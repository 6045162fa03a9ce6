// Binds each axis of the mesh to a communicator, for one rank.
#ifndef PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_
#define PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"
#include "comm/nccl/nccl_library.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/kernels.h"
#include "parallel/mesh.h"
#include "runtime/model/groups.h"

namespace phalanx::worker {

// How bytes get from one device's memory to another's.
enum class DeviceTransport {
  kAuto,    // NCCL
  kNccl,    // one rank a device
  kStaged,  // through host memory, over the ranks' own communicator
};

class ParallelContext {
 public:
  // Splits `group`, collectively; it is borrowed. INVALID_ARGUMENT where its size isn't the
  // layout's.
  static absl::StatusOr<ParallelContext> Create(const parallel::Layout& layout,
                                                comm::Communicator& group);

  // Where `device` has memory of its own: from here on groups() has communicators that move it,
  // `transport` saying how. With numerics `fast` NCCL adds in whatever order it likes; what is
  // staged is added in the plan's. `given`: NCCL; null: the one that is found. Borrows `device`,
  // which must outlive this. Collective.
  absl::Status BindDevice(kernels::Kernels& device, DeviceTransport transport,
                          kernels::Numerics numerics = kernels::Numerics::kExact,
                          std::shared_ptr<const comm::nccl::Library> given = nullptr);

  // ABORTED where a call that groups() enqueued on the device has failed meanwhile: to be asked
  // once its results are on the host, before they are believed.
  absl::Status CheckDeviceCalls() const;

  const model::ParallelGroups& groups() const { return groups_; }
  // The rank of the worker group that samples: the last stage's first.
  int result_rank() const;
  // How long any call on any axis may wait for its peers.
  void set_timeout(absl::Duration timeout);
  // Collectives begun so far, on every axis. From any thread.
  uint64_t collective_number() const;

 private:
  ParallelContext() = default;

  model::ParallelGroups groups_;
  comm::Communicator* group_ = nullptr;
  // Null: the axis has one rank, or the axis is all of the group.
  std::unique_ptr<comm::Communicator> tp_;
  std::unique_ptr<comm::Communicator> sp_;
  std::unique_ptr<comm::Communicator> pp_;
  std::unique_ptr<comm::Communicator> stage_;
  // The axes of a device's memory, over those above.
  std::vector<std::unique_ptr<comm::Communicator>> device_axes_;
  bool counts_device_calls_ = false;  // apart from the host's
};

// The rank of a worker group that samples: the last stage's first.
int ResultRank(const parallel::Layout& layout);

// The checks that need no communicator and no model: what a command line can be refused for before
// anything starts.
absl::Status CheckLayout(const parallel::Layout& layout, int reduction_leaves,
                         int sequence_stripes);

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_PARALLEL_CONTEXT_H_
