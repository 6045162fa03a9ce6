// What a kind of process brings to the groups it makes: memory to share and streams to other nodes.
// One per world; comm/local and comm/mpi implement it.
#ifndef PHALANX_COMM_GROUP_FABRIC_H_
#define PHALANX_COMM_GROUP_FABRIC_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/group/remote_streams.h"
#include "comm/shm/member.h"
#include "comm/shm/segment.h"

namespace phalanx::comm {

class Fabric {
 public:
  virtual ~Fabric() = default;

  // A segment for `members` ranks of this node, and the ticket by which the others find it until
  // Withdraw().
  struct Offered {
    std::shared_ptr<Segment> segment;
    SegmentTicket ticket;
  };
  virtual absl::StatusOr<Offered> Offer(int members) = 0;
  virtual absl::StatusOr<std::shared_ptr<Segment>> Accept(const SegmentTicket& ticket) = 0;
  virtual void Withdraw(const Offered& offered) = 0;

  // Streams for one group, `world_ranks` by rank of the group. `context` tells its traffic from
  // that of every other group that shares two processes with it. Null where all ranks are one
  // process.
  virtual std::shared_ptr<RemoteStreams> OpenStreams(uint32_t context,
                                                     const std::vector<int>& world_ranks) = 0;

  // The first context number that this process has not seen used, and: all below `next` are used.
  virtual uint32_t next_context() const = 0;
  virtual void UseContextsBelow(uint32_t next) = 0;
  // False once the transport has no number left for `context`.
  virtual bool ContextFits(uint32_t context) const = 0;

  virtual WaitPolicy wait_policy() const = 0;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_GROUP_FABRIC_H_
