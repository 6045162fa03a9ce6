// Element types, owned memory and borrowed views.
#ifndef PHALANX_KERNELS_TENSOR_H_
#define PHALANX_KERNELS_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

namespace phalanx::kernels {

// F8_E4M3 is of matrices in checkpoints alone (RowBlock of kernels/kernels.h): no op takes it.
enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3 };

// Bytes of one element.
constexpr int64_t SizeOf(DType type) {
  return type == DType::kF32 ? 4 : type == DType::kF8E4M3 ? 1 : 2;
}
// "F32", "BF16", "F16", "F8_E4M3": the names of the safetensors format.
constexpr std::string_view Name(DType type) {
  return type == DType::kF32    ? "F32"
         : type == DType::kBF16 ? "BF16"
         : type == DType::kF16  ? "F16"
                                : "F8_E4M3";
}

// Owns memory on one device; moves, never copies. Aligned to 64 bytes at least.
class Buffer {
 public:
  using Deleter = std::function<void(void*)>;
  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter)
      : data_(data), bytes_(bytes), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
      deleter_ = std::move(other.deleter_);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Reset(); }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void Reset() {
    if (data_ != nullptr && deleter_) deleter_(data_);
    data_ = nullptr;
    bytes_ = 0;
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Deleter deleter_;
};

// Borrows a row-major matrix [rows, cols]; `stride` is the distance of two rows in elements.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  float* f32() const { return static_cast<float*>(data); }
  uint16_t* u16() const { return static_cast<uint16_t*>(data); }
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_TENSOR_H_
