// The side of a replica that the coordinator calls: start, mailbox, status, stop.
#include "runtime/coordinator/replica.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/mesh.h"

namespace phalanx::coordinator {

Replica::Replica(int index, const CoordinatorOptions& options, std::unique_ptr<GroupSource> source,
                 ReplicaOwner& owner)
    : index_(index),
      options_(options),
      owner_(owner),
      supervisor_(std::move(source), options.restart, MakeCallbacks()) {
  status_.replica = index;
  status_.first_result = absl::InfinitePast();
}

Replica::~Replica() { Stop(); }

Supervisor::Callbacks Replica::MakeCallbacks() {
  Supervisor::Callbacks callbacks;
  callbacks.on_result = [this](uint64_t epoch, absl::StatusOr<scheduler::StepResult> result) {
    Post(Result{epoch, std::move(result)});
  };
  callbacks.on_up = [this](const GroupInfo& info, const Recovery* recovery) {
    Up up{info, std::nullopt};
    if (recovery != nullptr) up.recovery = *recovery;
    Post(std::move(up));
  };
  callbacks.on_gave_up = [this](const absl::Status& why) { Post(GaveUp{why}); };
  callbacks.log = [this](const std::string& line) {
    if (!options_.log) return;
    options_.log(owner_.num_replicas() > 1 ? absl::StrCat("replica ", index_, ": ", line) : line);
  };
  callbacks.clock = [this] { return options_.clock(); };
  return callbacks;
}

void Replica::Post(News news) {
  std::lock_guard<std::mutex> lock(mu_);
  mailbox_.news.push_back(std::move(news));
  mail_came_.notify_one();
}

void Replica::BeginStart() {
  std::lock_guard<std::mutex> lock(mu_);
  if (stop_) return;
  supervisor_.Begin();
  thread_ = std::thread([this] { Main(); });
}

absl::Status Replica::AwaitStart() {
  std::unique_lock<std::mutex> lock(mu_);
  started_.wait(lock, [this] { return stop_ || !start_.ok() || *start_; });
  if (!start_.ok()) return start_.status();
  return stop_ ? absl::UnavailableError("the coordinator was stopped while it started")
               : absl::OkStatus();
}

void Replica::Main() {
  absl::Status status;
  while (status.ok() && !up_) {
    News news;
    {
      std::unique_lock<std::mutex> lock(mu_);
      mail_came_.wait(lock, [this] { return stop_ || !mailbox_.news.empty(); });
      if (stop_) return;
      news = std::move(mailbox_.news.front());
      mailbox_.news.erase(mailbox_.news.begin());
    }
    if (Up* up = std::get_if<Up>(&news); up != nullptr) {
      absl::StatusOr<scheduler::SchedulerOptions> made = MakeSchedulerOptions(up->info);
      status = made.status();
      if (!made.ok()) break;
      scheduler_ = std::make_unique<scheduler::Scheduler>(*std::move(made), up->info.epoch);
      Handle(std::move(*up));
    } else if (const Result* result = std::get_if<Result>(&news); result != nullptr) {
      // It has died before its rise was heard of.
      dead_epoch_ = result->epoch;
      supervisor_.Down(result->epoch, result->result.status());
    } else {
      status = std::get<GaveUp>(news).why;
    }
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (status.ok()) {
      start_ = true;
    } else {
      start_ = status;
    }
  }
  started_.notify_all();
  if (status.ok()) Run();
}

absl::StatusOr<scheduler::SchedulerOptions> Replica::MakeSchedulerOptions(
    const GroupInfo& info) const {
  scheduler::SchedulerOptions out = options_.scheduler;
  out.max_context = options_.limits.max_context;
  if (out.eos_token_ids.empty()) out.eos_token_ids = options_.eos_token_ids;
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(info.layout);
  if (!layout.ok()) return layout.status();
  // One plan for every stage to work on.
  out.max_plans_in_flight = std::max<int64_t>(out.max_plans_in_flight, layout->pp);
  out.sequence_ranks = layout->sp;
  const int64_t held = info.kv_blocks();
  if (out.num_blocks == 0) out.num_blocks = held;
  if (held < 1) {
    return absl::InvalidArgumentError(
        "the ranks' KV memory holds no block; give them more KV memory");
  }
  if (out.num_blocks > held) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_blocks is ", out.num_blocks, ", but the ranks hold only ", held, " KV blocks"));
  }
  if (absl::Status valid = scheduler::ValidateOptions(out); !valid.ok()) return valid;
  return out;
}

GroupInfo Replica::group_info() const {
  std::lock_guard<std::mutex> lock(mu_);
  return info_;
}

std::string Replica::layout() const {
  std::lock_guard<std::mutex> lock(mu_);
  return info_.layout;
}

scheduler::SchedulerOptions Replica::scheduler_options() const {
  std::lock_guard<std::mutex> lock(mu_);
  return scheduler_options_;
}

CoordinatorState Replica::state() const {
  std::lock_guard<std::mutex> lock(mu_);
  return state_;
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

void Replica::Reckon(const LiveRequest& live, int sign) {
  if (!live.admitted) queued_ += sign;
  work_tokens_ += sign * live.prompt_work;
  for (const int64_t tokens : live.tokens_to_come) work_tokens_ += sign * tokens;
  held_tokens_ += sign * live.held_tokens;
}

void Replica::Submit(std::unique_ptr<LiveRequest> live) {
  Reckon(*live, +1);
  // A request that comes while this one waits finds its prefix here later.
  if (!live->prefixes.empty()) prefixes_.Add(live->prefixes[0].hashes());
  std::lock_guard<std::mutex> lock(mu_);
  mailbox_.submissions.push_back(std::move(live));
  mail_came_.notify_one();
}

void Replica::Adopt(ReplicaOwner::Orphan orphan) {
  Reckon(*orphan.live, +1);
  std::lock_guard<std::mutex> lock(mu_);
  mailbox_.orphans.push_back(std::move(orphan));
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
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
    thread = std::move(thread_);
    mail_came_.notify_one();
  }
  started_.notify_all();
  // Requests end before their workers do.
  if (thread.joinable()) thread.join();
  supervisor_.Stop();
  std::lock_guard<std::mutex> lock(mu_);
  state_ = CoordinatorState::kStopped;
}

void Replica::Wake() {
  std::lock_guard<std::mutex> lock(mu_);
  wake_ = true;
  mail_came_.notify_one();
}

}  // namespace phalanx::coordinator
