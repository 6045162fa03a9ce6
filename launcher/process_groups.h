// The worker groups of one replica whose ranks are processes: where they run, with what layout, and
// the next one when one has died.
#ifndef PHALANX_LAUNCHER_PROCESS_GROUPS_H_
#define PHALANX_LAUNCHER_PROCESS_GROUPS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launcher/options.h"
#include "launcher/placement.h"
#include "launcher/planning.h"
#include "launcher/rank_launcher.h"
#include "parallel/mesh.h"
#include "runtime/control/control_server.h"
#include "runtime/control/remote_worker_group.h"
#include "runtime/coordinator/group_source.h"

namespace phalanx::launcher {

// What all groups of a service have in common.
struct GroupSetup {
  ServiceOptions options;
  PlanningOptions planning;  // for a layout on fewer hosts
  parallel::Layout layout;   // of one replica, dp = 1
  int replicas = 1;
  std::string profile;
  std::string checkpoint_digest;
  std::string token;
  int64_t max_context = 0;
  control::ControlServer* control = nullptr;
};

class ProcessGroupSource final : public coordinator::GroupSource {
 public:
  // `setup` outlives the source. `placement`: the replica's hosts; none: this machine, or what the
  // allocation gives. `progress`: bytes loaded so far and in all, while the first group starts.
  ProcessGroupSource(const GroupSetup& setup, int replica, Placement placement,
                     std::function<void(int64_t done, int64_t total)> progress);

  // The same layout on the same hosts, as long as all of them can run a process. A host that is
  // away is waited for, options.host_wait in all (UNAVAILABLE); then the layout is planned again on
  // those that are left. So it is on half of the hosts, then on a quarter and down to one, where
  // groups on all of them fail to start: hosts that can be reached may not reach each other.
  // RESOURCE_EXHAUSTED: these can't hold the model, or there is none. FAILED_PRECONDITION: there is
  // none, and other replicas go on.
  absl::StatusOr<std::unique_ptr<coordinator::WorkerGroup>> Next(
      const coordinator::GroupNeed& need) override;

  // Last heartbeats of the present group. Any thread.
  std::vector<control::RankHealth> Health() const;
  // How the ranks are started by hand, quoted for a shell.
  std::string CommandLine() const;

 private:
  struct Shape {
    parallel::Layout layout;
    std::vector<HostSlots> hosts;  // in rank order
    int64_t kv_blocks = 0;         // of each rank; 0: by the memory that there is
  };
  absl::StatusOr<Shape> Settle(const coordinator::GroupNeed& need);
  // A layout on `hosts`, some of the replica's, planned now.
  absl::StatusOr<Shape> ShapeOn(const std::vector<HostSlots>& hosts,
                                const coordinator::GroupNeed& need) const;
  absl::StatusOr<parallel::Layout> PlanOn(const std::vector<HostSlots>& hosts) const;
  std::string CoordinatorAddress() const;  // as ranks are told
  // The ranks' command line after the binary, but for what differs by machine (threads, memory).
  std::vector<std::string> WorkerArguments(const Shape& shape, uint64_t epoch,
                                           const std::string& model) const;
  RankLaunch Launch(const Shape& shape, uint64_t epoch, const std::string& model) const;

  const GroupSetup& setup_;
  const int replica_;
  const Placement placement_;
  const std::function<void(int64_t done, int64_t total)> progress_;
  RankLauncher launcher_;
  int64_t whole_kv_blocks_;  // of setup_.layout, once it was up; before: as the options say
  std::map<std::string, absl::Time> away_since_;  // hosts that were not there the last time

  mutable std::mutex mu_;
  std::function<std::vector<control::RankHealth>()> health_;  // guarded by mu_
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PROCESS_GROUPS_H_
