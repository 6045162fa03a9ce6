// The side of a replica that the coordinator calls: start, mailbox, status, stop.
#include "runtime/coordinator/replica.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/mesh.h"

namespace phalanx::coordinator {
namespace {

constexpr absl::Duration kRateWindow = absl::Seconds(10);

}  // namespace

Replica::Replica(int index, const CoordinatorOptions& options, std::unique_ptr<WorkerGroup> group,
                 ReplicaOwner& owner)
    : index_(index), options_(options), group_(std::move(group)), owner_(owner) {
  status_.replica = index;
}

Replica::~Replica() { Stop(); }

void Replica::BeginStart() {
  std::lock_guard<std::mutex> lock(mu_);
  if (!stop_) thread_ = std::thread([this] { Main(); });
}

absl::Status Replica::AwaitStart() {
  std::unique_lock<std::mutex> lock(mu_);
  started_.wait(lock, [this] { return stop_ || !start_.ok() || *start_; });
  if (!start_.ok()) return start_.status();
  return stop_ ? absl::UnavailableError("the coordinator was stopped while it started")
               : absl::OkStatus();
}

void Replica::Main() {
  const absl::Status status = StartGroup();
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (status.ok()) {
      start_ = true;
      status_.group = info_;
      status_.blocks = scheduler_->stats().blocks;
      if (state_ == CoordinatorState::kLoading) state_ = CoordinatorState::kServing;
    } else {
      start_ = status;
    }
  }
  started_.notify_all();
  if (status.ok()) Run();
  StopGroup();
}

absl::Status Replica::StartGroup() {
  absl::StatusOr<GroupInfo> info =
      group_->Start([this](absl::StatusOr<scheduler::StepResult> result) {
        std::lock_guard<std::mutex> lock(mu_);
        mailbox_.results.push_back(std::move(result));
        mail_came_.notify_one();
      });
  if (!info.ok()) return info.status();
  info_ = *std::move(info);
  if (absl::Status status = MakeSchedulerOptions(); !status.ok()) return status;
  scheduler_ = std::make_unique<scheduler::Scheduler>(scheduler_options_, info_.epoch);
  const int64_t blocks = scheduler_->stats().blocks.total;
  kv_tokens_ = blocks * scheduler_options_.block_tokens;
  prefixes_.SetCapacity(blocks);
  return absl::OkStatus();
}

absl::Status Replica::MakeSchedulerOptions() {
  scheduler_options_ = options_.scheduler;
  scheduler_options_.max_context = options_.limits.max_context;
  if (scheduler_options_.eos_token_ids.empty()) {
    scheduler_options_.eos_token_ids = options_.eos_token_ids;
  }
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(info_.layout);
  if (!layout.ok()) return layout.status();
  // One plan for every stage to work on.
  scheduler_options_.max_plans_in_flight =
      std::max<int64_t>(scheduler_options_.max_plans_in_flight, layout->pp);
  scheduler_options_.sequence_ranks = layout->sp;
  const int64_t held = info_.kv_blocks();
  if (scheduler_options_.num_blocks == 0) scheduler_options_.num_blocks = held;
  if (held < 1) {
    return absl::InvalidArgumentError(
        "the ranks' KV memory holds no block; give them more KV memory");
  }
  if (scheduler_options_.num_blocks > held) {
    return absl::InvalidArgumentError(absl::StrCat("num_blocks is ", scheduler_options_.num_blocks,
                                                   ", but the ranks hold only ", held,
                                                   " KV blocks"));
  }
  return scheduler::ValidateOptions(scheduler_options_);
}

bool Replica::alive() const {
  std::lock_guard<std::mutex> lock(mu_);
  return state_ == CoordinatorState::kServing;
}

absl::Status Replica::failure() const {
  std::lock_guard<std::mutex> lock(mu_);
  return failure_;
}

ReplicaLoad Replica::load() const {
  ReplicaLoad load;
  load.work_tokens = work_tokens_;
  load.held_tokens = held_tokens_;
  load.kv_tokens = kv_tokens_;
  return load;
}

void Replica::Submit(std::unique_ptr<LiveRequest> live) {
  ++queued_;
  work_tokens_ += live->prompt_work;
  for (const int64_t tokens : live->tokens_to_come) work_tokens_ += tokens;
  held_tokens_ += live->held_tokens;
  // A request that comes while this one waits finds its prefix here later.
  if (!live->prefixes.empty()) prefixes_.Add(live->prefixes[0].hashes());
  std::lock_guard<std::mutex> lock(mu_);
  mailbox_.submissions.push_back(std::move(live));
  mail_came_.notify_one();
}

void Replica::Cancel(uint64_t serial) {
  std::lock_guard<std::mutex> lock(mu_);
  mailbox_.cancellations.push_back(serial);
  mail_came_.notify_one();
}

ReplicaStatus Replica::GetStatus() const {
  const absl::Time now = options_.clock();
  std::lock_guard<std::mutex> lock(mu_);
  ReplicaStatus status = status_;
  status.state = state_;
  status.failure = failure_;
  status.queued_requests = queued_;
  status.reckoned_tokens = work_tokens_;
  for (const Mark& mark : marks_) {
    const absl::Duration since = now - mark.time;
    if (since > kRateWindow || since <= absl::ZeroDuration()) continue;
    const double seconds = absl::ToDoubleSeconds(since);
    status.prompt_tokens_per_second =
        static_cast<double>(status.prompt_tokens - mark.prompt_tokens) / seconds;
    status.generated_tokens_per_second =
        static_cast<double>(status.generated_tokens - mark.generated_tokens) / seconds;
    break;
  }
  return status;
}

void Replica::Stop() {
  std::thread thread;
  bool starting = false;
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
    starting = start_.ok() && !*start_;
    thread = std::move(thread_);
    mail_came_.notify_one();
  }
  started_.notify_all();
  if (thread.joinable()) {
    if (starting) StopGroup();
    thread.join();
  } else {
    StopGroup();
  }
  std::lock_guard<std::mutex> lock(mu_);
  state_ = CoordinatorState::kStopped;
}

void Replica::StopGroup() {
  std::lock_guard<std::mutex> lock(group_stop_mu_);
  group_->Stop();
}

void Replica::Wake() {
  std::lock_guard<std::mutex> lock(mu_);
  wake_ = true;
  mail_came_.notify_one();
}

}  // namespace phalanx::coordinator
