// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl and AVX2's flags.
#include <immintrin.h>

#include "kernels/cpu/matmul_job.h"

namespace phalanx::kernels::cpu {
namespace {

struct Isa {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  // 12 x 2 chains, 2 weights and a broadcast of the 32 registers.
  static constexpr int kBlockedRows = 12;
  static constexpr int kBlockedPanels = 2;
  static constexpr int kDirectRows = 6;
  static constexpr int kMaxDirectRows = 12;
  static constexpr int64_t kRowsPerPass = 240;
  static constexpr int64_t kPrefetchBytes = 2048;
  static constexpr int DirectPanels(bool bf16, int rows) {
    if (bf16) return rows <= 3 ? 4 : 2;
    return rows <= 4 ? 4 : 2;
  }

  static Vec OwnZero() {
    Vec v = _mm512_setzero_ps();
    asm("" : "+v"(v));
    return v;
  }
  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec Broadcast(float v) { return _mm512_set1_ps(v); }
  static Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static void LoadPairs(const uint16_t* pairs, Vec* even, Vec* odd) {
    const __m512i v = _mm512_loadu_si512(pairs);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    *odd =
        _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  static Vec LoadF16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void Prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
};

#include "kernels/cpu/matmul_kernels.inc"

}  // namespace

const MatMulTable& MatMulAvx512() { return kTable; }

}  // namespace phalanx::kernels::cpu
