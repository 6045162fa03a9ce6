// The memory that the members of one group on one node share: a header, one control block and two
// slots a member, and one ring for every ordered pair. Either this process's own memory (ranks are
// threads) or a memfd that the members' processes map; it has no name in any file system and goes
// with its last user, however that one ends.
//
// This file lays the memory out and owns it; shm/member.h has the protocol.
#ifndef PHALANX_COMM_SHM_SEGMENT_H_
#define PHALANX_COMM_SHM_SEGMENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx::comm {

// 64 bytes: what one core takes from another at a time on the machines we know.
inline constexpr int64_t kCacheLine = 64;

struct SegmentConfig {
  int members = 1;               // >= 1
  int64_t slot_bytes = 1 << 20;  // of one slot; a multiple of 64, >= 1024
  int64_t ring_bytes = 1 << 16;  // of one ring's data; a power of two, >= 64
};

// What a member last brought to a phase: how a mismatch and a hang are named.
struct PhaseTag {
  std::atomic<uint64_t> collective;
  std::atomic<uint64_t> digest;
  std::atomic<uint32_t> op;
};

struct alignas(kCacheLine) GroupHeader {
  uint64_t magic;
  uint64_t nonce;
  SegmentConfig config;
  // Phases: see shm/member.h.
  alignas(kCacheLine) std::atomic<uint64_t> arrivals;
  alignas(kCacheLine) std::atomic<uint64_t> epoch;
  std::atomic<uint32_t> bell;
  std::atomic<uint32_t> sleepers;
  // 0: not aborted; 1: the reason is being written; 2: aborted, the reason may be read.
  alignas(kCacheLine) std::atomic<uint32_t> abort_state;
  uint32_t reason_length;
  char reason[504];
};

struct alignas(kCacheLine) MemberControl {
  std::atomic<uint64_t> phase;       // phases this member has arrived at
  std::atomic<uint32_t> departed;    // 1: left the group in good order
  std::atomic<int32_t> pid;          // 0: not here yet
  std::atomic<uint64_t> start_time;  // of the process, in clock ticks since boot; tells reused pids
  PhaseTag tag[2];                   // by the parity of the phase
  alignas(kCacheLine) std::atomic<uint32_t> doorbell;
  std::atomic<uint32_t> sleeping;
};

// A byte stream from one member to another: one writer, one reader.
struct alignas(kCacheLine) RingControl {
  alignas(kCacheLine) std::atomic<uint64_t> written;  // bytes since the start
  alignas(kCacheLine) std::atomic<uint64_t> read;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// How a process of the same node and PID namespace finds a shared segment.
struct SegmentTicket {
  int32_t pid = 0;
  int32_t fd = -1;
  uint64_t nonce = 0;
};

class Segment {
 public:
  // In this process's own memory. RESOURCE_EXHAUSTED if the system has none.
  static absl::StatusOr<std::shared_ptr<Segment>> CreatePrivate(const SegmentConfig& config);
  // In a memfd that other processes can Open() until Seal().
  static absl::StatusOr<std::shared_ptr<Segment>> CreateShared(const SegmentConfig& config);
  // Maps a segment that another process of this node created. FAILED_PRECONDITION if the ticket
  // names none (e.g. the processes are in different PID namespaces).
  static absl::StatusOr<std::shared_ptr<Segment>> Open(const SegmentTicket& ticket);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  SegmentTicket ticket() const;
  // Closes the creator's descriptor: nobody can open the segment any more.
  void Seal();

  // Ends all waiting in this group: sets the flag and wakes everybody. From any thread; the first
  // reason stays.
  void Abort(std::string_view reason);
  bool aborted() { return header().abort_state.load() != 0; }
  std::string abort_reason();

  bool shared() const { return shared_; }
  int members() const { return config_.members; }
  int64_t slot_bytes() const { return config_.slot_bytes; }
  int64_t ring_bytes() const { return config_.ring_bytes; }

  GroupHeader& header() { return *reinterpret_cast<GroupHeader*>(base_); }
  MemberControl& control(int member) {
    return reinterpret_cast<MemberControl*>(base_ + sizeof(GroupHeader))[member];
  }
  RingControl& ring(int from, int to) {
    return reinterpret_cast<RingControl*>(base_ + rings_at_)[from * members() + to];
  }
  uint8_t* ring_data(int from, int to) {
    return base_ + ring_data_at_ + (int64_t{from} * members() + to) * config_.ring_bytes;
  }
  uint8_t* slot(int member, int parity) {
    return base_ + slots_at_ + (int64_t{member} * 2 + parity) * config_.slot_bytes;
  }

 private:
  Segment(uint8_t* base, const SegmentConfig& config, bool shared, int fd);
  static int64_t TotalBytes(const SegmentConfig& config);

  uint8_t* base_;
  SegmentConfig config_;
  bool shared_;
  int fd_;
  int64_t total_bytes_;
  int64_t rings_at_;
  int64_t ring_data_at_;
  int64_t slots_at_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_SHM_SEGMENT_H_
