#include "kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace phalanx::kernels::cpu {
namespace {

#if defined(__x86_64__)

// Leave for a dynamically enabled state component (Linux, Documentation/arch/x86/xstate.rst).
bool RequestTileData() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

// Bit positions: Intel SDM vol. 2, CPUID.
CpuFeatures Detect() {
  CpuFeatures found;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = (c >> 27 & 1) != 0;
  const bool fma = (c >> 12 & 1) != 0;
  const bool f16c = (c >> 29 & 1) != 0;
  if (!osxsave) return found;
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kAvxState = 0x6;
  constexpr uint32_t kAvx512State = 0xE6;
  constexpr uint32_t kTileState = 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const auto has_b = [b](int bit) { return (b >> bit & 1) != 0; };
  const auto has_d = [d](int bit) { return (d >> bit & 1) != 0; };
  found.avx2 = (low & kAvxState) == kAvxState && fma && f16c && has_b(5);
  found.avx512 = found.avx2 && (low & kAvx512State) == kAvx512State && has_b(16) && has_b(17) &&
                 has_b(30) && has_b(31);
  found.amx = found.avx512 && (low & kTileState) == kTileState && has_d(24) && has_d(22) &&
              RequestTileData();
  return found;
}

#else

CpuFeatures Detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& DetectCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

}  // namespace phalanx::kernels::cpu
