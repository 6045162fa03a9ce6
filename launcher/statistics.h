#ifndef PHALANX_LAUNCHER_STATISTICS_H_
#define PHALANX_LAUNCHER_STATISTICS_H_

#include <vector>

namespace phalanx::launcher {

// What repeated measurements say. All are 0 of no values.

// The middle one, or the mean of the two in the middle.
double Median(std::vector<double> values);
// The mean without the least and the greatest tenth, each rounded up; of one or two values, of all.
// What long work takes where others now and then take a core away, which a median of
// short pieces would not show.
double TrimmedMean(std::vector<double> values);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_STATISTICS_H_
