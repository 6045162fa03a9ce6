// The order of R5 over the ids of one row of logits: logit descending, id ascending.
#ifndef PHALANX_KERNELS_ORDER_H_
#define PHALANX_KERNELS_ORDER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace phalanx::kernels {

struct BetterId {
  const float* row;
  bool operator()(int32_t a, int32_t b) const { return row[a] != row[b] ? row[a] > row[b] : a < b; }
};

// The first k ids in order, or all where there are fewer; NaN and -inf are never among them.
std::vector<int32_t> BestIds(absl::Span<const float> row, int64_t k);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_ORDER_H_
