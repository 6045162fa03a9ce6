// R6: ranks that would compute different bits, or hold different weights, must not work together.
#ifndef PHALANX_RUNTIME_WORKER_AGREEMENT_H_
#define PHALANX_RUNTIME_WORKER_AGREEMENT_H_

#include <vector>

#include "absl/status/status.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::worker {

// FAILED_PRECONDITION where two ranks' op digests or checkpoint digests differ, with both ranks,
// hosts and values.
absl::Status CheckAgreement(const std::vector<coordinator::RankInfo>& ranks);

}  // namespace phalanx::worker

#endif  // PHALANX_RUNTIME_WORKER_AGREEMENT_H_
