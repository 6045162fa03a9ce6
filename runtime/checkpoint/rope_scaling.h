// Inverse frequencies of the rotary embedding, as Transformers' modeling_rope_utils.py computes
// them in float32.
#ifndef PHALANX_RUNTIME_CHECKPOINT_ROPE_SCALING_H_
#define PHALANX_RUNTIME_CHECKPOINT_ROPE_SCALING_H_

#include <cstdint>
#include <vector>

#include "runtime/checkpoint/model_config.h"

namespace phalanx::checkpoint {

struct RopeFrequencies {
  // [rotary_dim / 2], radians per position; dimension i turns with i + rotary_dim / 2.
  std::vector<float> inv_freq;
  // Multiplied into cosine and sine (YaRN); 1 for all other types.
  float attention_factor = 1.0f;
};

// `rotary_dim`: even, > 0.
// default: Su et al., arXiv:2104.09864; linear: Chen et al., arXiv:2306.15595; llama3: the
// Llama 3.1 release; yarn: Peng et al., arXiv:2309.00071. The same bits on every x86-64 host:
// powers are taken in extended precision and rounded once.
RopeFrequencies ComputeRopeFrequencies(const RopeParameters& rope, int64_t rotary_dim);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_ROPE_SCALING_H_
