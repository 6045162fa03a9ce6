#include "kernels/weight_plan.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels {

WeightPlan PlanWeight(const WeightSpec& spec) {
  PHALANX_CHECK(!spec.leaves.empty() && !spec.parts.empty()) << "a weight without leaves or parts";
  WeightPlan plan;
  plan.dtype = spec.dtype;
  for (const RowBlock& block : spec.rows) plan.n += block.rows;
  for (const KLeaf& leaf : spec.leaves) {
    PHALANX_CHECK(leaf.begin <= leaf.end) << "leaf [" << leaf.begin << ", " << leaf.end << ")";
    plan.leaves.push_back({plan.k, plan.k + leaf.padded()});
    plan.k += leaf.padded();
  }
  std::vector<int> uses(spec.leaves.size(), 0);
  plan.program_begin.push_back(0);
  for (const std::vector<int>& program : spec.parts) {
    int depth = 0;
    for (const int code : program) {
      if (code >= 0) {
        PHALANX_CHECK(code < static_cast<int>(uses.size())) << "a program names leaf " << code;
        ++uses[code];
        ++depth;
      } else {
        --depth;
        PHALANX_CHECK(code == -1 && depth >= 1) << "a program that isn't postfix";
      }
      plan.programs.push_back(code);
      plan.stack_depth = std::max(plan.stack_depth, depth);
    }
    PHALANX_CHECK(depth == 1) << "a program leaves " << depth << " sums";
    plan.program_begin.push_back(static_cast<int>(plan.programs.size()));
  }
  for (const int count : uses) PHALANX_CHECK(count == 1) << "a leaf is used " << count << " times";
  return plan;
}

std::optional<PlacedLeaf> RunOfPart(const WeightPlan& plan, int part) {
  PlacedLeaf run = {plan.k, 0};
  int64_t filled = 0;
  for (int i = plan.program_begin[part]; i < plan.program_begin[part + 1]; ++i) {
    if (plan.programs[i] < 0) continue;
    const PlacedLeaf& leaf = plan.leaves[plan.programs[i]];
    run.begin = std::min(run.begin, leaf.begin);
    run.end = std::max(run.end, leaf.end);
    filled += leaf.end - leaf.begin;
  }
  // No two parts have a leaf in common, so no gap means that nothing lies between.
  if (run.end - run.begin != filled) return std::nullopt;
  return run;
}

const char* SourceRow(const WeightSpec& spec, int64_t row) {
  for (const RowBlock& block : spec.rows) {
    if (row < block.rows) {
      return static_cast<const char*>(block.data) + row * block.stride * SizeOf(spec.dtype);
    }
    row -= block.rows;
  }
  PHALANX_CHECK(false) << "row beyond the weight";
  return nullptr;
}

bool IsNanOrInfinite(DType type, const char* value) {
  if (type == DType::kF32) {
    constexpr uint32_t kExponent = 0x7F800000u;
    uint32_t bits;
    std::memcpy(&bits, value, 4);
    return (bits & kExponent) == kExponent;
  }
  const uint16_t exponent = type == DType::kBF16 ? 0x7F80u : 0x7C00u;
  uint16_t bits;
  std::memcpy(&bits, value, 2);
  return (bits & exponent) == exponent;
}

std::string WhereInWeight(const WeightSpec& spec, int64_t row, int64_t column) {
  if (spec.rows.size() == 1) return absl::StrCat("row ", row, ", column ", column);
  for (size_t b = 0; b < spec.rows.size(); ++b) {
    if (row < spec.rows[b].rows) {
      return absl::StrCat("row ", row, ", column ", column, " of stacked matrix ", b);
    }
    row -= spec.rows[b].rows;
  }
  return "";
}

absl::Status NotFinite(const WeightSpec& spec, int64_t row, int64_t column) {
  return absl::InvalidArgumentError(absl::StrCat("the weight holds a NaN or an infinity at ",
                                                 WhereInWeight(spec, row, column),
                                                 "; every weight must be finite"));
}

}  // namespace phalanx::kernels
