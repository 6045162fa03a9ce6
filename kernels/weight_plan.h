// What every device makes of a WeightSpec before it looks at a value: where leaves stand in the
// padded k, the parts' programs in one row, and where a source row is.
#ifndef PHALANX_KERNELS_WEIGHT_PLAN_H_
#define PHALANX_KERNELS_WEIGHT_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/fp8_weights.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::kernels {

// One leaf in the padded k.
struct PlacedLeaf {
  int64_t begin;
  int64_t end;
};

struct WeightPlan {
  DType dtype = DType::kBF16;
  WeightFormat format = WeightFormat::kPlain;
  int64_t n = 0;
  int64_t k = 0;  // padded
  std::vector<PlacedLeaf> leaves;
  // Part p's postfix program is programs[program_begin[p] .. program_begin[p + 1]).
  std::vector<int> programs;
  std::vector<int> program_begin;
  int stack_depth = 1;  // leaf sums alive at once, at most, over all programs

  int num_parts() const { return static_cast<int>(program_begin.size()) - 1; }
};

// Checks, as programmer errors, that each program leaves one sum and that each leaf is used once.
WeightPlan PlanWeight(const WeightSpec& spec);

// The run of the padded k that the leaves of part `part` fill, in whatever order its program names
// them; nothing where other parts' leaves lie between them.
std::optional<PlacedLeaf> RunOfPart(const WeightPlan& plan, int part);

// What the sources hold: spec.dtype, or F8_E4M3.
DType SourceType(const WeightSpec& spec);
// Row `row` of the stacked sources, at column 0 of its source.
const char* SourceRow(const WeightSpec& spec, int64_t row);
// The dot group of that row that begins at column k, of which `values` are there (the others are
// zero), in FP8: quantised, or as it is. Returns whether it can be kept; else `group` is undefined.
bool ReadFp8Group(const WeightSpec& spec, int64_t row, int64_t k, int64_t values, Fp8Group* group);

// Whether `value`, an element of `type` in memory, is NaN or infinite.
bool IsNanOrInfinite(DType type, const char* value);
// Whether it can't be kept as `spec` wants it.
bool IsUnfit(const WeightSpec& spec, const char* value);

// "row 3, column 5", with " of stacked matrix 1" where there are several.
std::string WhereInWeight(const WeightSpec& spec, int64_t row, int64_t column);
// The INVALID_ARGUMENT of Kernels::Pack.
absl::Status UnfitWeight(const WeightSpec& spec, int64_t row, int64_t column);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_WEIGHT_PLAN_H_
