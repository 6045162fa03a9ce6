// Where a replica's worker groups come from, one after the other.
#ifndef PHALANX_RUNTIME_COORDINATOR_GROUP_SOURCE_H_
#define PHALANX_RUNTIME_COORDINATOR_GROUP_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::coordinator {

struct GroupNeed {
  uint64_t epoch = 1;     // of the group to make; 1: the first
  int failed_starts = 0;  // in a row, before this one
  // Groups in a row, before this one, that did not start or died before they had computed anything;
  // waiting for a machine is none.
  int fruitless = 0;
  absl::Status cause;  // what ended the group before, or its start; OK for the first
  // Of the group that was up last: its layout (empty: none was) and the blocks of each rank. The
  // next with that layout holds as many, so that every request that fitted fits again.
  std::string last_layout;
  int64_t last_kv_blocks = 0;
};

class GroupSource {
 public:
  virtual ~GroupSource() = default;
  // A group that has not been started, on whatever machines and with whatever layout the source
  // finds. Called by one thread, which starts and stops the group and outlives it; the group before
  // has been stopped. May take seconds. UNAVAILABLE: it waits for a machine, ask again; that is no
  // try. FAILED_PRECONDITION: there will be none any more, with what the user can do. Any other
  // error is a try that failed.
  virtual absl::StatusOr<std::unique_ptr<WorkerGroup>> Next(const GroupNeed& need) = 0;
};

// One group, which can't be replaced.
class SingleGroupSource : public GroupSource {
 public:
  explicit SingleGroupSource(std::unique_ptr<WorkerGroup> group) : group_(std::move(group)) {}
  absl::StatusOr<std::unique_ptr<WorkerGroup>> Next(const GroupNeed& need) override {
    if (group_ == nullptr) return absl::FailedPreconditionError(need.cause.message());
    return std::move(group_);
  }

 private:
  std::unique_ptr<WorkerGroup> group_;
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_GROUP_SOURCE_H_
