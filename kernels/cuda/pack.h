// Packing of weights for the GPU's kernels, on the host: a unit is 16 rows of BF16 (one row of
// tiles, fragment.h) or 32 rows of F32 or F16, over all of the padded k. It has as many bytes in
// tiles as in rows.
#ifndef PHALANX_KERNELS_CUDA_PACK_H_
#define PHALANX_KERNELS_CUDA_PACK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/fragment.h"
#include "kernels/kernels.h"
#include "kernels/weight_plan.h"

namespace phalanx::kernels::cuda {

// The layout of weights of a format of FP8.
inline WeightLayout Fp8LayoutOf(WeightFormat format) {
  return format == WeightFormat::kF8E4M3Fine ? WeightLayout::kFp8Fine : WeightLayout::kFp8;
}
// Rows of one unit.
int64_t UnitRows(DType type);
int64_t NumUnits(const WeightPlan& plan);
int64_t UnitBytes(const WeightPlan& plan);

// Writes unit `unit`, UnitBytes(plan) bytes. Rows beyond n and k beyond a leaf's end become +0.
// `layout` is FP8's where the plan's format is, and nowhere else. Returns whether a value can't
// be kept (IsUnfit).
bool PackUnit(const WeightSpec& spec, const WeightPlan& plan, WeightLayout layout, int64_t unit,
              char* to);

// Where the first value of `unit` is that can't be kept; -1, -1 if there is none.
struct BadValue {
  int64_t row = -1;
  int64_t column = -1;
};
BadValue FindBadValue(const WeightSpec& spec, const WeightPlan& plan, int64_t unit);

// INVALID_ARGUMENT where the kernels can't take the weight's shape.
absl::Status CheckPackable(const WeightPlan& plan);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_PACK_H_
