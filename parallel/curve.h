// A measured or given function of one number, as points.
#ifndef PHALANX_PARALLEL_CURVE_H_
#define PHALANX_PARALLEL_CURVE_H_

#include <utility>
#include <vector>

namespace phalanx::parallel {

// Piecewise linear through its points, which have rising x. Left of the first point: the first y.
// Right of the last: the last segment goes on (never falling), which is what the time of a transfer
// does with its size; a single point is a constant.
class Curve {
 public:
  Curve() = default;
  explicit Curve(double constant) : points_{{0.0, constant}} {}
  // `points`: (x, y) in any order, each x once.
  explicit Curve(std::vector<std::pair<double, double>> points);

  bool empty() const { return points_.empty(); }
  // 0 where there are no points.
  double At(double x) const;
  const std::vector<std::pair<double, double>>& points() const { return points_; }

 private:
  std::vector<std::pair<double, double>> points_;
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_CURVE_H_
