// R6: ranks that would compute different bits, or hold different weights, must not work together.
#ifndef PHALANX_RUNTIME_COORDINATOR_AGREEMENT_H_
#define PHALANX_RUNTIME_COORDINATOR_AGREEMENT_H_

#include <vector>

#include "absl/status/status.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::coordinator {

// FAILED_PRECONDITION where the digests of ops, checkpoint or read weights of two ranks differ,
// with both ranks, hosts, pids and values. Also for ranks of different replicas.
absl::Status CheckAgreement(const RankInfo& first, const RankInfo& other);
// Every rank with the first.
absl::Status CheckAgreement(const std::vector<RankInfo>& ranks);

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_AGREEMENT_H_
