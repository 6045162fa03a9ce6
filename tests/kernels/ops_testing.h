// Shared by the tests of the ops: random inputs and padded matrices.
#ifndef PHALANX_TESTS_KERNELS_OPS_TESTING_H_
#define PHALANX_TESTS_KERNELS_OPS_TESTING_H_

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "kernels/scalar_math.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Normal(float scale = 1.0f) { return scale * normal_(engine_); }
  std::vector<float> Floats(int64_t n, float scale = 1.0f) {
    std::vector<float> values(n);
    for (float& v : values) v = Normal(scale);
    return values;
  }
  int64_t Below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// A matrix with a stride wider than its columns. The slack holds a pattern that no op may change,
// so equality of all bytes also checks that nothing was written outside.
class Matrix {
 public:
  Matrix(DType type, int64_t rows, int64_t cols, int64_t slack = 3)
      : type_(type),
        rows_(rows),
        cols_(cols),
        stride_(cols + slack),
        bytes_(rows * stride_ * SizeOf(type) + 64, 0xA5) {}
  static Matrix Of(DType type, int64_t rows, int64_t cols, Random& random, float scale = 1.0f) {
    Matrix m(type, rows, cols);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) m.Set(i, j, random.Normal(scale));
    }
    return m;
  }

  TensorView view() { return {bytes_.data(), type_, rows_, cols_, stride_}; }
  void Set(int64_t row, int64_t col, float value) {
    uint8_t* to = bytes_.data() + (row * stride_ + col) * SizeOf(type_);
    if (type_ == DType::kF32) {
      std::memcpy(to, &value, 4);
    } else {
      const uint16_t bits = type_ == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
      std::memcpy(to, &bits, 2);
    }
  }
  float Get(int64_t row, int64_t col) const {
    const uint8_t* from = bytes_.data() + (row * stride_ + col) * SizeOf(type_);
    if (type_ == DType::kF32) {
      float value;
      std::memcpy(&value, from, 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, from, 2);
    return type_ == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
  }
  // Where the first byte differs, or an empty string.
  std::string Difference(const Matrix& other) const {
    if (bytes_.size() != other.bytes_.size()) return "sizes differ";
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (bytes_[i] == other.bytes_[i]) continue;
      const int64_t element = static_cast<int64_t>(i) / SizeOf(type_);
      const int64_t row = element / stride_, col = element % stride_;
      return "row " + std::to_string(row) + " column " + std::to_string(col) + " of " +
             std::to_string(rows_) + " x " + std::to_string(cols_) + ": " +
             (row < rows_ && col < cols_
                  ? std::to_string(Get(row, col)) + " and " + std::to_string(other.Get(row, col))
                  : "slack was written");
    }
    return "";
  }

 private:
  DType type_;
  int64_t rows_, cols_, stride_;
  std::vector<uint8_t> bytes_;
};

inline constexpr DType kAllTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// Rows [begin, begin + count) of `view`.
inline TensorView RowsOf(TensorView view, int64_t begin, int64_t count) {
  view.data = static_cast<char*>(view.data) + begin * view.stride * SizeOf(view.dtype);
  view.rows = count;
  return view;
}

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_OPS_TESTING_H_
