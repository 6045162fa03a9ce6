// Ranks agree on the bytes of their checkpoint files.
#ifndef PHALANX_RUNTIME_WORKER_SLICE_AGREEMENT_H_
#define PHALANX_RUNTIME_WORKER_SLICE_AGREEMENT_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "runtime/coordinator/worker_group.h"
#include "runtime/model/slice_digest.h"

namespace phalanx::worker {

// Compares digests of tensor slices over `group`, collectively.
//
// Slices that several ranks have read are compared directly. A slice that one rank alone has read
// can only be checked by reading it elsewhere: where ranks' files are copies (their `files`, see
// Checkpoint::FileIdentities, differ), each rank's slices are read again by the next rank whose
// files are other ones. Where all share one copy there is nothing to check, and nothing is read
// twice.
//
// `digest_of(r)`: the digests that rank r would have, from this rank's files. FAILED_PRECONDITION
// names both ranks, hosts and processes and the first slice that differs. Returns one digest of all
// that the group holds: the same for every layout of one checkpoint.
absl::StatusOr<uint64_t> AgreeOnSlices(
    comm::Communicator& group, const coordinator::RankInfo& info, const std::vector<int64_t>& files,
    const std::vector<model::SliceDigest>& own,
    const std::function<absl::StatusOr<std::vector<model::SliceDigest>>(int rank)>& digest_of);

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_SLICE_AGREEMENT_H_
