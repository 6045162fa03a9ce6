#include "comm/nccl/nccl_watchdog.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::comm {
namespace {

void CopyName(const std::string& from, char (&to)[24]) {
  const size_t length = std::min(from.size(), sizeof(to) - 1);
  std::memcpy(to, from.data(), length);
  to[length] = 0;
}

std::string CallName(const NcclWatchdog::Watched& watched) {
  return absl::StrCat(watched.what, watched.peer < 0 ? " (collective " : " (after collective ",
                      watched.number, ")");
}

}  // namespace

NcclWatchdog::NcclWatchdog(std::shared_ptr<const nccl::Library> library, const Options& options)
    : library_(std::move(library)), options_(options), thread_([this] { Run(); }) {}

NcclWatchdog::~NcclWatchdog() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  for (std::thread& aborter : aborters_) aborter.join();
}

void NcclWatchdog::Add(NcclGroup* group) {
  std::lock_guard<std::mutex> lock(mutex_);
  groups_.push_back(group);
}

void NcclWatchdog::Remove(NcclGroup* group) {
  std::lock_guard<std::mutex> look(look_mutex_);
  std::lock_guard<std::mutex> lock(mutex_);
  groups_.erase(std::remove(groups_.begin(), groups_.end(), group), groups_.end());
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                [&](const Entry& entry) { return entry.group == group; }),
                 entries_.end());
  ended_.erase(group);
  rolls_.erase(group);
}

uint64_t NcclWatchdog::Begin(NcclGroup* group, Watched watched) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Clock::time_point oldest_since = entries_.empty() ? Clock::now() : Clock::time_point::min();
  entries_.push_back({++last_id_, group, std::move(watched), nullptr, oldest_since});
  return last_id_;
}

void NcclWatchdog::Enqueued(uint64_t id, std::unique_ptr<kernels::Marker> marker) {
  std::lock_guard<std::mutex> lock(mutex_);
  // The newest, unless its group has ended.
  if (entries_.empty() || entries_.back().id != id) return;
  if (marker == nullptr) {
    entries_.pop_back();
  } else {
    entries_.back().marker = std::move(marker);
  }
}

void NcclWatchdog::Wake() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = true;
  }
  wake_.notify_one();
}

void NcclWatchdog::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    Look();
    lock.lock();
    // A look that is due before the tick: the oldest call expires.
    Clock::time_point next = Clock::now() + absl::ToChronoNanoseconds(options_.tick);
    if (!entries_.empty() && entries_.front().oldest_since != Clock::time_point::min()) {
      next = std::min(
          next, DeadlineAfter(entries_.front().oldest_since, entries_.front().watched.timeout));
    }
    wake_.wait_until(lock, next, [&] { return stopping_ || wanted_; });
    wanted_ = false;
  }
}

void NcclWatchdog::Look() {
  std::lock_guard<std::mutex> look(look_mutex_);
  std::vector<NcclGroup*> groups;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    groups = groups_;
  }
  EndAborted(groups);
  for (NcclGroup* group : groups) {
    if (ended_.count(group) > 0) continue;
    if (const std::optional<std::string> error = group->AsyncError(); error.has_value()) {
      const Place place = PlaceOf(group);
      group->host().Abort(
          absl::StrCat(group->Prefix(), place.waiting[0] == 0 ? "after " : place.waiting,
                       place.waiting[0] == 0 ? "" : " (", "collective ",
                       place.waiting[0] == 0 ? place.begun_number : place.waiting_number,
                       place.waiting[0] == 0 ? "" : ")", ": ", *error));
    } else if (group->alarm().abort_reason().has_value()) {
      CallRoll(group);
    }
  }
  CheckExpired();
  EndAborted(groups);
}

void NcclWatchdog::EndAborted(absl::Span<NcclGroup* const> groups) {
  std::vector<nccl::Comm*> comms;
  for (NcclGroup* group : groups) {
    if (ended_.count(group) > 0 || !group->host().abort_reason().has_value()) continue;
    ended_.insert(group);
    if (nccl::Comm* comm = group->Take(); comm != nullptr) comms.push_back(comm);
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.group == group; }),
                   entries_.end());
  }
  if (comms.empty()) return;
  // In a thread of its own, since ncclCommAbort frees device memory, which waits for the device,
  // which may hang in a group whose time isn't up yet. As one group for the same reason: the flags
  // of all of them are set before anything is freed.
  aborters_.emplace_back([library = library_, comms = std::move(comms),
                          grace = absl::ToChronoNanoseconds(options_.abort_grace)] {
    std::this_thread::sleep_for(grace);
    (void)library->GroupStart();
    for (nccl::Comm* comm : comms) (void)library->CommAbort(comm);
    (void)library->GroupEnd();
  });
}

