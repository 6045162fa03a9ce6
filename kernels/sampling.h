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

// One choice from row `row` of a matrix of logits. In order (the order of R5: logit descending, id
// ascending; NaN and -inf are in it nowhere), of all ids stay
//   the first top_k,
//   of those the shortest beginning that has top_p of their shares (kernels/choosing.h),
//   of those the ids whose probability is at least min_p times the best's: whose logit /
//   temperature is no more than -ln(min_p) below the best's,
// and of what stays the id with the largest logit / temperature + Gumbel(key, id) is chosen; ties
// go to the lower id. With temperature 0 nothing is cut and the best logit is chosen.
struct ChoiceRow {
  int64_t row = 0;
  float temperature = 0;
  int32_t top_k = 0;  // 0: all
  float top_p = 1;    // (0, 1]
  float min_p = 0;    // [0, 1]
  GumbelKey key;
};

// One id's logit becomes, in this order: + bias; divided (if positive, else multiplied) by
// `repetition`; - frequency; - presence; or -inf where it may not be chosen.
struct LogitEdit {
  int64_t row = 0;
  int32_t id = 0;
  float bias = 0;
  float repetition = 1;
  float frequency = 0;  // the penalty times the occurrences
  float presence = 0;
  bool suppressed = false;
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_SAMPLING_H_
