// Rotary position tables (Su et al., "RoFormer", arXiv:2104.09864), with arithmetic of our own:
// neither libm nor FMA, so every machine gets the same bits.
#ifndef PHALANX_KERNELS_ROPE_H_
#define PHALANX_KERNELS_ROPE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace phalanx::kernels {

// [positions, rotary_dim / 2] each, row-major, in F32.
struct RopeTables {
  std::vector<float> cos;
  std::vector<float> sin;
};

// The angle of position p and frequency i is float(p) * inv_freq[i], rounded to F32, as Hugging
// Face Transformers computes it. The tables hold its cosine and sine, rounded to F32, times
// `attention_factor` in F32 (1, or YaRN's).
// `inv_freq`: [rotary_dim / 2], radians per position, in (0, 1], the family's scaling applied.
// `cos`, `sin`: [positions.size(), rotary_dim / 2], row i for positions[i], each in [0, 2^23).
void RopeRows(absl::Span<const float> inv_freq, absl::Span<const int32_t> positions,
              float attention_factor, float* cos, float* sin);
// The rows of positions 0 .. positions - 1, at most 2^23.
RopeTables BuildRopeTables(absl::Span<const float> inv_freq, int64_t positions,
                           float attention_factor);

// sin(x) and cos(x) within 1e-15 for |x| <= 2^23.
void SinCos(double x, double* sin, double* cos);
// e^x within 1 ulp or so for |x| <= 700.
double ExpDouble(double x);
// ln(x) within 1 ulp or so for normal x > 0.
double LogDouble(double x);
// base^exponent for base > 0 with |exponent * ln(base)| <= 700, within 1e-15 * (1 + |exponent *
// ln(base)|) relative. For inv_freq[i] = 1 / theta^(2i / rotary_dim) and the like.
double PowDouble(double base, double exponent);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_ROPE_H_
