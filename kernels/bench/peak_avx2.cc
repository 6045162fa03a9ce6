// Compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "kernels/bench/peak.h"

#define PHALANX_VECTOR_REGISTER "+x"

namespace phalanx::kernels::bench {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr const char* kInstruction = "vfmadd ymm";
inline Vec Set1(float v) { return _mm256_set1_ps(v); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

#include "kernels/bench/peak_vector.inc"

}  // namespace

const PeakLoop& PeakAvx2() { return kLoop; }

}  // namespace phalanx::kernels::bench
