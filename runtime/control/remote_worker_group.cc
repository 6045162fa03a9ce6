#include "runtime/control/remote_worker_group.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/control/conversions.h"
#include "runtime/control/local_deaths.h"
#include "runtime/control/rank_stream.h"
#include "runtime/control/rank_table.h"
#include "runtime/coordinator/agreement.h"

namespace phalanx::control {
namespace {

using Clock = std::chrono::steady_clock;

// How often liveness and the step timeout are looked at.
constexpr std::chrono::milliseconds kPollInterval(100);
// A longer time between two looks: this process was stopped or starved, its ranks were not.
constexpr std::chrono::seconds kOwnGap(2);
// A process closes its connections just before its end can be seen.
constexpr absl::Duration kEndAfterClose = absl::Milliseconds(10);

v1::CoordinatorMessage Refuse(std::string reason, bool retry = false) {
  v1::CoordinatorMessage message;
  message.mutable_refused()->set_reason(std::move(reason));
  message.mutable_refused()->set_retry(retry);
  return message;
}

}  // namespace

class RemoteWorkerGroup::Impl final : public RankHandler,
                                      public std::enable_shared_from_this<Impl> {
 public:
  Impl(ControlServer& server, RemoteGroupOptions options)
      : server_(server.impl()), options_(std::move(options)), ranks_(options_) {}

  absl::StatusOr<coordinator::GroupInfo> Start(ResultCallback on_result);
  absl::Status Submit(const scheduler::StepPlan& plan);
  void Stop();
  std::vector<RankHealth> Health() const;

  v1::CoordinatorMessage OnRegister(const std::shared_ptr<RankStream>& stream,
                                    const v1::Register& rank) override;
  void OnMessage(RankStream* stream, const v1::WorkerMessage& message) override;
  void OnLost(RankStream* stream) override;
  void OnRefused(const std::string& reason) override;

 private:
  enum class Phase { kNew, kStarting, kRunning, kDead, kStopped };

  struct Outstanding {
    uint64_t number;
    Clock::time_point since;  // when it became the oldest
  };

  // Require mutex_.
  std::string AtStep() const;
  // Of a rank or LauncherOf one: "lost rank 1 (host a, pid 7) at step 5 (…): …".
  std::string Lost(int who) const;
  // In deaths_, the process that started a rank.
  int LauncherOf(int rank) const { return options_.world_size + rank; }
  // What the clock says against the ranks; OK while there is nothing.
  absl::Status CheckTimes();
  absl::Status WithLastRefusal(const absl::Status& status) const;

  // Not to be called with mutex_ held.
  void HandleResult(int rank, const v1::StepResult& message);
  void Fail(const absl::Status& status);
  void ReportProgress();
  void Monitor();
  absl::Status Launch();
  absl::Status CheckLiveness();
  void Log(const std::string& line) const {
    if (options_.log) options_.log(line);
  }

  ControlServer::Impl& server_;
  const RemoteGroupOptions options_;

  // Held while a callback or on_progress runs: keeps results in order, and Stop waits for it.
  // Taken before mutex_.
  std::mutex callback_mutex_;
  ResultCallback on_result_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Phase phase_ = Phase::kNew;
  absl::Status death_;  // kDead
  RankTable ranks_;
  LocalDeaths deaths_;  // has its own lock
  std::deque<Outstanding> outstanding_;
  uint64_t last_number_ = 0;     // of the last plan submitted
  Clock::time_point advanced_;   // a rank began a step or a collective, or a plan was submitted
  Clock::time_point last_look_;  // CheckTimes
  Clock::time_point launched_;   // `launch` has returned
  absl::Time registered_time_ = absl::InfinitePast();
  std::string last_refusal_;
  std::thread monitor_;
  std::once_flag stop_once_;
  // Held while launch, liveness or terminate runs; taken before mutex_.
  std::mutex launcher_mutex_;
};

v1::CoordinatorMessage RemoteWorkerGroup::Impl::OnRegister(
    const std::shared_ptr<RankStream>& stream, const v1::Register& rank) {
  std::string line;
  v1::CoordinatorMessage answer;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string reason;
    bool retry = false;
    if (phase_ == Phase::kDead || phase_ == Phase::kStopped) {
      reason = "the worker group is ending";
      retry = true;  // a new one may follow
    } else {
      reason = ranks_.ReasonToRefuse(rank);
      if (reason.empty() && phase_ != Phase::kStarting) {
        reason = absl::StrCat("all ", options_.world_size, " ranks are already there");
      }
    }
    if (reason.empty()) {
      ranks_.Register(stream, rank);
      deaths_.Watch(rank.rank(), rank.host(), rank.pid());
      // Started by hand it may be a shell, whose end means nothing.
      if (options_.launch && rank.launcher_pid() > 1) {
        deaths_.Watch(LauncherOf(rank.rank()), rank.host(), rank.launcher_pid());
      }
      if (ranks_.all_registered()) registered_time_ = absl::Now();
      answer.mutable_accepted()->set_epoch(options_.epoch);
      line = absl::StrCat(Describe(rank), " registered: ", rank.device());
    } else {
      line = absl::StrCat("refused ", Describe(rank), ": ", reason);
      if (!retry) last_refusal_ = line;
      answer = Refuse(reason, retry);
    }
  }
  changed_.notify_all();
  Log(line);
  return answer;
}

