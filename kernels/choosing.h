// What all devices compute alike when they edit and cut a row of logits (LogitEdit, ChoiceRow). An
// id's share of the softmax is a whole number of units of 2^-40 of the best id's, so that sums of
// shares have the same bits in any order.
#ifndef PHALANX_KERNELS_CHOOSING_H_
#define PHALANX_KERNELS_CHOOSING_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/host_device.h"
#include "kernels/sampling.h"

namespace phalanx::kernels {

inline constexpr float kNeverChosen = -std::numeric_limits<float>::infinity();

PHALANX_SHARED float Edited(float logit, const LogitEdit& edit) {
  if (edit.suppressed) return kNeverChosen;
  float x = logit + edit.bias;
  if (edit.repetition != 1.0f) x = x > 0.0f ? x / edit.repetition : x * edit.repetition;
  return (x - edit.frequency) - edit.presence;
}

// The ids that stay: those whose logit is above `threshold`, and at it those up to last_id.
struct Cut {
  float threshold;
  int32_t last_id;
};
inline constexpr int32_t kEveryTie = 0x7fffffff;
inline constexpr Cut kNoCut = {kNeverChosen, kEveryTie};

PHALANX_SHARED bool HasCut(const ChoiceRow& row) {
  return row.temperature != 0.0f && (row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f);
}

// Whether two choices from one row have its cut in common.
PHALANX_SHARED bool SameCut(const ChoiceRow& a, const ChoiceRow& b) {
  return a.row == b.row && a.temperature == b.temperature && a.top_k == b.top_k &&
         a.top_p == b.top_p && a.min_p == b.min_p;
}

// `weight`: e^(x / T - max / T), 1 where x / T is max / T.
PHALANX_SHARED uint64_t ShareUnits(float weight) {
  return weight > 0.0f ? static_cast<uint64_t>(weight * 0x1p40f) : 0;
}

// Units that the ids left by top_p have at least, of `total` units. 1 .. total.
PHALANX_SHARED uint64_t WantedUnits(float top_p, uint64_t total) {
  const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted < 1.0 ? 1 : static_cast<uint64_t>(wanted);
}

// The id that is fed where a step says `id`: itself, or for -1 - s that of chosen[s]. Where nothing
// was chosen the sequence has ended, and any id will do.
PHALANX_SHARED int32_t FedId(int32_t id, const Choice* chosen) {
  if (id >= 0 || chosen == nullptr) return id;
  const int32_t fed = chosen[-1 - id].id;
  return fed < 0 ? 0 : fed;
}

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CHOOSING_H_
