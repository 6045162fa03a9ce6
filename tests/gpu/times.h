// Measurements of one thing, and how they are told.
#ifndef PHALANX_TESTS_GPU_TIMES_H_
#define PHALANX_TESTS_GPU_TIMES_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "nlohmann/json.hpp"

namespace phalanx::timing {

using Json = nlohmann::ordered_json;

// In seconds.
struct Times {
  double median = 0;
  double least = 0;
  double most = 0;
};

// The value at `share` of the way through `values`, of which there is at least one, in their order:
// 0.5 is the median, 1 the most.
inline double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(share * static_cast<double>(values.size()));
  return values[std::min(rank, values.size() - 1)];
}

inline Times TimesOf(const std::vector<double>& seconds) {
  return {Percentile(seconds, 0.5), Percentile(seconds, 0), Percentile(seconds, 1)};
}

inline Json Microseconds(const Times& times) {
  return {{"microseconds", times.median * 1e6},
          {"least", times.least * 1e6},
          {"most", times.most * 1e6}};
}

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_TIMES_H_
