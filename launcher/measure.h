// Measures the machines of this allocation for the planner: read bandwidth, matrix rate, the cost
// of ops, and every collective by size, with real packed weights and real communicators.
#ifndef PHALANX_LAUNCHER_MEASURE_H_
#define PHALANX_LAUNCHER_MEASURE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "kernels/kernels.h"
#include "proto/phalanx/v1/cluster.pb.h"

namespace phalanx::launcher {

struct MeasureOptions {
  int max_ranks = 0;     // ranks at once, at most; 0: twice the cores, up to 8
  int threads = 0;       // of each rank; 0: cores / ranks, as ranks are started
  std::string cpu_path;  // empty: the fastest
  bool quick = false;    // fewer repeats and sizes: the figures mean little
  // Hosts "a:2,b:2" between which collectives are measured too, by mpirun; empty: this machine
  // alone.
  std::string hosts;
  std::string mpirun = "mpirun";
};

// Ranks are threads of this process, each with its own kernels and weights, kept in step by a real
// communicator. INVALID_ARGUMENT: a CPU path that this machine lacks; RESOURCE_EXHAUSTED: no memory
// for the weights that are read (some 100 MB in all, or 20 MB a rank if that is more).
absl::StatusOr<v1::Calibration> Measure(const MeasureOptions& options);

// Of a clock that nobody sets; what all ranks of one host share.
double SteadySeconds();

// How exactly rates are measured.
struct RateEffort {
  int rounds = 11;          // of all probes: medians are of so many
  bool few_rows = false;    // 1, 16 and 128 rows alone
  int64_t max_rows = 512;   // of the matmuls
  double segment_s = 3e-3;  // between two barriers, at least
};
// One rank's part; collective over `world`, all of whose ranks compute at once with `cpu`. The
// result counts on rank 0.
absl::StatusOr<v1::RateMeasurement> MeasureRates(comm::Communicator& world,
                                                 const kernels::CpuOptions& cpu,
                                                 const RateEffort& effort);
// The same with `ranks` ranks that are threads of this process.
absl::StatusOr<v1::RateMeasurement> MeasureRatesHere(int ranks, const kernels::CpuOptions& cpu,
                                                     const RateEffort& effort);
// Every collective by size, in groups of every size that divides the world's, all ranks of `world`
// in groups of their own. `nodes`: the ranks are on so many nodes, as many consecutive ones on
// each; groups are made inside a node and, of one rank per node or more, across all of them.
absl::StatusOr<std::vector<v1::CollectiveMeasurement>> MeasureCollectives(comm::Communicator& world,
                                                                          int nodes, bool quick);

// How much of the machine others used meanwhile: a measurement among them is theirs, too.
class ForeignLoad {
 public:
  ForeignLoad();  // from here on
  // Cores that processes other than this one (and the children that it has waited for) were busy
  // on, on average; 0 where /proc/stat can't be read.
  double Cores() const;

 private:
  double begin_s_;  // clock
  double busy_s_;   // of all cores
  double own_s_;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_MEASURE_H_