void RemoteWorkerGroup::Impl::OnRefused(const std::string& reason) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    last_refusal_ = reason;
  }
  Log(reason);
}

void RemoteWorkerGroup::Impl::OnMessage(RankStream* stream, const v1::WorkerMessage& message) {
  std::unique_lock<std::mutex> lock(mutex_);
  RankTable::Rank* rank = ranks_.Find(stream);
  if (rank == nullptr) return;
  rank->heard = Clock::now();
  switch (message.message_case()) {
    case v1::WorkerMessage::kLoadProgress:
      rank->progress = message.load_progress();
      lock.unlock();
      ReportProgress();
      return;
    case v1::WorkerMessage::kReady:
      rank->ready = true;
      rank->sizes = message.ready();
      lock.unlock();
      changed_.notify_all();
      return;
    case v1::WorkerMessage::kHeartbeat:
      if (rank->heartbeat.step() != message.heartbeat().step() ||
          rank->heartbeat.collective() != message.heartbeat().collective() ||
          rank->heartbeat.layer() != message.heartbeat().layer()) {
        advanced_ = rank->heard;
      }
      rank->heartbeat = message.heartbeat();
      return;
    case v1::WorkerMessage::kResult: {
      const int from = rank->info.rank();
      lock.unlock();
      HandleResult(from, message.result());
      return;
    }
    case v1::WorkerMessage::kError: {
      const v1::WorkerError& error = message.error();
      const std::string where =
          error.step() > 0 ? absl::StrCat(" at step ", error.step()) : std::string();
      const bool starting = phase_ == Phase::kStarting;
      const std::string text =
          absl::StrCat(Describe(rank->info), " failed", where, ": ", error.message());
      // A rank that fails because another one died is not the one to be named.
      const bool by_peer = error.code() == static_cast<int>(absl::StatusCode::kUnavailable) ||
                           error.code() == static_cast<int>(absl::StatusCode::kAborted);
      const int first = deaths_.FirstOr(rank->info.rank(),
                                        by_peer ? options_.naming_patience : absl::ZeroDuration());
      const bool died = first != rank->info.rank();
      const std::string death = died ? Lost(first) : std::string();
      rank->stream.reset();
      lock.unlock();
      // While starting the rank's own code says whether model, configuration or machine is at
      // fault; a running group that breaks is unavailable to its clients, whatever broke it.
      const auto code = error.code() > 0 && error.code() <= 16
                            ? static_cast<absl::StatusCode>(error.code())
                            : absl::StatusCode::kUnknown;
      if (died) {
        Fail(absl::UnavailableError(absl::StrCat(death, " (noticed by ", text, ")")));
      } else {
        Fail(starting ? absl::Status(code, text) : absl::UnavailableError(text));
      }
      // The end of its stream tells the rank that note has been taken (WorkerClient::SendError).
      stream->FinishAfterWrites();
      return;
    }
    case v1::WorkerMessage::kRegister:
    case v1::WorkerMessage::MESSAGE_NOT_SET: {
      const std::string text =
          absl::StrCat(Describe(rank->info), " sent a message that is out of place");
      lock.unlock();
      Fail(absl::UnavailableError(text));
      return;
    }
  }
}

void RemoteWorkerGroup::Impl::OnLost(RankStream* stream) {
  absl::Status status;
  std::string line;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    RankTable::Rank* lost = ranks_.Find(stream);
    if (lost == nullptr) return;
    lost->stream.reset();
    if (phase_ == Phase::kRunning || (phase_ == Phase::kStarting && options_.launch)) {
      // Whoever died first is to be named, not whose stream was found broken first.
      status = absl::UnavailableError(Lost(deaths_.FirstOr(lost->info.rank(), kEndAfterClose)));
    } else if (phase_ == Phase::kStarting) {
      // Started by hand: it may come again.
      line = absl::StrCat(Describe(lost->info), " left while the group started");
      if (last_refusal_.empty()) last_refusal_ = line;
    }
  }
  changed_.notify_all();
  if (!line.empty()) Log(line);
  if (!status.ok()) Fail(status);
}

