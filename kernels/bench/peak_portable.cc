#include <cmath>

#include "kernels/bench/peak.h"

namespace phalanx::kernels::bench {
namespace {

constexpr int kChains = 8;

void Run(int64_t iterations) {
  float chains[kChains] = {};
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& chain : chains) chain = std::fma(chain, 0.5f, 1.0f);
  }
  for (const float chain : chains) {
    volatile float keep = chain;
    (void)keep;
  }
}

constexpr PeakLoop kLoop = {"std::fma", kChains * 2, Run};

}  // namespace

const PeakLoop& PeakPortable() { return kLoop; }

}  // namespace phalanx::kernels::bench
