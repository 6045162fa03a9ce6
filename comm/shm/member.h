// One member's hold on a group's shared segment: phases, rings, doorbells, abort, signs of life.
//
// Phases. Every collective is a row of {write my slot; Phase(); read the others' slots}. Phase k
// uses the slots of parity k mod 2. The one rule: what was written before phase k may be read from
// the return of phase k until one's own arrival at phase k + 1. It holds because a slot of the same
// parity is written again only after phase k + 1, at which every reader of phase k has arrived.
//
// Sleeping. A waiter registers (`sleepers`, `sleeping`), checks its condition again and sleeps on a
// futex word that whoever changes the condition increments. All these accesses are sequentially
// consistent, so either the waiter sees the change or the changer sees the waiter.
#ifndef PHALANX_COMM_SHM_MEMBER_H_
#define PHALANX_COMM_SHM_MEMBER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "comm/call.h"
#include "comm/shm/segment.h"

namespace phalanx::comm {

// How long a wait spins before it sleeps, in turns of an empty loop (some tens of ns each). 0 where
// more threads than cores want to run: a spinning rank then keeps its peer from running.
struct WaitPolicy {
  int spin_turns = 0;
};

// Spins only while `ranks` x `threads_per_rank` <= `cores`.
WaitPolicy ChooseWaitPolicy(int ranks, int threads_per_rank, int cores);

// The cores that this process may use.
int OwnCores();

// True if process `pid` that started at `start_time` runs (a zombie does not).
bool ProcessAlive(int pid, uint64_t start_time);

class ShmMember {
 public:
  // How often a sleeper wakes to look at its deadline, at aborts of enclosing groups and at its
  // peers' processes (the last every kLifeCheck).
  static constexpr std::chrono::milliseconds kTick{100};
  static constexpr std::chrono::milliseconds kLifeCheck{500};

  // `index`: this member's place in the segment, taken by nobody else.
  ShmMember(std::shared_ptr<Segment> segment, int index, WaitPolicy policy);
  // Marks the member as departed and wakes whoever waits for it.
  ~ShmMember();
  ShmMember(const ShmMember&) = delete;
  ShmMember& operator=(const ShmMember&) = delete;

  int index() const { return index_; }
  int members() const { return segment_->members(); }
  int64_t slot_bytes() const { return segment_->slot_bytes(); }
  const WaitPolicy& policy() const { return policy_; }

  // What the group above knows better: how a member is called in messages, and whether an enclosing
  // group was aborted (its reason).
  using NameFn = std::function<std::string(int member)>;
  using AbortFn = std::function<std::optional<std::string>()>;
  void set_callbacks(NameFn name, AbortFn enclosing_abort);

  // --- phases ---
  // This member's slot for the coming phase.
  uint8_t* slot() { return segment_->slot(index_, static_cast<int>((phase_ + 1) & 1)); }
  // Member `i`'s slot of the last phase.
  const uint8_t* peer_slot(int i) { return segment_->slot(i, static_cast<int>(phase_ & 1)); }
  // Arrives and waits for all members. Errors: DEADLINE_EXCEEDED, ABORTED, UNAVAILABLE (a member
  // died or left), INTERNAL (a member brought another operation).
  absl::Status Phase(const Call& call);

  // --- rings: byte streams; both return the bytes moved, 0 if full or empty ---
  int64_t TryWrite(int to, const void* data, int64_t bytes);
  int64_t TryRead(int from, void* data, int64_t bytes);

  // --- doorbell: rung when one of this member's rings moves, and on abort and departure ---
  // Between PrepareSleep and FinishSleep every change rings. Call PrepareSleep, look once more,
  // then Sleep or not, then FinishSleep.
  uint32_t PrepareSleep();
  void Sleep(uint32_t ticket, std::chrono::nanoseconds at_most);
  void FinishSleep();

  // --- ends ---
  // OK, or ABORTED with the reason, of this group or an enclosing one.
  absl::Status CheckAbort() const;
  bool departed(int member) const;
  // UNAVAILABLE naming a member whose process died without leaving. Looks at most every kLifeCheck.
  absl::Status CheckLife();
  std::string Name(int member) const;
  // " (in AllReduce, collective 12)": where `member` last was.
  std::string Whereabouts(int member) const;

 private:
  absl::Status WaitForPhase(uint64_t phase, const Call& call);
  absl::Status CompareTags(uint64_t phase, const Call& call);
  std::string MissingAt(uint64_t phase) const;
  void RingDoorbell(int member);

  const std::shared_ptr<Segment> segment_;
  const int index_;
  const WaitPolicy policy_;
  uint64_t phase_ = 0;
  Clock::time_point last_life_check_;
  NameFn name_;
  AbortFn enclosing_abort_;
};

}  // namespace phalanx::comm

#endif  // PHALANX_COMM_SHM_MEMBER_H_
