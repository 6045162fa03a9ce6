// A rank's end of the keeper of its host.
#ifndef PHALANX_LAUNCHER_KEEPER_STORE_H_
#define PHALANX_LAUNCHER_KEEPER_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launcher/descriptor.h"
#include "proto/phalanx/v1/control.pb.h"
#include "runtime/model/weight_store.h"

namespace phalanx::launcher {

struct KeeperStoreOptions {
  std::string socket_name;  // KeeperSocketName
  int replica = 0;
  uint64_t epoch = 0;
  int threads = 1;  // that check what is found
  // Starts a keeper where none is; empty: another rank of this host does.
  std::function<absl::Status()> start_keeper;
  absl::Duration start_timeout = absl::Seconds(5);  // until a keeper that was started answers
  // Says something to people.
  std::function<void(const std::string&)> warn;
};

class KeeperStore : public model::WeightStore {
 public:
  explicit KeeperStore(KeeperStoreOptions options) : options_(std::move(options)) {}

  Found Find(const std::vector<std::string>& keys, int rank) override;
  void Keep(const model::WeightArena& arena) override;
  void Agreed(uint64_t content) override;
  void Warn(absl::string_view why) override;

 private:
  // NOT_FOUND: no keeper is there.
  absl::Status Connect();
  absl::StatusOr<v1::KeeperReply> Ask(v1::KeeperRequest request, int fd, Descriptor* received);

  const KeeperStoreOptions options_;
  Descriptor socket_;
};

// `phalanx keeper` as a process that nobody waits for: of its own session, with no descriptor of
// this process. `environment`: variables added to this process's.
absl::Status StartDetached(const std::vector<std::string>& arguments,
                           const std::map<std::string, std::string>& environment);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_KEEPER_STORE_H_