std::string RemoteWorkerGroup::Impl::Lost(int who) const {
  if (who >= options_.world_size) {
    const v1::Register& held = ranks_.at(who - options_.world_size).info;
    return absl::StrCat("the launcher (host ", held.host(), ", pid ", held.launcher_pid(),
                        "), which held rank ", held.rank(), ", has died ",
                        phase_ == Phase::kRunning ? AtStep() : "while the group started");
  }
  const RankTable::Rank& rank = ranks_.at(who);
  std::string where = rank.ready ? "after it loaded" : "while it loaded";
  if (phase_ == Phase::kRunning) {
    where = absl::StrCat(AtStep(), " (last heard of in ", Whereabouts(rank.heartbeat), ")");
  }
  return absl::StrCat("lost ", Describe(rank.info), " ", where,
                      ": its control stream broke; the process has died or its host is out of "
                      "reach");
}

std::string RemoteWorkerGroup::Impl::AtStep() const {
  if (!outstanding_.empty()) return absl::StrCat("at step ", outstanding_.front().number);
  return absl::StrCat("after step ", last_number_);
}

void RemoteWorkerGroup::Impl::HandleResult(int rank, const v1::StepResult& message) {
  absl::StatusOr<scheduler::StepResult> result = FromProto(message);
  std::unique_lock<std::mutex> callback_lock(callback_mutex_);
  absl::Status failure;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ != Phase::kRunning || message.epoch() != options_.epoch) return;
    if (rank != options_.result_rank) {
      failure = absl::UnavailableError(absl::StrCat(
          Describe(ranks_.at(rank).info), " sent the result of step ", message.number(),
          ", but results come from rank ", options_.result_rank, " alone"));
    } else if (!result.ok()) {
      failure = absl::UnavailableError(
          absl::StrCat(Describe(ranks_.at(rank).info), ": ", result.status().message()));
    } else if (outstanding_.empty() || outstanding_.front().number != message.number()) {
      failure = absl::UnavailableError(absl::StrCat(
          Describe(ranks_.at(rank).info), " sent the result of step ", message.number(), " where ",
          outstanding_.empty() ? std::string("none")
                               : absl::StrCat("that of step ", outstanding_.front().number),
          " was due"));
    } else {
      outstanding_.pop_front();
      advanced_ = Clock::now();
      if (!outstanding_.empty()) outstanding_.front().since = advanced_;
    }
  }
  if (!failure.ok()) {
    callback_lock.unlock();
    Fail(failure);
    return;
  }
  on_result_(std::move(result));
}

void RemoteWorkerGroup::Impl::Fail(const absl::Status& status) {
  bool was_running = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ != Phase::kStarting && phase_ != Phase::kRunning) return;
    was_running = phase_ == Phase::kRunning;
    phase_ = Phase::kDead;
    death_ = status;
    outstanding_.clear();
  }
  changed_.notify_all();
  if (!was_running) return;  // Start returns it
  std::lock_guard<std::mutex> callback_lock(callback_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ == Phase::kStopped) return;
  }
  on_result_(status);
}

void RemoteWorkerGroup::Impl::ReportProgress() {
  if (!options_.on_progress) return;
  std::lock_guard<std::mutex> callback_lock(callback_mutex_);
  int64_t loaded = 0;
  int64_t total = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ != Phase::kStarting) return;
    ranks_.Progress(&loaded, &total);
  }
  options_.on_progress(loaded, total);
}

absl::Status RemoteWorkerGroup::Impl::WithLastRefusal(const absl::Status& status) const {
  if (last_refusal_.empty()) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), "; ", last_refusal_));
}

