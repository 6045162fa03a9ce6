#include "comm/group/reduce.h"

#include "absl/strings/str_cat.h"

namespace phalanx::comm {

absl::Status CheckPlan(const ReducePlan& plan, int members) {
  if (static_cast<int>(plan.parts_per_member.size()) != members) {
    return absl::InvalidArgumentError(absl::StrCat("the plan has parts for ",
                                                   plan.parts_per_member.size(),
                                                   " members, the group has ", members));
  }
  int64_t total = 0;
  for (const int parts : plan.parts_per_member) {
    if (parts < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the plan gives a member ", parts, " parts; expected 0 or more"));
    }
    total += parts;
  }
  int64_t depth = 0;
  for (const int op : plan.program) {
    if (op >= 0 && op < total) {
      ++depth;
    } else if (op == -1 && depth >= 2) {
      --depth;
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "the plan's program has operation ", op, " with ", depth, " values on its stack and ",
          total, " operands; expected an operand below that or -1 with two values"));
    }
  }
  if (depth != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the plan's program leaves ", depth, " values; expected 1"));
  }
  return absl::OkStatus();
}

int TotalParts(const ReducePlan& plan) {
  int total = 0;
  for (const int parts : plan.parts_per_member) total += parts;
  return total;
}

uint64_t Digest(uint64_t seed, absl::Span<const int64_t> values) {
  uint64_t hash = seed ^ 0xcbf29ce484222325;
  for (const int64_t value : values) hash = (hash ^ static_cast<uint64_t>(value)) * 0x100000001b3;
  return hash;
}

uint64_t Digest(uint64_t seed, const ReducePlan& plan) {
  uint64_t hash = seed ^ 0xcbf29ce484222325;
  for (const int parts : plan.parts_per_member) {
    hash = (hash ^ static_cast<uint32_t>(parts)) * 0x100000001b3;
  }
  for (const int op : plan.program) hash = (hash ^ static_cast<uint32_t>(op)) * 0x100000001b3;
  return hash;
}

}  // namespace phalanx::comm
