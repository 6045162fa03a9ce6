#include "kernels/weight_plan.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels {

WeightPlan PlanWeight(const WeightSpec& spec) {
  PHALANX_CHECK(!spec.leaves.empty() && !spec.parts.empty()) << "a weight without leaves or parts";
  PHALANX_CHECK(!IsFp8(spec.format) || spec.dtype == DType::kBF16)
      << "a weight of " << Name(spec.dtype) << " in FP8; only those of BF16 are kept so";
  const bool codes = SourceType(spec) == DType::kF8E4M3;
  PHALANX_CHECK(!codes || IsFp8(spec.format)) << "codes for a plain weight";
  for (const RowBlock& block : spec.rows) {
    PHALANX_CHECK((block.scales.data != nullptr) == codes) << "codes stacked on values";
  }
  WeightPlan plan;
  plan.dtype = spec.dtype;
  plan.format = spec.format;
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

namespace {

// The source of row `*row` of the stack, which becomes the row there.
const RowBlock& BlockOf(const WeightSpec& spec, int64_t* row) {
  for (const RowBlock& block : spec.rows) {
    if (*row < block.rows) return block;
    *row -= block.rows;
  }
  PHALANX_CHECK(false) << "row beyond the weight";
  return spec.rows[0];
}

}  // namespace

DType SourceType(const WeightSpec& spec) {
  const bool codes = !spec.rows.empty() && spec.rows[0].scales.data != nullptr;
  return codes ? DType::kF8E4M3 : spec.dtype;
}

const char* SourceRow(const WeightSpec& spec, int64_t row) {
  const RowBlock& block = BlockOf(spec, &row);
  return static_cast<const char*>(block.data) + row * block.stride * SizeOf(SourceType(spec));
}

bool ReadFp8Group(const WeightSpec& spec, int64_t row, int64_t k, int64_t values, Fp8Group* group) {
  const char* source = SourceRow(spec, row);
  if (SourceType(spec) != DType::kF8E4M3) {
    uint16_t padded[kFp8GroupValues] = {};
    std::memcpy(padded, source + k * 2, values * 2);
    return QuantiseGroup(padded, group);
  }
  std::memset(group->codes, 0, sizeof group->codes);
  std::memcpy(group->codes, source + k, values);
  const RowBlock& block = BlockOf(spec, &row);
  const CodeScales& scales = block.scales;
  const float scale = scales.data[(block.first_row + row) / scales.block_rows * scales.stride +
                                  k / scales.block_columns];
  group->scale = F32ToBf16(scale);
  group->rest = spec.format == WeightFormat::kF8E4M3Fine
                    ? F32ToBf16(scale - Bf16ToF32(group->scale))
                    : uint16_t{0};
  return std::none_of(group->codes, group->codes + values,
                      [](uint8_t code) { return (code & 0x7fu) == kE4m3Nan; });
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

bool IsUnfit(const WeightSpec& spec, const char* value) {
  if (SourceType(spec) == DType::kF8E4M3) return (*value & 0x7f) == kE4m3Nan;
  if (spec.format == WeightFormat::kPlain) return IsNanOrInfinite(spec.dtype, value);
  uint16_t bits;
  std::memcpy(&bits, value, 2);
  return !IsFp8Weight(bits);
}

absl::Status UnfitWeight(const WeightSpec& spec, int64_t row, int64_t column) {
  const std::string where = WhereInWeight(spec, row, column);
  if (IsFp8(spec.format) && SourceType(spec) != DType::kF8E4M3) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the weight holds a NaN, an infinity or a magnitude above ", kMaxFp8Weight, " at ", where,
        ", which FP8 can't keep; leave the weights in the checkpoint's type"));
  }
  return absl::InvalidArgumentError(absl::StrCat("the weight holds a NaN or an infinity at ", where,
                                                 "; every weight must be finite"));
}

}  // namespace phalanx::kernels
