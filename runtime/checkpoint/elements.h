// Elements of tensors in files, and the names of their types.
#ifndef PHALANX_RUNTIME_CHECKPOINT_ELEMENTS_H_
#define PHALANX_RUNTIME_CHECKPOINT_ELEMENTS_H_

#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "absl/strings/string_view.h"
#include "kernels/float16.h"
#include "kernels/tensor.h"
#include "runtime/checkpoint/safetensors.h"

namespace phalanx::checkpoint {

// The safetensors format's name of FP8 codes.
inline constexpr absl::string_view kFp8 = "F8_E4M3";

// Debian's absl::string_view is not std::string_view.
inline absl::string_view DTypeName(kernels::DType dtype) {
  const std::string_view name = kernels::Name(dtype);
  return {name.data(), name.size()};
}

inline std::optional<kernels::DType> SupportedDType(absl::string_view name) {
  for (const kernels::DType dtype :
       {kernels::DType::kF32, kernels::DType::kBF16, kernels::DType::kF16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

inline int64_t NumElements(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

inline float ElementAt(const void* data, kernels::DType dtype, int64_t index) {
  if (dtype == kernels::DType::kF32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + index * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + index * 2, 2);
  return dtype == kernels::DType::kF16 ? kernels::F16ToF32(bits) : kernels::Bf16ToF32(bits);
}

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_ELEMENTS_H_
