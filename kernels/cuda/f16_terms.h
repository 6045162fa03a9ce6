// Rows of F32 as sums of two F16, for products with weights of F16 by a library (profile `fast`):
// x w^T = (high w^T) 2^h + (low w^T) 2^l, with the rows' own powers of two where they need them.
//
// high = F16(x 2^-6), low = F16((x 2^-6 - high) 2^11): together within 2^-22 of x's magnitude, or
// within 2^-30. A row that has a value of 2^20 or more is divided by a power of two that brings all
// below, and what comes out is multiplied by it: so no finite row overflows, and its values are
// within 2^-49 of its largest. What is infinite or NaN makes its row's sums infinite or NaN.
#ifndef PHALANX_KERNELS_CUDA_F16_TERMS_H_
#define PHALANX_KERNELS_CUDA_F16_TERMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// The factors of the two products.
inline constexpr float kHighTermFactor = 0x1p6f;
inline constexpr float kLowTermFactor = 0x1p-5f;

// On the device, aligned to 16 bytes.
struct F16Terms {
  uint16_t* high = nullptr;      // [rows][stride]
  uint16_t* low = nullptr;       // likewise
  float* row_factors = nullptr;  // [rows]: powers of two, most of them 1
  int64_t stride = 0;            // a multiple of 8
};
// Of `rows` rows of `cols`: the bytes, and the parts of `memory` of so many.
int64_t F16TermsBytes(int64_t rows, int64_t cols);
F16Terms F16TermsIn(void* memory, int64_t rows, int64_t cols);

// x: F32.
cudaError_t SplitToF16(TensorView x, const F16Terms& terms, cudaStream_t stream);
// out (F32) row by row times its factor.
cudaError_t ScaleRows(TensorView out, const float* row_factors, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_F16_TERMS_H_
