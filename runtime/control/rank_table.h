// The ranks of one worker group as the coordinator knows them: who has registered, what each has
// said, who is missing. Private to runtime/control.
#ifndef PHALANX_RUNTIME_CONTROL_RANK_TABLE_H_
#define PHALANX_RUNTIME_CONTROL_RANK_TABLE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "proto/phalanx/v1/control.pb.h"
#include "runtime/control/rank_stream.h"
#include "runtime/control/remote_worker_group.h"

namespace phalanx::control {

// "rank 1 (host a, pid 7)".
std::string Describe(const v1::Register& rank);
// "step 12, collective 345": of its last heartbeat.
std::string Whereabouts(const v1::Heartbeat& heartbeat);

// Not thread-safe: the group's mutex guards it.
class RankTable {
 public:
  struct Rank {
    std::shared_ptr<RankStream> stream;  // null: not registered, or its stream has ended
    v1::Register info;
    bool ready = false;
    v1::Ready sizes;
    v1::LoadProgress progress;
    v1::Heartbeat heartbeat;
    std::chrono::steady_clock::time_point heard;
  };

  // `options` outlives the table.
  explicit RankTable(const RemoteGroupOptions& options)
      : options_(options), ranks_(options.world_size) {}

  // Why a rank with this identity can't join; empty: it can.
  std::string ReasonToRefuse(const v1::Register& rank) const;
  // Precondition: ReasonToRefuse(rank) is empty.
  void Register(const std::shared_ptr<RankStream>& stream, const v1::Register& rank);
  // The rank that holds the stream, or null.
  Rank* Find(const RankStream* stream);
  const Rank& at(int rank) const { return ranks_[rank]; }

  int num_ready() const;
  bool all_ready() const { return num_ready() == options_.world_size; }
  bool all_gone() const;
  bool all_registered() const;
  bool any_registered() const;  // ever
  // The rank that was not heard of for longest, of those that are there; null: none is.
  const Rank* MostSilent() const;
  // This process itself did not run for so long: nobody was heard of, and nobody is to blame.
  void ForgiveSilence(std::chrono::steady_clock::duration gap);
  // "1 of 3 ranks have not registered (2); still loading: rank 0 (host a, pid 7)".
  std::string Missing() const;
  // What every rank was last heard of, for a hang: the one furthest behind first.
  std::string LastHeard() const;
  // Sums over ranks.
  void Progress(int64_t* loaded, int64_t* total) const;
  // Precondition: all ready.
  coordinator::GroupInfo MakeInfo() const;
  std::vector<RankHealth> Health() const;

  // The streams that are there.
  std::vector<std::shared_ptr<RankStream>> streams() const;
  // The same, which the table gives up.
  std::vector<std::shared_ptr<RankStream>> TakeStreams();

 private:
  const RemoteGroupOptions& options_;
  std::vector<Rank> ranks_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_RANK_TABLE_H_
