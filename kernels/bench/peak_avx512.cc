// Compiled with -mavx512f.
#include <immintrin.h>

#include "kernels/bench/peak.h"

#define PHALANX_VECTOR_REGISTER "+v"

namespace phalanx::kernels::bench {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr const char* kInstruction = "vfmadd zmm";
inline Vec Set1(float v) { return _mm512_set1_ps(v); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

#include "kernels/bench/peak_vector.inc"

}  // namespace

const PeakLoop& PeakAvx512() { return kLoop; }

}  // namespace phalanx::kernels::bench
