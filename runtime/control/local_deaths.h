// Which of the ranks on this host died first.
//
// A rank's death ends its peers within a millisecond (mpirun kills them), and then all control
// streams break at once and are heard of in any order. The kernel knows the order: a process that
// ends becomes readable through its pidfd, and one epoll reports what became readable in that
// order.
#ifndef PHALANX_RUNTIME_CONTROL_LOCAL_DEATHS_H_
#define PHALANX_RUNTIME_CONTROL_LOCAL_DEATHS_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace phalanx::control {

// Thread-safe. What can't be watched (another host, a kernel before Linux 5.3) is left out.
class LocalDeaths {
 public:
  LocalDeaths();
  ~LocalDeaths();
  LocalDeaths(const LocalDeaths&) = delete;
  LocalDeaths& operator=(const LocalDeaths&) = delete;

  // `who`, a number of the caller's, is process `pid` of `host`; one that is watched already gets a
  // new process.
  void Watch(int who, const std::string& host, int64_t pid);
  // To be asked when `who` seems to have died: whose process ended first, waiting up to `patience`
  // for one to end. `who` itself where it isn't watched or none has ended.
  int FirstOr(int who, absl::Duration patience);

 private:
  const int epoll_;  // -1: there is none
  std::string host_;
  std::mutex mutex_;
  std::map<int, int> processes_;  // pidfd by who
  std::optional<int> first_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_LOCAL_DEATHS_H_
