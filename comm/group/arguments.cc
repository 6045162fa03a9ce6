#include "comm/group/arguments.h"

#include "absl/strings/str_cat.h"
#include "comm/group/reduce.h"

namespace phalanx::comm {

absl::Status CheckParts(const Communicator& group, const ReducePlan& plan,
                        absl::Span<const float* const> parts) {
  if (absl::Status status = CheckPlan(plan, group.size()); !status.ok()) return status;
  if (static_cast<int>(parts.size()) != plan.parts_per_member[group.rank()]) {
    return absl::InvalidArgumentError(absl::StrCat("called with ", parts.size(),
                                                   " parts, the plan says ",
                                                   plan.parts_per_member[group.rank()]));
  }
  return absl::OkStatus();
}

absl::Status CheckCounts(const Communicator& group, absl::Span<const int64_t> counts,
                         const char* what) {
  if (static_cast<int>(counts.size()) != group.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " has ", counts.size(), " entries, the group has ", group.size(), " members"));
  }
  for (const int64_t count : counts) {
    if (count < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " has an entry ", count, "; expected 0 or more"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRank(const Communicator& group, int rank, const char* what) {
  if (rank >= 0 && rank < group.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " ", rank, " is no rank of a group of ", group.size()));
}

}  // namespace phalanx::comm
