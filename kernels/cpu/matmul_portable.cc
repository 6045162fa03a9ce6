// Plain C++ for machines without AVX2, and the layout's second opinion on those with it.
#include <cmath>

#include "kernels/cpu/half.h"
#include "kernels/cpu/matmul_job.h"

namespace phalanx::kernels::cpu {
namespace {

struct Isa {
  struct Vec {
    float lane[16];
  };
  static constexpr int kLanes = 16;
  static constexpr int kBlockedRows = 4;
  static constexpr int kBlockedPanels = 1;
  static constexpr int kDirectRows = 4;
  static constexpr int kMaxDirectRows = 4;
  static constexpr int64_t kRowsPerPass = 64;
  static constexpr int64_t kPrefetchBytes = 1024;
  static constexpr int DirectPanels(bool, int) { return 1; }

  static Vec OwnZero() { return {}; }
  static Vec Zero() { return {}; }
  static Vec Load(const float* p) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = p[i];
    return v;
  }
  static void Store(float* p, const Vec& v) {
    for (int i = 0; i < kLanes; ++i) p[i] = v.lane[i];
  }
  static Vec Broadcast(float value) {
    Vec v;
    for (float& lane : v.lane) lane = value;
    return v;
  }
  // Not inlined: sixteen calls of fma in every unrolled block take the compiler minutes.
  [[gnu::noinline]] static Vec Fma(const Vec& a, const Vec& b, const Vec& c) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return v;
  }
  static Vec Add(const Vec& a, const Vec& b) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = a.lane[i] + b.lane[i];
    return v;
  }
  static void LoadPairs(const uint16_t* pairs, Vec* even, Vec* odd) {
    for (int i = 0; i < kLanes; ++i) {
      even->lane[i] = WidenBf16(pairs[2 * i]);
      odd->lane[i] = WidenBf16(pairs[2 * i + 1]);
    }
  }
  static Vec LoadF16(const uint16_t* p) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = WidenF16(p[i]);
    return v;
  }
  static void Prefetch(const char*) {}
};

#include "kernels/cpu/matmul_kernels.inc"

}  // namespace

const MatMulTable& MatMulPortable() { return kTable; }

}  // namespace phalanx::kernels::cpu
