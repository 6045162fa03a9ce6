#include "kernels/bench/read_bandwidth.h"

#include "absl/strings/str_cat.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace phalanx::kernels::bench {
namespace {

constexpr int64_t kLine = 64;
// Bytes of one work unit of a thread; its streams divide it.
constexpr int64_t kUnit = int64_t{1} << 20;

template <int kStreams>
void ReadUnit(const char* data, int64_t prefetch_bytes) {
  constexpr int64_t kLength = kUnit / kStreams;
#if defined(__SSE2__)
  __m128i sum = _mm_setzero_si128();
  for (int64_t at = 0; at < kLength; at += 2 * kLine) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const char* p = data + s * kLength + at;
      if (prefetch_bytes > 0) {
        _mm_prefetch(p + prefetch_bytes, _MM_HINT_T0);
        _mm_prefetch(p + prefetch_bytes + kLine, _MM_HINT_T0);
      }
      const __m128i* v = reinterpret_cast<const __m128i*>(p);
      const __m128i a = _mm_xor_si128(_mm_xor_si128(v[0], v[1]), _mm_xor_si128(v[2], v[3]));
      const __m128i b = _mm_xor_si128(_mm_xor_si128(v[4], v[5]), _mm_xor_si128(v[6], v[7]));
      sum = _mm_xor_si128(sum, _mm_xor_si128(a, b));
    }
  }
  volatile int keep = _mm_cvtsi128_si32(sum);
#else
  uint64_t sum = 0;
  for (int64_t at = 0; at < kLength; at += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const auto* v = reinterpret_cast<const uint64_t*>(data + s * kLength + at);
      if (prefetch_bytes > 0) __builtin_prefetch(data + s * kLength + at + prefetch_bytes);
      for (int i = 0; i < 8; ++i) sum ^= v[i];
    }
  }
  volatile uint64_t keep = sum;
#endif
  (void)keep;
}

}  // namespace

std::string ReadPattern::Describe() const {
  return absl::StrCat(
      streams, streams == 1 ? " stream" : " streams", " a thread, ",
      prefetch_bytes == 0 ? "no prefetch" : absl::StrCat("prefetch ", prefetch_bytes, " B ahead"));
}

std::vector<ReadPattern> ReadPatterns() {
  std::vector<ReadPattern> patterns;
  for (const int streams : {1, 2, 4, 8}) {
    for (const int64_t prefetch : {0, 512, 1024, 2048, 4096})
      patterns.push_back({streams, prefetch});
  }
  return patterns;
}

void ReadAll(ThreadPool& pool, const ReadPattern& pattern, const void* data, int64_t bytes) {
  pool.ParallelFor(bytes / kUnit, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const char* p = static_cast<const char*>(data) + unit * kUnit;
      switch (pattern.streams) {
        case 1:
          ReadUnit<1>(p, pattern.prefetch_bytes);
          break;
        case 2:
          ReadUnit<2>(p, pattern.prefetch_bytes);
          break;
        case 4:
          ReadUnit<4>(p, pattern.prefetch_bytes);
          break;
        default:
          ReadUnit<8>(p, pattern.prefetch_bytes);
      }
    }
  });
}

}  // namespace phalanx::kernels::bench