absl::StatusOr<coordinator::GroupInfo> RemoteWorkerGroup::Impl::Start(ResultCallback on_result) {
  const absl::Time launched = absl::Now();
  const Clock::time_point deadline =
      Clock::now() +
      absl::ToChronoNanoseconds(std::min(options_.start_timeout, absl::Hours(24 * 365)));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ != Phase::kNew) {
      return absl::FailedPreconditionError("this worker group has been started or stopped before");
    }
    phase_ = Phase::kStarting;
    on_result_ = std::move(on_result);
  }
  absl::Status status;
  if (options_.result_rank < 0 || options_.result_rank >= options_.world_size) {
    status = absl::InvalidArgumentError(absl::StrCat("result_rank is ", options_.result_rank,
                                                     ", but the ranks are 0 to ",
                                                     options_.world_size - 1));
  }
  if (status.ok()) status = server_.Attach(options_.replica, shared_from_this());
  if (status.ok() && options_.launch) status = Launch();
  if (!status.ok()) {
    Fail(status);
    return status;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  launched_ = last_look_ = Clock::now();
  while (phase_ == Phase::kStarting && !ranks_.all_ready()) {
    if (const absl::Status silent = CheckTimes(); !silent.ok()) {
      const absl::Status named = WithLastRefusal(silent);
      lock.unlock();
      Fail(named);
      return named;
    }
    if (Clock::now() >= deadline) {
      const absl::Status late = WithLastRefusal(absl::DeadlineExceededError(
          absl::StrCat("the workers did not start within ",
                       absl::FormatDuration(options_.start_timeout), ": ", ranks_.Missing())));
      lock.unlock();
      Fail(late);
      return late;
    }
    lock.unlock();
    status = CheckLiveness();
    lock.lock();
    // What a rank said of itself comes before what its launcher says of its exit.
    if (!status.ok() && phase_ == Phase::kStarting && !ranks_.all_ready()) {
      const absl::Status dead = WithLastRefusal(absl::Status(
          ranks_.any_registered() ? absl::StatusCode::kUnavailable : absl::StatusCode::kAborted,
          absl::StrCat(status.message(), " (before all ranks were ready: ", ranks_.Missing(),
                       ")")));
      lock.unlock();
      Fail(dead);
      return dead;
    }
    changed_.wait_until(lock, std::min(deadline, Clock::now() + kPollInterval),
                        [&] { return phase_ != Phase::kStarting || ranks_.all_ready(); });
  }
  if (phase_ == Phase::kDead) return death_;
  if (phase_ != Phase::kStarting) {
    return absl::CancelledError("the worker group was stopped while it started");
  }
  coordinator::GroupInfo info = ranks_.MakeInfo();
  info.launched = launched;
  info.registered = registered_time_;
  info.loaded = absl::Now();
  // At registration nobody had read the weights.
  status = coordinator::CheckAgreement(info.ranks);
  if (!status.ok()) {
    lock.unlock();
    Fail(status);
    return status;
  }
  phase_ = Phase::kRunning;
  monitor_ = std::thread([this] { Monitor(); });
  return info;
}

absl::Status RemoteWorkerGroup::Impl::Launch() {
  std::lock_guard<std::mutex> launcher_lock(launcher_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ != Phase::kStarting) {
      return absl::CancelledError("the worker group was stopped while it started");
    }
  }
  return options_.launch();
}

absl::Status RemoteWorkerGroup::Impl::CheckLiveness() {
  if (!options_.liveness) return absl::OkStatus();
  std::lock_guard<std::mutex> launcher_lock(launcher_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ == Phase::kStopped) return absl::OkStatus();
  }
  return options_.liveness();
}

absl::Status RemoteWorkerGroup::Impl::CheckTimes() {
  const Clock::time_point now = Clock::now();
  const Clock::duration gap = now - std::exchange(last_look_, now);
  if (gap > kOwnGap) {
    ranks_.ForgiveSilence(gap);
    advanced_ += gap;
    launched_ += gap;
    if (!outstanding_.empty()) outstanding_.front().since += gap;
  }
  const auto passed = [now](Clock::time_point since, absl::Duration limit) {
    return absl::FromChrono(now - since) > limit;
  };
  if (const RankTable::Rank* rank = ranks_.MostSilent();
      rank != nullptr && passed(rank->heard, options_.heartbeat_timeout)) {
    return absl::UnavailableError(absl::StrCat(
        Describe(rank->info), " was not heard of for ",
        absl::FormatDuration(options_.heartbeat_timeout), ", last in ",
        Whereabouts(rank->heartbeat), phase_ == Phase::kStarting ? " while the group started" : "",
        ": the process is stopped, its host out of reach or overloaded (--heartbeat-timeout)"));
  }
  if (phase_ == Phase::kStarting) {
    if (options_.launch && !ranks_.all_registered() &&
        passed(launched_, options_.register_timeout)) {
      return absl::UnavailableError(absl::StrCat("not all workers have registered within ",
                                                 absl::FormatDuration(options_.register_timeout),
                                                 ": ", ranks_.Missing()));
    }
    return absl::OkStatus();
  }
  if (outstanding_.empty()) return absl::OkStatus();
  const Outstanding& oldest = outstanding_.front();
  if (options_.world_size > 1 && passed(std::max(advanced_, oldest.since), options_.hang_timeout)) {
    return absl::UnavailableError(absl::StrCat(
        "step ", oldest.number, " hangs: no rank has begun a step, a layer or a collective for ",
        absl::FormatDuration(options_.hang_timeout),
        " (--hang-timeout); last heard: ", ranks_.LastHeard()));
  }
  if (passed(oldest.since, options_.step_timeout)) {
    return absl::UnavailableError(absl::StrCat("step ", oldest.number, " gave no result within ",
                                               absl::FormatDuration(options_.step_timeout),
                                               "; last heard: ", ranks_.LastHeard()));
  }
  return absl::OkStatus();
}

