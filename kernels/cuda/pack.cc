#include "kernels/cuda/pack.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/tiling.h"

namespace phalanx::kernels::cuda {
namespace {

// One row's values of a dot group, padded; returns whether one is NaN or infinite.
bool ReadGroup(DType type, const char* from, int64_t values, char* group) {
  const int64_t size = SizeOf(type);
  std::memcpy(group, from, values * size);
  std::memset(group + values * size, 0, (kGroupK - values) * size);
  bool bad = false;
  for (int64_t i = 0; i < values; ++i) bad |= IsNanOrInfinite(type, group + i * size);
  return bad;
}

// A row's 16 words of a group, to where PackedOffset says.
void ScatterBf16(const char* group, int row, char* to) {
  for (int t = 0; t < 4; ++t) {
    for (int s = 0; s < 2; ++s) {
      for (int h = 0; h < 2; ++h) {
        const int word = ((s * kWarp + row % 8 * 4 + t) * 4 + h * 2 + row / 8);
        std::memcpy(to + word * 4, group + (8 * t + 4 * s + 2 * h) * 2, 4);
      }
    }
  }
}

// A row's dot group, to where Fp8CodeOffset and Fp8FactorOffset say.
void ScatterFp8(WeightLayout layout, const Fp8Group& group, int row, char* to) {
  for (int i = 0; i < kGroupK; ++i) {
    to[Fp8CodeOffset(row, i)] = static_cast<char>(group.codes[i]);
  }
  // Times 2^120; a zero stays one.
  const auto factor = [](uint16_t value) {
    return static_cast<uint16_t>((value & 0x7fffu) == 0 ? value : value + (120u << 7));
  };
  const uint16_t scale = factor(group.scale);
  std::memcpy(to + Fp8FactorOffset(row), &scale, sizeof scale);
  if (layout == WeightLayout::kFp8) return;
  const uint16_t rest = factor(group.rest);
  std::memcpy(to + kFp8FactorBytes + Fp8FactorOffset(row), &rest, sizeof rest);
}

template <typename Element>
void ScatterColumn(const char* group, int row, char* to) {
  for (int i = 0; i < kGroupK; ++i) {
    std::memcpy(to + (i * kChainColumns + row) * sizeof(Element), group + i * sizeof(Element),
                sizeof(Element));
  }
}

}  // namespace

int64_t UnitRows(DType type) { return type == DType::kBF16 ? kTileRows : kChainColumns; }

int64_t NumUnits(const WeightPlan& plan) {
  return (plan.n + UnitRows(plan.dtype) - 1) / UnitRows(plan.dtype);
}

int64_t UnitBytes(const WeightPlan& plan) {
  if (IsFp8(plan.format)) return plan.k / kGroupK * TileGroupBytes(Fp8LayoutOf(plan.format));
  return plan.k * UnitRows(plan.dtype) * SizeOf(plan.dtype);
}

bool PackUnit(const WeightSpec& spec, const WeightPlan& plan, WeightLayout layout, int64_t unit,
              char* to) {
  const DType type = plan.dtype;
  const int64_t size = SizeOf(type);
  const int64_t rows = UnitRows(type);
  const int64_t first = unit * rows;
  const int64_t group_bytes = IsFp8(layout) ? TileGroupBytes(layout) : rows * kGroupK * size;
  bool bad = false;
  if (plan.n - first < rows) std::memset(to, 0, UnitBytes(plan));
  for (int64_t r = 0; r < rows && first + r < plan.n; ++r) {
    const char* source = SourceRow(spec, first + r);
    char* out = to;
    char* out_row = to + r * plan.k * size;  // of kRows
    for (const KLeaf& leaf : spec.leaves) {
      for (int64_t k = leaf.begin; k < leaf.end; k += kGroupK, out += group_bytes) {
        const int64_t values = std::min<int64_t>(kGroupK, leaf.end - k);
        if (layout == WeightLayout::kRows) {
          bad |= ReadGroup(type, source + k * size, values, out_row);
          out_row += kGroupK * size;
          continue;
        }
        const int row = static_cast<int>(r);
        if (IsFp8(layout)) {
          Fp8Group coded;
          if (ReadFp8Group(spec, first + r, k, values, &coded)) {
            ScatterFp8(layout, coded, row, out);
          } else {
            bad = true;
          }
          continue;
        }
        char group[kGroupK * sizeof(float)];
        bad |= ReadGroup(type, source + k * size, values, group);
        if (type == DType::kBF16) {
          ScatterBf16(group, row, out);
        } else if (type == DType::kF32) {
          ScatterColumn<float>(group, row, out);
        } else {
          ScatterColumn<uint16_t>(group, row, out);
        }
      }
    }
  }
  return bad;
}

BadValue FindBadValue(const WeightSpec& spec, const WeightPlan& plan, int64_t unit) {
  const int64_t first = unit * UnitRows(plan.dtype);
  const int64_t last = std::min(plan.n, first + UnitRows(plan.dtype));
  for (int64_t row = first; row < last; ++row) {
    const char* source = SourceRow(spec, row);
    // Leaves needn't stand in the source's order.
    int64_t column = -1;
    for (const KLeaf& leaf : spec.leaves) {
      for (int64_t k = leaf.begin; k < leaf.end && (column < 0 || k < column); ++k) {
        if (IsUnfit(spec, source + k * SizeOf(SourceType(spec)))) column = k;
      }
    }
    if (column >= 0) return {row, column};
  }
  return {};
}

absl::Status CheckPackable(const WeightPlan& plan) {
  const auto leaves = static_cast<int64_t>(plan.leaves.size());
  if (leaves > kMaxLeaves || plan.num_parts() > kMaxLeaves) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a weight of ", leaves, " leaves in ", plan.num_parts(), " parts; the CUDA kernels take ",
        kMaxLeaves, " at most: use fewer reduction leaves"));
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t chunks = plan.k / kChunkK + leaves;
  if (plan.n > kMost || plan.k > kMost || chunks > std::numeric_limits<int16_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a weight of ", plan.n, " x ", plan.k, "; the CUDA kernels take ", kMost, " rows and ",
        kChunkK * (std::numeric_limits<int16_t>::max() - leaves), " columns at most"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::kernels::cuda
