// A communicator for memory that lies on a device, over one that moves the host's.
#ifndef PHALANX_COMM_STAGED_STAGED_COMMUNICATOR_H_
#define PHALANX_COMM_STAGED_STAGED_COMMUNICATOR_H_

#include <memory>

#include "comm/communicator.h"
#include "kernels/kernels.h"

namespace phalanx::comm {

// A communicator with the members of `host`, whose calls take memory of `device` where those of
// `host` take the host's. Each call waits for what was enqueued on `device` before it, copies what
// it sends to host memory, which is kept from call to call, calls `host`, and enqueues the copies
// of what it received: what is enqueued later sees them. Sums are added on the host, which gives
// the bits of Kernels::AddParts. BroadcastMessage takes a string, as ever. Errors are those of
// `host`; in addition, RESOURCE_EXHAUSTED where there is no host memory, which aborts the group.
//
// Both are borrowed and outlive the result. `host` can still be called directly, from the same
// thread: all members must make the same calls of both in the same order.
std::unique_ptr<Communicator> StageDeviceMemory(Communicator& host, kernels::Kernels& device);

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_STAGED_STAGED_COMMUNICATOR_H_
