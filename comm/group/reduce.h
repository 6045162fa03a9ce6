// Reduction plans: validation, digests.
#ifndef PHALANX_COMM_GROUP_REDUCE_H_
#define PHALANX_COMM_GROUP_REDUCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "comm/communicator.h"

namespace phalanx::comm {

// INVALID_ARGUMENT unless `plan` has one entry a member, none negative, and its program takes
// operands that exist and leaves exactly one value.
absl::Status CheckPlan(const ReducePlan& plan, int members);

// The parts of all members together. Precondition: a checked plan.
int TotalParts(const ReducePlan& plan);

// A digest of a plan and some counts, to compare between members (FNV-1a).
uint64_t Digest(uint64_t seed, absl::Span<const int64_t> values);
uint64_t Digest(uint64_t seed, const ReducePlan& plan);

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_REDUCE_H_
