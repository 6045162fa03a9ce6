// What every communicator checks of a call's arguments before anything is sent. INVALID_ARGUMENT
// says what was found and expected.
#ifndef PHALANX_COMM_GROUP_ARGUMENTS_H_
#define PHALANX_COMM_GROUP_ARGUMENTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "comm/communicator.h"

namespace phalanx::comm {

// A sound plan for the group, and as many parts as it gives this member.
absl::Status CheckParts(const Communicator& group, const ReducePlan& plan,
                        absl::Span<const float* const> parts);
// One entry a member, none negative. `what`: the argument's name.
absl::Status CheckCounts(const Communicator& group, absl::Span<const int64_t> counts,
                         const char* what);
absl::Status CheckRank(const Communicator& group, int rank, const char* what);

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_ARGUMENTS_H_
