// How a request wants its tokens chosen. A plain value that travels with every step.
#ifndef PHALANX_RUNTIME_SAMPLING_SAMPLING_PARAMS_H_
#define PHALANX_RUNTIME_SAMPLING_SAMPLING_PARAMS_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace phalanx::sampling {

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0: all
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0; 1: off (Keskar et al., arXiv:1909.05858)
  float frequency_penalty = 0.0f;   // [-2, 2], per occurrence among generated tokens
  float presence_penalty = 0.0f;    // [-2, 2], once per generated token
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, added to its logit
  int32_t logprobs = -1;         // -1: none; K >= 0: the chosen token's and the top K
  int32_t prompt_logprobs = -1;  // likewise for prompt tokens

  bool has_penalties() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

}  // namespace phalanx::sampling

#endif  // PHALANX_RUNTIME_SAMPLING_SAMPLING_PARAMS_H_
