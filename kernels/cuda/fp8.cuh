// FP8 codes in registers, widened to BF16 by one product of two at a time.
#ifndef PHALANX_KERNELS_CUDA_FP8_CUH_
#define PHALANX_KERNELS_CUDA_FP8_CUH_

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {

// Two codes of FP8, in the high bytes of `codes`' halves, as BF16 that awaits its factor of 2^120:
// the four bits of exponent are the lowest of BF16's eight. NaN's codes are numbers here.
__device__ __forceinline__ uint32_t PairOfCodes(uint32_t codes) {
  return (codes & 0x80008000u) | (codes & 0x7f007f00u) >> 4;
}

// The factors of a lane's two rows, twice each (WeightLayout::kFp8 and kFp8Fine).
template <WeightLayout kLayout>
struct Fp8Factors {
  uint32_t low[2];  // scale, rest
  uint32_t high[2];

  // `word_at(i)`: the i-th word of factors of a tile's group.
  template <typename WordAt>
  __device__ __forceinline__ Fp8Factors(const WordAt& word_at, int lane) {
#pragma unroll
    for (int i = 0; i < (kLayout == WeightLayout::kFp8Fine ? 2 : 1); ++i) {
      const uint32_t word = word_at(i * kTileRows / 2 + OperandRow(lane));
      low[i] = (word & 0xffffu) | word << 16;
      high[i] = (word & 0xffff0000u) | word >> 16;
    }
  }
  // Two codes' weights: Fp8Weight of kernels/fp8_weights.h.
  static __device__ __forceinline__ uint32_t Weights(uint32_t codes, const uint32_t (&factors)[2]) {
    const uint32_t pair = PairOfCodes(codes);
    if constexpr (kLayout == WeightLayout::kFp8) {
      return MulBf16x2(pair, factors[0]);
    } else {
      return FmaBf16x2(pair, factors[0], MulBf16x2(pair, factors[1]));
    }
  }
};

// A lane's registers of operand A for one step, out of its codes.
template <WeightLayout kLayout>
__device__ __forceinline__ Words OperandOfCodes(const Words& codes, const Fp8Factors<kLayout>& f,
                                                int step) {
  const uint32_t lower = codes.w[2 * step];
  const uint32_t upper = codes.w[2 * step + 1];
  return {{f.Weights(lower << 8, f.low), f.Weights(upper << 8, f.high), f.Weights(lower, f.low),
           f.Weights(upper, f.high)}};
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_FP8_CUH_
