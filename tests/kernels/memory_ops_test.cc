// What moves, clears and joins memory on a device.
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

TEST(Zero, ClearsTheBytesNamedAndNoOthers) {
  for (const auto& [name, kernels] : AllKernels()) {
    for (const int64_t bytes : {0, 1, 7, 64, 5000}) {
      std::vector<uint8_t> memory(6000, 0x5A);
      kernels->Zero(memory.data() + 3, bytes);
      for (int64_t i = 0; i < 6000; ++i) {
        ASSERT_EQ(memory[i], i >= 3 && i < 3 + bytes ? 0 : 0x5A) << name << " byte " << i;
      }
    }
  }
}

TEST(CopyRows, CopiesBetweenStridesAndTouchesNoSlack) {
  Random random(11);
  for (const auto& [name, kernels] : AllKernels()) {
    for (const DType type : kAllTypes) {
      for (const auto& [rows, cols] :
           std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 300}, {5, 33}, {17, 128}, {0, 4}}) {
        Matrix in = Matrix::Of(type, rows, cols, random);
        Matrix expected(type, rows, cols, /*slack=*/9);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) expected.Set(i, j, in.Get(i, j));
        }
        Matrix out(type, rows, cols, /*slack=*/9);
        kernels->CopyRows(in.view(), out.view());
        EXPECT_EQ(out.Difference(expected), "") << name << " " << Name(type);
      }
    }
  }
}

// left + right as every sum of the op set: denormals are zero.
float Sum(float left, float right) {
  const auto flushed = [](float x) {
    return x > -std::numeric_limits<float>::min() && x < std::numeric_limits<float>::min() ? 0.0f
                                                                                           : x;
  };
  return flushed(flushed(left) + flushed(right));
}

TEST(AddParts, AddsByItsProgramAlsoInPlace) {
  Random random(12);
  for (const auto& [name, kernels] : AllKernels()) {
    for (const int64_t count : {0, 1, 31, 1024, 5003}) {
      std::vector<std::vector<float>> parts;
      for (int i = 0; i < 5; ++i) parts.push_back(random.Floats(count, i == 3 ? 1e6f : 1.0f));
      // ((0 + 1) + (2 + 3)) + 4
      const std::vector<int> program = {0, 1, -1, 2, 3, -1, -1, 4, -1};
      std::vector<float> expected(count);
      for (int64_t i = 0; i < count; ++i) {
        expected[i] =
            Sum(Sum(Sum(parts[0][i], parts[1][i]), Sum(parts[2][i], parts[3][i])), parts[4][i]);
      }
      std::vector<const float*> operands;
      for (const std::vector<float>& part : parts) operands.push_back(part.data());
      std::vector<float> out(count);
      kernels->AddParts(operands, program, out.data(), count);
      EXPECT_EQ(out, expected) << name;
      kernels->AddParts(operands, program, parts[2].data(), count);
      EXPECT_EQ(parts[2], expected) << name << ", in place";
      kernels->AddParts(operands, std::vector<int>{4}, out.data(), count);
      EXPECT_EQ(out, parts[4]) << name << ", of one operand";
    }
  }
}

TEST(AddParts, FlushesDenormalsLikeTheSumsInsideAMatmul) {
  constexpr float kMin = std::numeric_limits<float>::min();
  for (const auto& [name, kernels] : AllKernels()) {
    // A denormal sum of normal numbers, and normal numbers with a denormal between them.
    const std::vector<float> left = {1.5f * kMin, kMin / 2, 2 * kMin};
    const std::vector<float> right = {-kMin, kMin, kMin};
    std::vector<float> out(left.size());
    kernels->AddParts(std::vector<const float*>{left.data(), right.data()},
                      std::vector<int>{0, 1, -1}, out.data(), 3);
    EXPECT_EQ(out, (std::vector<float>{0.0f, kMin, 3 * kMin})) << name;
  }
}

TEST(OrInto, JoinsBits) {
  for (const auto& [name, kernels] : AllKernels()) {
    for (const int64_t count : {0, 1, 1000}) {
      std::vector<uint32_t> data(count), other(count), expected(count);
      for (int64_t i = 0; i < count; ++i) {
        data[i] = i % 3 == 0 ? 0 : static_cast<uint32_t>(i * 2654435761u);
        other[i] = i % 3 == 0 ? 0x80000001u + static_cast<uint32_t>(i) : 0;
        expected[i] = data[i] | other[i];
      }
      kernels->OrInto(data.data(), other.data(), count);
      EXPECT_EQ(data, expected) << name;
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
