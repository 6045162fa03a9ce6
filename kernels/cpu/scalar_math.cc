#include "kernels/scalar_math.h"

#include <cstdint>

#include "kernels/cpu/scalar_lane.h"
// What the formulas are written in comes first.
#include "kernels/cpu/vector_math.h"

namespace phalanx::kernels {

float ExpScalar(float x) { return cpu::Exp(cpu::F32x1{x}).v; }

float LogScalar(float x) { return cpu::Log(cpu::F32x1{x}).v; }

float Gumbel(const GumbelKey& key, uint32_t token_id) {
  return cpu::GumbelNoise<cpu::F32x1>(key, cpu::I32x1{token_id}).v;
}

}  // namespace phalanx::kernels
