// Which hosts the ranks of each data-parallel replica run on.
#ifndef PHALANX_LAUNCHER_PLACEMENT_H_
#define PHALANX_LAUNCHER_PLACEMENT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx::launcher {

struct HostSlots {
  std::string host;
  int slots = 1;  // ranks that may run there, >= 1
  int first = 0;  // of a replica's: ranks before its own on that host
  friend bool operator==(const HostSlots&, const HostSlots&) = default;
};

// Where one replica runs.
struct Placement {
  std::vector<HostSlots> hosts;  // in rank order
  // The most ranks, of all replicas, that any of these hosts runs: what its cores and memory are
  // divided by.
  int ranks_per_host = 1;
};

// "a:2,b", as mpirun's --host. INVALID_ARGUMENT names the entry.
absl::StatusOr<std::vector<HostSlots>> ParseHosts(const std::string& text);
// Lines "a slots=2" as in mpirun's --hostfile; '#' begins a comment, further words of a line are
// left to mpirun. NOT_FOUND, or INVALID_ARGUMENT naming file and line.
absl::StatusOr<std::vector<HostSlots>> ReadHostfile(const std::string& path);
// "a:2,b:1".
std::string ToHostList(const std::vector<HostSlots>& hosts);

// Gives every replica its ranks' slots, in the order of the hosts. INVALID_ARGUMENT: too few slots.
absl::StatusOr<std::vector<Placement>> PlaceReplicas(const std::vector<HostSlots>& hosts,
                                                     int replicas, int ranks_per_replica);

// The hosts for the next worker group where `fruitless` in a row came to nothing although each host
// can be reached: all of them for two tries, then half, a quarter and so on down to
// one, the first ones and the last ones in turn.
std::vector<HostSlots> HostsToTry(const std::vector<HostSlots>& hosts, int fruitless);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PLACEMENT_H_
