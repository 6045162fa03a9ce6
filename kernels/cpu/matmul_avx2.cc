// Compiled with -mavx2 -mfma -mf16c.
#include <immintrin.h>

#include "kernels/cpu/matmul_job.h"

namespace phalanx::kernels::cpu {
namespace {

struct Isa {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  // 4 x 2 chains just hide the latency of FMA; on Zen 3, 6 x 2 was slower.
  static constexpr int kBlockedRows = 4;
  static constexpr int kBlockedPanels = 1;
  static constexpr int kDirectRows = 6;
  static constexpr int kMaxDirectRows = 12;
  static constexpr int64_t kRowsPerPass = 120;
  static constexpr int64_t kPrefetchBytes = 1024;
  static constexpr int DirectPanels(bool bf16, int rows) {
    if (bf16) return rows == 1 ? 2 : rows <= 3 ? 1 : 0;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  }

  static Vec OwnZero() {
    Vec v = _mm256_setzero_ps();
    asm("" : "+x"(v));
    return v;
  }
  static Vec Zero() { return _mm256_setzero_ps(); }
  static Vec Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec Broadcast(float v) { return _mm256_set1_ps(v); }
  static Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static void LoadPairs(const uint16_t* pairs, Vec* even, Vec* odd) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    *odd = _mm256_and_ps(_mm256_castsi256_ps(v),
                         _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  static Vec LoadF16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void Prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
};

#include "kernels/cpu/matmul_kernels.inc"

}  // namespace

const MatMulTable& MatMulAvx2() { return kTable; }

}  // namespace phalanx::kernels::cpu
