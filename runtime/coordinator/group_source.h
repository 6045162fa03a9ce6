// Where a replica's worker groups come from, one after the other.
#ifndef PHALANX_RUNTIME_COORDINATOR_GROUP_SOURCE_H_
#define PHALANX_RUNTIME_COORDINATOR_GROUP_SOURCE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/coordinator/worker_group.h"

namespace phalanx::coordinator {

struct GroupNeed {
  uint64_t epoch = 1;     // of the group to make; 1: the first
  int failed_starts = 0;  // in a row, before this one
  absl::Status cause;     // what ended the group before, or its start; OK for the first
};

class GroupSource {
 public:
  virtual ~GroupSource() = default;
  // A group that has not been started, on whatever machines and with whatever layout the source
  // finds. Called by one thread, which starts and stops the group and outlives it; the group before
  // has been stopped. May take seconds. FAILED_PRECONDITION: there will be none any more, with what
  // the user can do; any other error may pass and is tried again.
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
