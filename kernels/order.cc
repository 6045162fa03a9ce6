#include "kernels/order.h"

#include <algorithm>
#include <limits>

namespace phalanx::kernels {

std::vector<int32_t> BestIds(absl::Span<const float> row, int64_t k) {
  std::vector<int32_t> heap;  // the worst in front
  if (k <= 0) return heap;
  heap.reserve(std::min<int64_t>(k, static_cast<int64_t>(row.size())));
  const BetterId better{row.data()};
  float worst = -std::numeric_limits<float>::infinity();
  // Rising ids, so that an equal logit that comes later never displaces an earlier one.
  for (int32_t id = 0; id < static_cast<int32_t>(row.size()); ++id) {
    if (!(row[id] > worst)) continue;
    if (static_cast<int64_t>(heap.size()) == k) {
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.pop_back();
    }
    heap.push_back(id);
    std::push_heap(heap.begin(), heap.end(), better);
    if (static_cast<int64_t>(heap.size()) == k) worst = row[heap.front()];
  }
  std::sort(heap.begin(), heap.end(), better);
  return heap;
}

}  // namespace phalanx::kernels
