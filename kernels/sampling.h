// The plain values of sampling, which device code shares (so no framework here).
#ifndef PHALANX_KERNELS_SAMPLING_H_
#define PHALANX_KERNELS_SAMPLING_H_

#include <cstdint>

namespace phalanx::kernels {

struct MaxSum {
  float max;  // -inf when empty
  float sum;  // sum of exp(x - max)
};

// Counter of R5: who asks for randomness. Philox-4x32-10 (Salmon et al., SC 2011), key = seed.
struct GumbelKey {
  uint64_t seed = 0;
  uint32_t position = 0;  // absolute position of the token being chosen
  uint32_t sample = 0;    // sample index of the request (n > 1)
  uint32_t purpose = 0;   // 0: choosing a token
};

struct Choice {
  int32_t id = -1;
  float value = 0;
};

// One choice from row `row` of a matrix of logits.
struct GumbelRow {
  int64_t row = 0;
  float temperature = 0;
  float threshold = 0;  // logits below it can't be chosen
  GumbelKey key;
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_SAMPLING_H_
