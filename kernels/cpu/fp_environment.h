// The floating-point environment of rule R1: round to nearest, exceptions masked, denormal results
// and inputs flushed to zero (MXCSR FTZ | DAZ), as TDPBF16PS does whatever MXCSR says.
#ifndef PHALANX_KERNELS_CPU_FP_ENVIRONMENT_H_
#define PHALANX_KERNELS_CPU_FP_ENVIRONMENT_H_

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace phalanx::kernels {

// Sets the environment for the current thread while it lives, then restores what was there.
class ScopedFpEnvironment {
 public:
#if defined(__x86_64__)
  ScopedFpEnvironment() : saved_(_mm_getcsr()) {
    if (saved_ != kMxcsr) _mm_setcsr(kMxcsr);
  }
  ~ScopedFpEnvironment() {
    if (saved_ != kMxcsr) _mm_setcsr(saved_);
  }
#elif defined(__aarch64__)
  ScopedFpEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{1} << 24));  // FZ
  }
  ~ScopedFpEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
#error "no flush-to-zero control is known for this processor"
#endif
  ScopedFpEnvironment(const ScopedFpEnvironment&) = delete;
  ScopedFpEnvironment& operator=(const ScopedFpEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  // FTZ (bit 15), all exceptions masked (bits 7 to 12), DAZ (bit 6), rounding to nearest.
  static constexpr unsigned kMxcsr = 0x9FC0;
  unsigned saved_;
#else
  uint64_t saved_;
#endif
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_FP_ENVIRONMENT_H_
