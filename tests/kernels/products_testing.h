// Products of drawn numbers on weights whose leaves are longer than a chunk, shorter, uneven and
// empty, for tests that compare two op sets.
#ifndef PHALANX_TESTS_KERNELS_PRODUCTS_TESTING_H_
#define PHALANX_TESTS_KERNELS_PRODUCTS_TESTING_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/float16.h"
#include "kernels/fp8_weights.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {

inline std::vector<char> EncodeAs(DType type, const std::vector<float>& values) {
  std::vector<char> out(values.size() * SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = type == DType::kBF16 ? F32ToBf16(values[i]) : F32ToF16(values[i]);
    std::memcpy(&out[i * SizeOf(type)],
                type == DType::kF32 ? &values[i] : static_cast<const void*>(&bits), SizeOf(type));
  }
  return out;
}

struct ProductShape {
  DType type = DType::kBF16;
  std::vector<std::vector<int>> parts = {{0, 1, -1, 2, 3, -1, -1}};
  WeightFormat format = WeightFormat::kPlain;
  // The sources, of BF16, hold what weights of FP8 are read back as.
  bool rounded = false;
};

// Puts what FP8 keeps in the place of a BF16 matrix's values, [rows, stride].
inline void RoundToFp8(const std::vector<KLeaf>& leaves, int64_t rows, int64_t stride,
                       std::vector<char>& source) {
  auto* values = reinterpret_cast<uint16_t*>(source.data());
  for (int64_t row = 0; row < rows; ++row) {
    for (const KLeaf& leaf : leaves) {
      for (int64_t k = leaf.begin; k < leaf.end; k += kDotGroup) {
        uint16_t* from = values + row * stride + k;
        const int64_t count = std::min(kDotGroup, leaf.end - k);
        uint16_t padded[kDotGroup] = {};
        std::copy(from, from + count, padded);
        Fp8Group group;
        ASSERT_TRUE(QuantiseGroup(padded, &group));
        for (int64_t i = 0; i < count; ++i) from[i] = Fp8Weight(group, static_cast<int>(i));
      }
    }
  }
}

// On one instance; equal for all instances.
class Products {
 public:
  static constexpr int64_t kN = 200;
  static constexpr int64_t kSourceK = 700;
  static constexpr int64_t kMostRows = 150;

  Products(Kernels& kernels, const ProductShape& shape, int num_weights = 1)
      : kernels_(kernels), shape_(shape) {
    Random random(3);
    WeightSpec spec;
    spec.dtype = shape.type;
    spec.format = shape.format;
    spec.leaves = {{0, 530}, {530, 562}, {562, 562}, {562, 700}};
    spec.parts = shape.parts;
    for (int i = 0; i < num_weights; ++i) {
      std::vector<char> source = EncodeAs(shape.type, random.Floats(kN * kSourceK));
      if (shape.rounded) RoundToFp8(spec.leaves, kN, kSourceK, source);
      spec.rows = {{source.data(), kN, kSourceK}};
      auto weight = kernels.Pack(spec);
      EXPECT_TRUE(weight.ok()) << weight.status();
      weights_.push_back(*std::move(weight));
    }
    const std::vector<char> x =
        EncodeAs(ActivationType(shape.type), random.Floats(kMostRows * weights_[0]->k(), 2));
    x_ = Allocate(static_cast<int64_t>(x.size()));
    kernels_.CopyIn(x_.data(), x.data(), static_cast<int64_t>(x.size()));
    for (size_t p = 0; p < shape.parts.size(); ++p) outs_.push_back(Allocate(kMostRows * kN * 4));
    gated_ = Allocate(kMostRows * kN / 2 * 4);
    const std::vector<float> bias = random.Floats(kN);
    bias_ = Allocate(kN * 4);
    kernels_.CopyIn(bias_.data(), bias.data(), kN * 4);
  }

  std::vector<float> MatMul(int64_t rows) {
    kernels_.BeginStep(rows);
    kernels_.MatMul(X(rows), *weights_[0], Outs(rows));
    kernels_.EndStep();
    return Results(rows);
  }
  // Of a weight with one part, in F32: the first half of what comes out is gates.
  std::vector<float> Gated(int64_t rows, bool fused) {
    const TensorView gate_up = Outs(rows)[0];
    const TensorView out = {gated_.data(), DType::kF32, rows, kN / 2, kN / 2};
    kernels_.BeginStep(rows);
    if (fused) {
      kernels_.MatMulSiluMul(X(rows), *weights_[0], gate_up, bias_.as<float>(), kN / 2, out);
    } else {
      kernels_.MatMul(X(rows), *weights_[0], {&gate_up, 1});
      kernels_.SiluMul(gate_up, bias_.as<float>(), kN / 2, out);
    }
    kernels_.EndStep();
    std::vector<float> results(rows * kN / 2);
    kernels_.CopyOut(results.data(), gated_.data(), rows * kN / 2 * 4);
    return results;
  }
  std::vector<float> Bias() {
    std::vector<float> bias(kN);
    kernels_.CopyOut(bias.data(), bias_.data(), kN * 4);
    return bias;
  }
  // Rows to the weights in turns, `counts[i]` to weight i.
  std::vector<float> Grouped(const std::vector<int64_t>& counts) {
    std::vector<ExpertRows> groups;
    int64_t rows = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      groups.push_back({weights_[i].get(), rows, counts[i]});
      rows += counts[i];
    }
    kernels_.GroupedMatMul(X(rows), groups, Outs(rows));
    return Results(rows);
  }

 private:
  Buffer Allocate(int64_t bytes) {
    auto buffer = kernels_.Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  TensorView X(int64_t rows) const {
    return {x_.data(), ActivationType(shape_.type), rows, weights_[0]->k(), weights_[0]->k()};
  }
  std::vector<TensorView> Outs(int64_t rows) const {
    std::vector<TensorView> views;
    for (const Buffer& out : outs_) views.push_back({out.data(), DType::kF32, rows, kN, kN});
    return views;
  }
  std::vector<float> Results(int64_t rows) {
    std::vector<float> all;
    for (const Buffer& out : outs_) {
      std::vector<float> part(rows * kN);
      kernels_.CopyOut(part.data(), out.data(), rows * kN * 4);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  Kernels& kernels_;
  const ProductShape shape_;
  std::vector<std::unique_ptr<PackedWeight>> weights_;
  Buffer x_;
  std::vector<Buffer> outs_;
  Buffer gated_;
  Buffer bias_;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_PRODUCTS_TESTING_H_