void RemoteWorkerGroup::Impl::Monitor() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (phase_ == Phase::kRunning) {
    if (const absl::Status late = CheckTimes(); !late.ok()) {
      lock.unlock();
      Fail(late);
      return;
    }
    if (options_.liveness) {
      lock.unlock();
      const absl::Status alive = CheckLiveness();
      if (!alive.ok()) {
        Fail(absl::UnavailableError(alive.message()));
        return;
      }
      lock.lock();
    }
    changed_.wait_for(lock, kPollInterval, [&] { return phase_ != Phase::kRunning; });
  }
}

absl::Status RemoteWorkerGroup::Impl::Submit(const scheduler::StepPlan& plan) {
  v1::CoordinatorMessage message;
  ToProto(plan, message.mutable_plan());
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ == Phase::kDead) return absl::UnavailableError(death_.message());
  if (phase_ != Phase::kRunning) return absl::UnavailableError("the worker group is not running");
  if (plan.epoch != options_.epoch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plan of epoch ", plan.epoch, " for the worker group of epoch ", options_.epoch));
  }
  const std::shared_ptr<RankStream>& lead = ranks_.at(0).stream;
  if (lead == nullptr) {
    // OnLost is about to say the same.
    return absl::UnavailableError(Lost(deaths_.FirstOr(0, kEndAfterClose)));
  }
  const Clock::time_point now = Clock::now();
  if (outstanding_.empty()) advanced_ = now;
  outstanding_.push_back({plan.number, now});
  last_number_ = plan.number;
  lead->Send(std::move(message));
  return absl::OkStatus();
}

void RemoteWorkerGroup::Impl::Stop() {
  std::call_once(stop_once_, [this] {
    Phase before;
    std::vector<std::shared_ptr<RankStream>> streams;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      before = phase_;
      phase_ = Phase::kStopped;
      streams = ranks_.streams();
    }
    changed_.notify_all();
    { std::lock_guard<std::mutex> wait_for_callback(callback_mutex_); }
    if (monitor_.joinable()) monitor_.join();
    // Ranks that still load have nothing to finish.
    const bool fence = before == Phase::kDead || before == Phase::kStarting;
    if (!fence) {
      for (const std::shared_ptr<RankStream>& stream : streams) {
        v1::CoordinatorMessage message;
        message.mutable_shutdown()->set_reason("the coordinator stops");
        stream->Send(std::move(message));
      }
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.stop_timeout),
                        [&] { return ranks_.all_gone(); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      streams = ranks_.TakeStreams();
    }
    for (const std::shared_ptr<RankStream>& stream : streams) stream->Break();
    if (options_.terminate && before != Phase::kNew) {
      std::lock_guard<std::mutex> launcher_lock(launcher_mutex_);
      options_.terminate(fence);
    }
    server_.Detach(this);
  });
}

std::vector<RankHealth> RemoteWorkerGroup::Impl::Health() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return ranks_.Health();
}

RemoteWorkerGroup::RemoteWorkerGroup(ControlServer& server, RemoteGroupOptions options)
    : impl_(std::make_shared<Impl>(server, std::move(options))) {}
RemoteWorkerGroup::~RemoteWorkerGroup() { impl_->Stop(); }
absl::StatusOr<coordinator::GroupInfo> RemoteWorkerGroup::Start(ResultCallback on_result) {
  return impl_->Start(std::move(on_result));
}
absl::Status RemoteWorkerGroup::Submit(scheduler::StepPlan plan) { return impl_->Submit(plan); }
void RemoteWorkerGroup::Stop() { impl_->Stop(); }
std::vector<RankHealth> RemoteWorkerGroup::Health() const { return impl_->Health(); }
std::function<std::vector<RankHealth>()> RemoteWorkerGroup::HealthReader() const {
  return [impl = std::weak_ptr<Impl>(impl_)] {
    const std::shared_ptr<Impl> group = impl.lock();
    return group != nullptr ? group->Health() : std::vector<RankHealth>();
  };
}

}  // namespace phalanx::control
