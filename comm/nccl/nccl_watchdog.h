// Ends what hangs on a device. The thread that computes can't: it waits for the stream.
#ifndef PHALANX_COMM_NCCL_NCCL_WATCHDOG_H_
#define PHALANX_COMM_NCCL_NCCL_WATCHDOG_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "comm/call.h"
#include "comm/nccl/nccl_group.h"
#include "kernels/kernels.h"

namespace phalanx::comm {

// One thread for a group, all that is split from it and those made beside it, which share one
// stream. It knows what was enqueued, in order, by markers on the stream. It ends a group when
//
// - the group was aborted: by Abort() here or elsewhere, which it learns from the group's host;
// - NCCL met an error in the background;
// - the oldest thing on the stream is a call of the group and has been that for its timeout.
//
// In the last case the members first call the roll, on a group of the host of their own: the first
// whose call expires aborts `alarm`, whereupon the watchdogs of all tell each other what they are
// in; who is missing, or elsewhere, is named. Then the group is aborted on the host, so that all
// members know, and only then is NCCL's communicator: the results of a collective that NCCL gave up
// are not defined, and nobody must believe them.
class NcclWatchdog {
 public:
  struct Options {
    // Between looks. A hang is noticed that much late at most.
    absl::Duration tick = absl::Milliseconds(50);
    // For the others to answer the roll call.
    absl::Duration roll_call_timeout = absl::Seconds(2);
    // From the abort on the host to NCCL's: notes to other nodes travel meanwhile.
    absl::Duration abort_grace = absl::Milliseconds(100);
  };

  NcclWatchdog(std::shared_ptr<const nccl::Library> library, const Options& options);
  // All groups must have been removed.
  ~NcclWatchdog();

  void Add(NcclGroup* group);
  // On return the watchdog has let go of it.
  void Remove(NcclGroup* group);

  struct Watched {
    std::string what;  // "AllReduce"
    uint64_t number;   // of the collective, or of the last one before a message
    uint64_t digest;   // of the arguments that must match on every member
    int peer = -1;     // the other end of a message; -1: a collective
    absl::Duration timeout;
  };
  // From the thread that computes: before the call is enqueued and after. A null marker: it was
  // not, or is not to be watched. `Begin` returns what `Enqueued` takes.
  uint64_t Begin(NcclGroup* group, Watched watched);
  void Enqueued(uint64_t id, std::unique_ptr<kernels::Marker> marker);
  // From any thread: look now.
  void Wake();

 private:
  struct Entry {
    uint64_t id;
    NcclGroup* group;
    Watched watched;
    std::unique_ptr<kernels::Marker> marker;  // null: it is being enqueued
    Clock::time_point oldest_since;           // when it became the oldest; min(): it hasn't
  };
  // What a member says when the roll is called.
  struct Place {
    uint64_t waiting_number;  // of the group's oldest call on the stream
    uint64_t waiting_digest;
    uint64_t begun_number;  // of the collective that was begun last
    uint32_t begun_op;
    int32_t waiting_peer;
    char waiting[24];  // its name; empty: there is none
    char behind[24];   // the stream's oldest call, if it is another group's
  };

  void Run();
  // One look at everything.
  void Look();
  // Ends NCCL's communicators of groups that were aborted on the host.
  void EndAborted(absl::Span<NcclGroup* const> groups);
  void CheckExpired();
  Place PlaceOf(NcclGroup* group);
  // Who is where; an error names who did not answer. Once for a group, which then ends.
  const absl::StatusOr<std::vector<Place>>& CallRoll(NcclGroup* group);
  static std::string Explain(const NcclGroup& group, const Watched& watched,
                             const std::vector<Place>& places);

  const std::shared_ptr<const nccl::Library> library_;
  const Options options_;

  std::mutex look_mutex_;  // held for a look, and taken before `mutex_`
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool wanted_ = false;  // a look at once
  std::vector<NcclGroup*> groups_;
  std::set<NcclGroup*> ended_;  // their NCCL communicators were taken
  std::map<NcclGroup*, absl::StatusOr<std::vector<Place>>> rolls_;  // that were called
  std::deque<Entry> entries_;
  uint64_t last_id_ = 0;
  std::vector<std::thread> aborters_;
  std::thread thread_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_NCCL_NCCL_WATCHDOG_H_