void NcclWatchdog::CheckExpired() {
  NcclGroup* group = nullptr;
  Watched watched;
  Clock::duration waited;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!entries_.empty() && entries_.front().marker != nullptr &&
           entries_.front().marker->Passed()) {
      entries_.pop_front();
    }
    if (entries_.empty()) return;
    Entry& oldest = entries_.front();
    const Clock::time_point now = Clock::now();
    if (oldest.oldest_since == Clock::time_point::min()) oldest.oldest_since = now;
    if (now < DeadlineAfter(oldest.oldest_since, oldest.watched.timeout)) return;
    group = oldest.group;
    watched = oldest.watched;
    waited = now - oldest.oldest_since;
  }
  if (ended_.count(group) > 0 || group->host().abort_reason().has_value()) return;
  group->alarm().Abort(absl::StrCat(group->Prefix(), CallName(watched), " has expired"));
  const absl::StatusOr<std::vector<Place>>& places = CallRoll(group);
  group->host().Abort(absl::StrCat(
      group->Prefix(), CallName(watched), ": waited ",
      absl::FormatDuration(absl::FromChrono(std::chrono::round<std::chrono::milliseconds>(waited))),
      " on the device: ",
      places.ok()
          ? Explain(*group, watched, *places)
          : absl::StrCat("not all members answered a roll call: ", places.status().message())));
}

NcclWatchdog::Place NcclWatchdog::PlaceOf(NcclGroup* group) {
  Place place;
  std::memset(&place, 0, sizeof(place));
  place.begun_number = group->last_number();
  place.begun_op = static_cast<uint32_t>(group->last_op());
  std::lock_guard<std::mutex> lock(mutex_);
  const auto own = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.group == group && (entry.marker == nullptr || !entry.marker->Passed());
  });
  if (own == entries_.end()) return place;
  place.waiting_number = own->watched.number;
  place.waiting_digest = own->watched.digest;
  place.waiting_peer = own->watched.peer;
  CopyName(own->watched.what, place.waiting);
  const auto before = std::find_if(entries_.begin(), own, [](const Entry& entry) {
    return entry.marker == nullptr || !entry.marker->Passed();
  });
  if (before != own) CopyName(CallName(before->watched), place.behind);
  return place;
}

const absl::StatusOr<std::vector<NcclWatchdog::Place>>& NcclWatchdog::CallRoll(NcclGroup* group) {
  const auto called = rolls_.find(group);
  if (called != rolls_.end()) return called->second;
  const Place mine = PlaceOf(group);
  std::vector<Place> places(group->size());
  const std::vector<int64_t> bytes(group->size(), sizeof(Place));
  group->roll_call().set_timeout(options_.roll_call_timeout);
  const absl::Status status = group->roll_call().AllGather(&mine, places.data(), bytes);
  absl::StatusOr<std::vector<Place>> roll(std::move(places));
  if (!status.ok()) roll = status;
  return rolls_.emplace(group, std::move(roll)).first->second;
}

std::string NcclWatchdog::Explain(const NcclGroup& group, const Watched& watched,
                                  const std::vector<Place>& places) {
  std::string text;
  for (int r = 0; r < static_cast<int>(places.size()); ++r) {
    if (r == group.rank() || (watched.peer >= 0 && watched.peer != r)) continue;
    const Place& place = places[r];
    const bool waits = place.waiting[0] != 0;
    std::string what;
    if (!waits && watched.peer < 0 && place.begun_number >= watched.number) {
      continue;  // it is through
    }
    if (!waits) {
      what = absl::StrCat("has not come (last in ", OpName(static_cast<Op>(place.begun_op)),
                          ", collective ", place.begun_number, ")");
    } else if (place.behind[0] != 0) {
      what = absl::StrCat("waits on its device in another group's ", place.behind);
    } else if (watched.peer >= 0 || place.waiting_peer >= 0 ||
               place.waiting_number != watched.number || place.waiting != watched.what) {
      if (watched.peer >= 0 && place.waiting_peer == group.rank() &&
          place.waiting != watched.what) {
        continue;  // its receive for this send, or the other way round
      }
      what = absl::StrCat("is in ", place.waiting, " (",
                          place.waiting_peer >= 0 ? "a message after collective " : "collective ",
                          place.waiting_number, ")");
    } else if (place.waiting_digest != watched.digest) {
      what = "called it with other sizes";
    } else {
      continue;
    }
    absl::StrAppend(&text, text.empty() ? "" : ", ", "rank ", r, " ", what);
  }
  if (!text.empty()) return text;
  return "all members are in it or through it, so the links between their devices fail; "
         "NCCL_DEBUG=INFO says more";
}

}  // namespace phalanx::comm
