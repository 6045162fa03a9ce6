#include "comm/shm/member.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/shm/futex.h"

namespace phalanx::comm {
namespace {

// Field 22 of /proc/<pid>/stat and the state, field 3; see proc(5). nullopt if there is no such
// process or /proc cannot be read (then `unknown` is set).
struct ProcessStat {
  char state;
  uint64_t start_time;
};
std::optional<ProcessStat> ReadProcessStat(int pid, bool* unknown) {
  *unknown = false;
  char path[40];
  std::snprintf(path, sizeof(path), "/proc/%d/stat", pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    *unknown = errno != ENOENT;
    return std::nullopt;
  }
  char text[1024];
  const ssize_t n = read(fd, text, sizeof(text) - 1);
  const int error = errno;
  close(fd);
  if (n <= 0) {
    *unknown = error != ESRCH;
    return std::nullopt;
  }
  text[n] = '\0';
  // The name, field 2, is in brackets and may hold anything: go on from the last bracket.
  const char* at = std::strrchr(text, ')');
  if (at == nullptr || at[1] != ' ') {
    *unknown = true;
    return std::nullopt;
  }
  ProcessStat stat{at[2], 0};
  at += 2;
  for (int field = 3; field < 22 && at != nullptr; ++field) {
    at = std::strchr(at, ' ');
    if (at != nullptr) ++at;
  }
  if (at == nullptr) {
    *unknown = true;
    return std::nullopt;
  }
  stat.start_time = std::strtoull(at, nullptr, 10);
  return stat;
}

uint64_t OwnStartTime() {
  bool unknown = false;
  const std::optional<ProcessStat> stat = ReadProcessStat(getpid(), &unknown);
  return stat.has_value() ? stat->start_time : 0;
}

}  // namespace

WaitPolicy ChooseWaitPolicy(int ranks, int threads_per_rank, int cores) {
  WaitPolicy policy;
  if (int64_t{ranks} * std::max(1, threads_per_rank) <= cores) policy.spin_turns = 2000;
  return policy;
}

int OwnCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

bool ProcessAlive(int pid, uint64_t start_time) {
  bool unknown = false;
  const std::optional<ProcessStat> stat = ReadProcessStat(pid, &unknown);
  if (!stat.has_value()) return unknown && (kill(pid, 0) == 0 || errno != ESRCH);
  if (stat->state == 'Z' || stat->state == 'X') return false;
  return start_time == 0 || stat->start_time == start_time;
}

ShmMember::ShmMember(std::shared_ptr<Segment> segment, int index, WaitPolicy policy)
    : segment_(std::move(segment)), index_(index), policy_(policy), last_life_check_(Clock::now()) {
  MemberControl& control = segment_->control(index_);
  control.start_time.store(segment_->shared() ? OwnStartTime() : 0);
  control.pid.store(getpid());
}

ShmMember::~ShmMember() {
  segment_->control(index_).departed.store(1);
  GroupHeader& header = segment_->header();
  header.bell.fetch_add(1);
  if (header.sleepers.load() != 0) FutexWakeAll(&header.bell, segment_->shared());
  for (int i = 0; i < members(); ++i) RingDoorbell(i);
}

void ShmMember::set_callbacks(NameFn name, AbortFn enclosing_abort) {
  name_ = std::move(name);
  enclosing_abort_ = std::move(enclosing_abort);
}

std::string ShmMember::Name(int member) const {
  return name_ ? name_(member) : absl::StrCat("rank ", member);
}

std::string ShmMember::Whereabouts(int member) const {
  MemberControl& control = segment_->control(member);
  const int pid = control.pid.load();
  const std::string process =
      segment_->shared() && pid != 0 ? absl::StrCat("pid ", pid, ", ") : std::string();
  const uint64_t phase = control.phase.load();
  if (phase == 0) return absl::StrCat(" (", process, "in no collective so far)");
  const PhaseTag& tag = control.tag[phase & 1];
  return absl::StrCat(" (", process, "last in ", OpName(static_cast<Op>(tag.op.load())),
                      ", collective ", tag.collective.load(), ")");
}

absl::Status ShmMember::Phase(const Call& call) {
  const uint64_t phase = phase_ + 1;
  MemberControl& control = segment_->control(index_);
  PhaseTag& tag = control.tag[phase & 1];
  tag.collective.store(call.collective, std::memory_order_relaxed);
  tag.digest.store(call.digest, std::memory_order_relaxed);
  tag.op.store(static_cast<uint32_t>(call.op), std::memory_order_relaxed);
  control.phase.store(phase);
  GroupHeader& header = segment_->header();
  const uint64_t arrived = header.arrivals.fetch_add(1) + 1;
  if (arrived == phase * static_cast<uint64_t>(members())) {
    header.epoch.store(phase);
    header.bell.fetch_add(1);
    if (header.sleepers.load() != 0) FutexWakeAll(&header.bell, segment_->shared());
  } else if (absl::Status status = WaitForPhase(phase, call); !status.ok()) {
    return status;
  }
  phase_ = phase;
  return CompareTags(phase, call);
}

absl::Status ShmMember::WaitForPhase(uint64_t phase, const Call& call) {
  GroupHeader& header = segment_->header();
  const auto complete = [&] { return header.epoch.load() >= phase; };
  for (int turn = 0; turn < policy_.spin_turns; ++turn) {
    if (complete()) return absl::OkStatus();
    SpinPause();
  }
  while (true) {
    const uint32_t bell = header.bell.load();
    header.sleepers.fetch_add(1);
    absl::Status status = absl::OkStatus();
    bool done = complete();
    if (!done) {
      status = CheckAbort();
      for (int i = 0; status.ok() && i < members(); ++i) {
        if (departed(i) && segment_->control(i).phase.load() < phase) {
          status = absl::UnavailableError(
              absl::StrCat(Name(i), " left the group before it came", Whereabouts(i)));
        }
      }
      // A member that left right after completing this phase is no error.
      if (!status.ok() && complete()) {
        status = absl::OkStatus();
        done = true;
      }
      if (status.ok() && !done) {
        const Clock::time_point now = Clock::now();
        if (now >= call.deadline) {
          status = absl::DeadlineExceededError(
              absl::StrCat("waited ",
                           absl::FormatDuration(absl::FromChrono(
                               std::chrono::round<std::chrono::milliseconds>(now - call.start))),
                           " for ", MissingAt(phase)));
        } else {
          FutexWait(&header.bell, bell,
                    std::min<std::chrono::nanoseconds>(kTick, call.deadline - now),
                    segment_->shared());
        }
      }
    }
    header.sleepers.fetch_sub(1);
    if (done || complete()) return absl::OkStatus();
    if (status.ok()) status = CheckLife();
    if (!status.ok()) return complete() ? absl::OkStatus() : status;
  }
}

absl::Status ShmMember::CompareTags(uint64_t phase, const Call& call) {
  for (int i = 0; i < members(); ++i) {
    const PhaseTag& tag = segment_->control(i).tag[phase & 1];
    const Op op = static_cast<Op>(tag.op.load(std::memory_order_relaxed));
    const uint64_t collective = tag.collective.load(std::memory_order_relaxed);
    if (op != call.op || collective != call.collective) {
      return absl::InternalError(
          absl::StrCat(Name(i), " called ", OpName(op), " as its collective ", collective,
                       "; members of a group must call the same collectives in the same order"));
    }
    if (tag.digest.load(std::memory_order_relaxed) != call.digest) {
      return absl::InternalError(absl::StrCat(
          Name(i), " called it with other sizes, another root or another reduction plan"));
    }
  }
  return absl::OkStatus();
}

std::string ShmMember::MissingAt(uint64_t phase) const {
  std::string missing;
  for (int i = 0; i < members(); ++i) {
    if (segment_->control(i).phase.load() >= phase) continue;
    absl::StrAppend(&missing, missing.empty() ? "" : ", ", Name(i), Whereabouts(i));
  }
  return missing.empty() ? "a wake-up though every rank had arrived" : missing;
}

int64_t ShmMember::TryWrite(int to, const void* data, int64_t bytes) {
  RingControl& ring = segment_->ring(index_, to);
  const int64_t capacity = segment_->ring_bytes();
  const uint64_t written = ring.written.load(std::memory_order_relaxed);
  const int64_t space = capacity - static_cast<int64_t>(written - ring.read.load());
  const int64_t n = std::min(bytes, space);
  if (n <= 0) return 0;
  uint8_t* base = segment_->ring_data(index_, to);
  const int64_t at = static_cast<int64_t>(written & (capacity - 1));
  const int64_t first = std::min(n, capacity - at);
  std::memcpy(base + at, data, first);
  std::memcpy(base, static_cast<const uint8_t*>(data) + first, n - first);
  ring.written.store(written + n);
  RingDoorbell(to);
  return n;
}

int64_t ShmMember::TryRead(int from, void* data, int64_t bytes) {
  RingControl& ring = segment_->ring(from, index_);
  const int64_t capacity = segment_->ring_bytes();
  const uint64_t read = ring.read.load(std::memory_order_relaxed);
  const int64_t n = std::min(bytes, static_cast<int64_t>(ring.written.load() - read));
  if (n <= 0) return 0;
  const uint8_t* base = segment_->ring_data(from, index_);
  const int64_t at = static_cast<int64_t>(read & (capacity - 1));
  const int64_t first = std::min(n, capacity - at);
  std::memcpy(data, base + at, first);
  std::memcpy(static_cast<uint8_t*>(data) + first, base, n - first);
  ring.read.store(read + n);
  RingDoorbell(from);
  return n;
}

void ShmMember::RingDoorbell(int member) {
  MemberControl& control = segment_->control(member);
  if (control.sleeping.load() == 0) return;
  control.doorbell.fetch_add(1);
  FutexWakeAll(&control.doorbell, segment_->shared());
}

uint32_t ShmMember::PrepareSleep() {
  MemberControl& control = segment_->control(index_);
  const uint32_t ticket = control.doorbell.load();
  control.sleeping.store(1);
  return ticket;
}

void ShmMember::Sleep(uint32_t ticket, std::chrono::nanoseconds at_most) {
  FutexWait(&segment_->control(index_).doorbell, ticket, at_most, segment_->shared());
}

void ShmMember::FinishSleep() { segment_->control(index_).sleeping.store(0); }

absl::Status ShmMember::CheckAbort() const {
  if (segment_->aborted()) return absl::AbortedError(segment_->abort_reason());
  if (enclosing_abort_) {
    if (const std::optional<std::string> reason = enclosing_abort_(); reason.has_value()) {
      return absl::AbortedError(*reason);
    }
  }
  return absl::OkStatus();
}

bool ShmMember::departed(int member) const {
  return segment_->control(member).departed.load() != 0;
}

absl::Status ShmMember::CheckLife() {
  if (!segment_->shared()) return absl::OkStatus();
  const Clock::time_point now = Clock::now();
  if (now - last_life_check_ < kLifeCheck) return absl::OkStatus();
  last_life_check_ = now;
  for (int i = 0; i < members(); ++i) {
    MemberControl& control = segment_->control(i);
    const int pid = control.pid.load();
    if (i == index_ || pid == 0 || departed(i)) continue;
    if (!ProcessAlive(pid, control.start_time.load()) && !departed(i)) {
      return absl::UnavailableError(absl::StrCat(Name(i), " died", Whereabouts(i)));
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx::comm
