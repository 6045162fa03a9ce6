// Scalar twins of the kernels' arithmetic, for references, sampling on the host and tests. They
// give the bits that every vector path gives, whatever the floating-point environment, and use no
// libm.
#ifndef PHALANX_KERNELS_SCALAR_MATH_H_
#define PHALANX_KERNELS_SCALAR_MATH_H_

#include <cstdint>

#include "kernels/float16.h"
#include "kernels/sampling.h"

namespace phalanx::kernels {

// e^x, within 1 ulp. +0 for x < -87.33654 (results below the smallest normal), +inf above
// 88.72283, NaN for NaN.
float ExpScalar(float x);

// ln(x), within 1 ulp. Denormals count as zero (-inf); NaN for x < 0 and NaN.
float LogScalar(float x);

// Standard Gumbel noise -ln(-ln(u)) for one token id: u = (w + 0.5) / 2^32 with w the first word of
// Philox-4x32-10 with key {seed low, seed high} and counter {position, sample, token_id, purpose}.
// Finite: between -3.14 and 22.88.
float Gumbel(const GumbelKey& key, uint32_t token_id);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_SCALAR_MATH_H_
