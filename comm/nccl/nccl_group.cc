#include "comm/nccl/nccl_group.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::comm {
namespace {

// NCCL has nothing to sleep on. Enqueueing takes it some microseconds, connecting much longer:
// looks follow each other at once, then after an eighth of the time waited so far.
constexpr std::chrono::microseconds kSpin{1000};
constexpr std::chrono::microseconds kLongestNap{1000};

bool Failed(nccl::Result result) { return result != nccl::kSuccess && result != nccl::kInProgress; }

}  // namespace

NcclGroup::NcclGroup(std::shared_ptr<const nccl::Library> library, Communicator& host,
                     std::unique_ptr<Communicator> owned, std::unique_ptr<Communicator> alarm,
                     std::unique_ptr<Communicator> roll_call)
    : library_(std::move(library)),
      owned_host_(std::move(owned)),
      host_(host),
      alarm_(std::move(alarm)),
      roll_call_(std::move(roll_call)) {}

std::string NcclGroup::Prefix() const {
  return absl::StrCat("rank ", host_.rank(), " of ", host_.size(), ": ");
}

void NcclGroup::NoteBegun(Op op, uint64_t number) {
  last_op_.store(op);
  last_number_.store(number);
}

absl::Status NcclGroup::Gone() const {
  return absl::AbortedError(
      host_.abort_reason().value_or("the group's NCCL communicator was never made"));
}

absl::Status NcclGroup::ErrorOf(nccl::Result result, const char* what) {
  const char* detail = library_->GetLastError(comm_);
  return absl::UnavailableError(
      absl::StrCat("NCCL ", nccl::VersionText(library_->version), ": ", what, ": ",
                   library_->GetErrorString(result), detail == nullptr || *detail == 0 ? "" : ": ",
                   detail == nullptr ? "" : detail, "; NCCL_DEBUG=INFO says more"));
}

absl::Status NcclGroup::Settle(nccl::Result result, Clock::time_point deadline, const char* what) {
  const Clock::time_point start = Clock::now();
  while (true) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (comm_ == nullptr) return Gone();
      if (result == nccl::kInProgress) {
        const nccl::Result asked = library_->CommGetAsyncError(comm_, &result);
        if (asked != nccl::kSuccess) result = asked;
      }
      if (Failed(result)) return ErrorOf(result, what);
    }
    if (result == nccl::kSuccess) return absl::OkStatus();
    if (host_.abort_reason().has_value()) return Gone();
    const Clock::time_point now = Clock::now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "NCCL is still in progress after ",
          absl::FormatDuration(
              absl::FromChrono(std::chrono::round<std::chrono::milliseconds>(now - start))),
          ", ", what,
          "; the ranks reach each other on the host, so see which network NCCL uses "
          "(NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME)"));
    }
    if (now - start < kSpin) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(
          std::min<std::chrono::nanoseconds>((now - start) / 8, kLongestNap));
    }
  }
}

absl::Status NcclGroup::Start(const nccl::UniqueId& id, absl::Duration timeout) {
  constexpr const char* kWhat = "connecting the group";
  const Clock::time_point deadline = DeadlineAfter(Clock::now(), timeout);
  nccl::Config config;
  config.blocking = 0;
  nccl::Result result;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    result = library_->CommInitRankConfig(&comm_, size(), id, rank(), &config);
    if (Failed(result) || comm_ == nullptr) return ErrorOf(result, kWhat);
  }
  return Settle(result, deadline, kWhat);
}

absl::Status NcclGroup::Enqueue(Calls calls) {
  constexpr const char* kWhat = "enqueueing";
  nccl::Result result;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (comm_ == nullptr) return Gone();
    result = library_->GroupStart();
    if (Failed(result)) return ErrorOf(result, kWhat);
    const nccl::Result called = calls(*library_, comm_);
    // Ended also after an error: the thread would be left inside the group.
    result = library_->GroupEnd();
    if (Failed(called)) result = called;
    if (Failed(result)) return ErrorOf(result, kWhat);
  }
  return Settle(result, Clock::time_point::max(), kWhat);
}

void NcclGroup::Close(absl::Duration timeout) {
  if (!host_.abort_reason().has_value()) {
    const Clock::time_point deadline = DeadlineAfter(Clock::now(), timeout);
    nccl::Result result = nccl::kSuccess;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (comm_ == nullptr) return;
      result = library_->CommFinalize(comm_);
    }
    const absl::Status status = Settle(result, deadline, "leaving the group");
    if (status.ok()) {
      if (nccl::Comm* comm = Take(); comm != nullptr) (void)library_->CommDestroy(comm);
      return;
    }
    host_.Abort(absl::StrCat(Prefix(), status.message()));
  }
  if (nccl::Comm* comm = Take(); comm != nullptr) (void)library_->CommAbort(comm);
}

nccl::Comm* NcclGroup::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(comm_, nullptr);
}

std::optional<std::string> NcclGroup::AsyncError() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (comm_ == nullptr) return std::nullopt;
  nccl::Result error = nccl::kSuccess;
  const nccl::Result asked = library_->CommGetAsyncError(comm_, &error);
  if (Failed(asked)) error = asked;
  if (!Failed(error)) return std::nullopt;
  return std::string(ErrorOf(error, "in the background").message());
}

}  // namespace phalanx::comm
