#include "kernels/cpu/reference_matmul.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/fp_environment.h"
#include "kernels/cpu/half.h"

namespace phalanx::kernels {
namespace {

float Widen(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBF16:
      return cpu::WidenBf16(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16:
      return cpu::WidenF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kF8E4M3:
      break;
  }
  return 0;
}

// One leaf's sum of one output element; x and w hold the leaf's padded k.
float LeafSum(DType dtype, const std::vector<float>& x, const std::vector<float>& w) {
  float sum = 0;
  const auto k = static_cast<int64_t>(x.size());
  if (dtype != DType::kBF16) {
    for (int64_t i = 0; i < k; ++i) sum = std::fma(x[i], w[i], sum);
    return sum;
  }
  for (int64_t group = 0; group < k; group += kDotGroup) {
    float even = 0;
    float odd = 0;
    for (int64_t i = group; i < group + kDotGroup; i += 2) {
      even = std::fma(x[i], w[i], even);
      odd = std::fma(x[i + 1], w[i + 1], odd);
    }
    sum = sum + (even + odd);
  }
  return sum;
}

}  // namespace

void ReferenceMatMul(TensorView x, const WeightSpec& spec, absl::Span<const TensorView> outs) {
  const ScopedFpEnvironment environment;
  for (int64_t m = 0; m < x.rows; ++m) {
    int64_t n = 0;
    for (const RowBlock& block : spec.rows) {
      for (int64_t row = 0; row < block.rows; ++row, ++n) {
        std::vector<float> leaf_sums;
        int64_t x_column = 0;
        for (const KLeaf& leaf : spec.leaves) {
          std::vector<float> x_leaf(leaf.padded());
          std::vector<float> w_leaf(leaf.padded(), 0.0f);
          for (float& value : x_leaf) value = Widen(x.dtype, x.data, m * x.stride + x_column++);
          for (int64_t k = leaf.begin; k < leaf.end; ++k) {
            w_leaf[k - leaf.begin] = Widen(spec.dtype, block.data, row * block.stride + k);
          }
          leaf_sums.push_back(LeafSum(spec.dtype, x_leaf, w_leaf));
        }
        for (size_t part = 0; part < spec.parts.size(); ++part) {
          std::vector<float> stack;
          for (const int code : spec.parts[part]) {
            if (code >= 0) {
              stack.push_back(leaf_sums[code]);
            } else {
              const float right = stack.back();
              stack.pop_back();
              stack.back() = stack.back() + right;
            }
          }
          outs[part].f32()[m * outs[part].stride + n] = stack.back();
        }
      }
    }
  }
}

}  // namespace phalanx::kernels
