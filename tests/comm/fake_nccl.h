// NCCL among threads of one process, on the streams of FakeDevices. It moves bytes, and it is as
// awkward as a non-blocking NCCL: what is enqueued reaches the stream only once somebody has asked
// often enough whether it is done; a send waits on the stream for its receive; what doesn't match
// hangs until ncclCommAbort, which frees the communicator and waits for the stream.
#ifndef PHALANX_TESTS_COMM_FAKE_NCCL_H_
#define PHALANX_TESTS_COMM_FAKE_NCCL_H_

#include <map>
#include <memory>
#include <string>

#include "comm/nccl/nccl_library.h"

namespace phalanx::comm {

std::shared_ptr<const nccl::Library> FakeNcclLibrary(int version = 22809);

// What goes wrong in communicators made from now on, by rank; -1: nowhere.
struct FakeNcclFaults {
  bool no_unique_id = false;
  int never_starts = -1;    // ncclCommInitRankConfig stays in progress
  int fails_to_start = -1;  // and ends with an error
  int never_enqueues = -1;  // a group of calls stays in progress
};
void SetFakeNcclFaults(const FakeNcclFaults& faults);
// The next look at any live communicator of `rank` finds ncclRemoteError, and so do all after it.
void BreakFakeNccl(int rank);

// Communicators that are neither destroyed nor aborted.
int LiveFakeNcclComms();
// How often each function of the API was called since this was asked last.
std::map<std::string, int> TakeFakeNcclCalls();

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_FAKE_NCCL_H_
