#include "parallel/curve.h"

#include <algorithm>

namespace phalanx::parallel {

Curve::Curve(std::vector<std::pair<double, double>> points) : points_(std::move(points)) {
  std::sort(points_.begin(), points_.end());
}

double Curve::At(double x) const {
  if (points_.empty()) return 0;
  if (points_.size() == 1 || x <= points_.front().first) return points_.front().second;
  auto right = std::lower_bound(points_.begin(), points_.end(), std::pair(x, -1e300));
  if (right == points_.end()) --right;
  const auto left = right - 1;
  double slope = (right->second - left->second) / (right->first - left->first);
  if (x > right->first) slope = std::max(slope, 0.0);
  return x > right->first ? right->second + (x - right->first) * slope
                          : left->second + (x - left->first) * slope;
}

}  // namespace phalanx::parallel
