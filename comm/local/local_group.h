// Ranks as threads of one process: for tests and for runs that need only one process.
#ifndef PHALANX_COMM_LOCAL_LOCAL_GROUP_H_
#define PHALANX_COMM_LOCAL_LOCAL_GROUP_H_

#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace phalanx::comm {

struct LocalGroupOptions {
  // Threads that compute on each rank. Ranks spin briefly before they sleep only while all of them
  // fit on the cores.
  int threads_per_rank = 1;
  // Of the slots through which payloads pass; a multiple of 64, at least 1024.
  int64_t slot_bytes = 1 << 20;
  // Of the buffer between each pair, for Send and BroadcastMessage; a power of two.
  int64_t ring_bytes = 1 << 16;
};

// The communicators of ranks 0 .. size - 1, one for each thread that plays a rank. Destroying one
// is leaving the group: a call that still waits for that rank then ends with UNAVAILABLE.
// Precondition: size >= 1. Ends the process if the system has no memory for the group.
std::vector<std::unique_ptr<Communicator>> CreateLocalGroup(int size,
                                                            const LocalGroupOptions& options = {});

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_LOCAL_LOCAL_GROUP_H_
