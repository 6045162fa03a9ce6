#include "runtime/coordinator/supervisor.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/agreement.h"

namespace phalanx::coordinator {
namespace {

// Whether the first start may be tried again: something that had begun to load has died or fallen
// silent. A wrong flag or a missing file would only fail once more.
bool MayPass(const absl::Status& status) { return absl::IsUnavailable(status); }

}  // namespace

Supervisor::Supervisor(std::unique_ptr<GroupSource> source, RestartOptions options,
                       Callbacks callbacks)
    : source_(std::move(source)), options_(std::move(options)), callbacks_(std::move(callbacks)) {}

Supervisor::~Supervisor() { Stop(); }

void Supervisor::Begin() {
  std::lock_guard<std::mutex> lock(mu_);
  if (!stop_) thread_ = std::thread([this] { Main(); });
}

absl::Status Supervisor::Submit(scheduler::StepPlan plan) {
  std::shared_ptr<WorkerGroup> group;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (!up_ || down_) return absl::UnavailableError("there is no worker group");
    group = group_;
  }
  return group->Submit(std::move(plan));
}

void Supervisor::Down(uint64_t epoch, const absl::Status& cause) {
  std::lock_guard<std::mutex> lock(mu_);
  if (epoch != epoch_ || down_) return;
  down_ = true;
  cause_ = cause;
  noticed_ = callbacks_.clock();
  changed_.notify_all();
}

void Supervisor::NoteProgress() {
  std::lock_guard<std::mutex> lock(mu_);
  progress_ = true;
}

bool Supervisor::Pause(absl::Duration duration) {
  std::unique_lock<std::mutex> lock(mu_);
  changed_.wait_for(lock, absl::ToChronoNanoseconds(duration), [this] { return stop_; });
  return !stop_;
}

absl::StatusOr<GroupInfo> Supervisor::StartGroup(const GroupNeed& need,
                                                 std::shared_ptr<WorkerGroup>* group) {
  absl::StatusOr<std::unique_ptr<WorkerGroup>> made = source_->Next(need);
  if (!made.ok()) return made.status();
  *group = *std::move(made);
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stop_) return absl::CancelledError("the coordinator was stopped while it started");
    group_ = *group;
    epoch_ = need.epoch;
    up_ = down_ = progress_ = false;
  }
  return (*group)->Start([this, epoch = need.epoch](absl::StatusOr<scheduler::StepResult> result) {
    callbacks_.on_result(epoch, std::move(result));
  });
}

void Supervisor::StopGroup() {
  std::shared_ptr<WorkerGroup> group;
  {
    std::lock_guard<std::mutex> lock(mu_);
    group = group_;
  }
  if (group == nullptr) return;
  std::lock_guard<std::mutex> lock(stop_group_mu_);
  group->Stop();
}

void Supervisor::Main() {
  GroupNeed need;
  int tries = 0;  // in a row without progress
  std::optional<RankInfo> first_rank;
  std::optional<Recovery> recovery;
  while (true) {
    const absl::Time started = callbacks_.clock();
    std::shared_ptr<WorkerGroup> group;
    absl::StatusOr<GroupInfo> info = StartGroup(need, &group);
    bool final = false;
    if (info.ok() && first_rank.has_value() && !info->ranks.empty()) {
      // The same bits as before, or none.
      if (absl::Status same = CheckAgreement(*first_rank, info->ranks[0]); !same.ok()) {
        info = absl::FailedPreconditionError(absl::StrCat(
            "the workers that were started again differ from those before: ", same.message()));
        final = true;
      }
    }
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (stop_) break;
      if (info.ok()) up_ = true;
    }
    absl::Status cause = info.status();
    bool progress = false;
    bool counts = true;  // as a try
    if (info.ok()) {
      const absl::Time came_up = callbacks_.clock();
      if (!first_rank.has_value() && !info->ranks.empty()) first_rank = info->ranks[0];
      if (recovery.has_value()) {
        recovery->epoch = need.epoch;
        recovery->started = started;
        recovery->up = callbacks_.clock();
      }
      need.last_layout = info->layout;
      need.last_kv_blocks = info->kv_blocks();
      callbacks_.on_up(*info, recovery.has_value() ? &*recovery : nullptr);
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [this] { return down_ || stop_; });
      if (stop_) break;
      up_ = false;
      cause = cause_;
      progress = progress_ || noticed_ - came_up >= options_.settled_after;
      recovery = Recovery{need.epoch, std::string(cause.message()), noticed_, noticed_, {}, {}};
    } else if (group == nullptr) {
      final = absl::IsFailedPrecondition(cause);
      // The source waits for a machine: nothing was tried.
      counts = !absl::IsUnavailable(cause);
    }
    if (group != nullptr) {
      // Fences it: nothing that is left of it can matter any more.
      StopGroup();
      std::lock_guard<std::mutex> lock(mu_);
      group_.reset();
    }
    group.reset();
    if (info.ok()) recovery->fenced = callbacks_.clock();

    const bool ever_up = recovery.has_value();
    if (!info.ok() && !ever_up && !MayPass(cause)) final = true;
    tries = progress ? 1 : tries + (counts ? 1 : 0);
    need.fruitless = progress ? 0 : need.fruitless + (counts ? 1 : 0);
    if (!final && tries > options_.max_tries) {
      final = true;
      const std::string text =
          options_.max_tries > 0
              ? absl::StrCat("given up after ", tries,
                             " worker groups in a row that died before they had computed anything "
                             "(--max-restarts); the last: ",
                             cause.message())
              : absl::StrCat(cause.message(), options_.why_never.empty() ? "" : "; ",
                             options_.why_never);
      cause = absl::Status(cause.code(), text);
    }
    if (final) {
      callbacks_.on_gave_up(cause);
      return;
    }
    absl::Duration pause = absl::ZeroDuration();
    // A source that waits is asked again no sooner than one whose group has died twice.
    const int failed_starts = info.ok() ? 0 : need.failed_starts + (counts ? 1 : 2);
    if (const int in_row = std::max(tries, failed_starts); in_row > 1) {
      pause = std::min(
          options_.longest_pause,
          options_.first_pause * static_cast<double>(int64_t{1} << std::min(in_row - 2, 30)));
    }
    ++need.epoch;
    need.failed_starts = info.ok() ? 0 : need.failed_starts + 1;
    need.cause = cause;
    callbacks_.log(absl::StrCat(
        info.ok() ? "the worker group died: " : "the worker group did not start: ", cause.message(),
        "; starting epoch ", need.epoch,
        pause > absl::ZeroDuration() ? absl::StrCat(" in ", absl::FormatDuration(pause)) : ""));
    if (pause > absl::ZeroDuration() && !Pause(pause)) break;
  }
  StopGroup();
  std::lock_guard<std::mutex> lock(mu_);
  group_.reset();
}

void Supervisor::Stop() {
  std::thread thread;
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
    thread = std::move(thread_);
    changed_.notify_all();
  }
  StopGroup();  // which ends a start
  if (thread.joinable()) thread.join();
}

}  // namespace phalanx::coordinator
