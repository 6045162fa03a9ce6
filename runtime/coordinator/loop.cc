// The loop thread: mail -> commit -> events -> schedule -> send.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/coordinator/replica.h"

namespace phalanx::coordinator {
namespace {

constexpr absl::Duration kRateStep = absl::Milliseconds(500);

std::string Gone(const absl::Status& failure) {
  return absl::StrCat("the workers are gone: ", failure.message());
}

}  // namespace

bool Replica::WaitForMail(Mailbox& mail) {
  const absl::Time deadline = scheduler_->NextDeadline();
  const absl::Duration timeout = deadline - options_.clock();
  std::unique_lock<std::mutex> lock(mu_);
  const auto ready = [this] { return stop_ || wake_ || !mailbox_.empty(); };
  if (deadline == absl::InfiniteFuture()) {
    mail_came_.wait(lock, ready);
  } else {
    // Rounded up, so that the loop doesn't wake just before the deadline; at most an hour, because
    // the clock may be set.
    mail_came_.wait_for(
        lock,
        std::chrono::milliseconds(absl::ToInt64Milliseconds(std::min(timeout, absl::Hours(1))) + 1),
        ready);
  }
  wake_ = false;
  mail = std::exchange(mailbox_, {});
  return !stop_;
}

void Replica::Run() {
  Mailbox mail;
  bool going = true;
  while (going) {
    going = WaitForMail(mail);
    for (auto& live : mail.submissions) Accept(std::move(live));
    for (ReplicaOwner::Orphan& orphan : mail.orphans) Accept(std::move(orphan));
    for (News& news : mail.news) {
      std::visit([this](auto& one) { Handle(std::move(one)); }, news);
    }
    for (const uint64_t serial : mail.cancellations) {
      if (!scheduler_->Cancel(serial, absl::CancelledError("the request was cancelled")) &&
          !gave_up_.ok()) {
        owner_.CancelElsewhere(index_, serial);
      }
    }
    scheduler_->Expire(options_.clock());
    Deliver();
    if (!going) {
      EndAll("the server is stopping");
    } else {
      SubmitPlans();
    }
    Deliver();
    PublishStatus();
  }
}

void Replica::Accept(std::unique_ptr<LiveRequest> live) {
  for (int64_t i = 0; i < live->request.n; ++i) {
    live->texts.push_back(std::make_unique<TextStream>(
        options_.text_decoder ? options_.text_decoder(live->request) : nullptr,
        live->request.stop));
  }
  if (!live->prefixes.empty()) {
    const PrefixHasher prompt = live->prefixes[0];
    live->prefixes.resize(live->request.n, prompt);
  }
  const uint64_t serial = live->serial;
  absl::Status status = gave_up_.ok() ? scheduler_->Add(std::move(live->spec))
                                      : absl::UnavailableError(Gone(gave_up_));
  LiveRequest& kept = *(live_[serial] = std::move(live));
  if (status.ok()) return;
  scheduler::RequestOutput ended;
  ended.request_id = serial;
  ended.done = true;
  ended.status = std::move(status);
  DeliverOne(kept, std::move(ended));
}

void Replica::Accept(ReplicaOwner::Orphan orphan) {
  const uint64_t serial = orphan.live->serial;
  live_[serial] = std::move(orphan.live);
  scheduler_->Adopt(std::move(*orphan.request));
  // This replica has lost its workers, too, since it was asked.
  if (!gave_up_.ok()) GiveAway(Gone(gave_up_));
}

void Replica::GiveAway(const std::string& why) {
  std::vector<ReplicaOwner::Orphan> orphans;
  for (scheduler::Scheduler::Departed& departed : scheduler_->TakeUnfinished()) {
    const auto it = live_.find(departed.request_id());
    LiveRequest& live = *it->second;
    Reckon(live, -1);
    orphans.push_back({std::move(it->second),
                       std::make_unique<scheduler::Scheduler::Departed>(std::move(departed))});
    live_.erase(it);
  }
  owner_.Rehome(index_, orphans);
  for (ReplicaOwner::Orphan& orphan : orphans) {
    LiveRequest& live = *orphan.live;
    Reckon(live, +1);
    live_[live.serial] = std::move(orphan.live);
    scheduler_->Adopt(std::move(*orphan.request));
  }
  EndAll(why);
}

void Replica::Handle(Result news) {
  // Late words of a group that has been replaced.
  if (!up_ || news.epoch != scheduler_->epoch()) {
    if (!news.result.ok()) OnDeath(news.epoch, news.result.status());
    return;
  }
  if (!news.result.ok()) {
    OnDeath(news.epoch, news.result.status());
    return;
  }
  const scheduler::StepResult& result = *news.result;
  compute_us_ += result.compute_us;
  expert_tokens_.resize(std::max(expert_tokens_.size(), result.expert_tokens.size()));
  for (size_t e = 0; e < result.expert_tokens.size(); ++e) {
    expert_tokens_[e] += result.expert_tokens[e];
  }
  if (absl::Status status = scheduler_->Commit(result); !status.ok()) {
    OnDeath(news.epoch, status);
    return;
  }
  if (!first_result_) {
    first_result_ = true;
    supervisor_.NoteProgress();
    std::lock_guard<std::mutex> lock(mu_);
    status_.first_result = options_.clock();
  }
  // Stop strings end samples before anything is scheduled again.
  Deliver();
}

void Replica::Handle(Up news) {
  GroupInfo& info = news.info;
  if (info.epoch <= dead_epoch_) return;  // has died meanwhile
  absl::StatusOr<scheduler::SchedulerOptions> made = MakeSchedulerOptions(info);
  if (!made.ok()) {
    OnDeath(info.epoch, made.status());
    return;
  }
  // What the new memory can never hold ends here.
  scheduler_->Restart(info.epoch, made->num_blocks, made->sequence_ranks,
                      made->max_plans_in_flight);
  up_ = true;
  first_result_ = false;
  const int64_t blocks = scheduler_->stats().blocks.total;
  kv_tokens_ = blocks * made->block_tokens;
  prefixes_.SetCapacity(blocks);
  {
    std::lock_guard<std::mutex> lock(mu_);
    state_ = CoordinatorState::kServing;
    scheduler_options_ = *std::move(made);
    status_.group = info;
    status_.blocks = scheduler_->stats().blocks;
    status_.first_result = absl::InfinitePast();
    if (news.recovery.has_value()) {
      ++status_.recoveries;
      status_.last_recovery = std::move(news.recovery);
    }
    info_ = std::move(info);
  }
  if (options_.replica_changed) options_.replica_changed();
}

void Replica::Handle(GaveUp news) {
  up_ = false;
  gave_up_ = std::move(news.why);
  {
    std::lock_guard<std::mutex> lock(mu_);
    state_ = CoordinatorState::kFailed;
    failure_ = gave_up_;
  }
  if (options_.replica_changed) options_.replica_changed();
  prefixes_.Clear();
  GiveAway(Gone(gave_up_));
}

void Replica::SubmitPlans() {
  while (up_) {
    std::optional<scheduler::StepPlan> plan = scheduler_->Schedule();
    if (!plan.has_value()) return;
    // Who sees the plan sees its admissions accounted for.
    Deliver();
    PublishStatus();
    const uint64_t epoch = plan->epoch;
    if (absl::Status status = supervisor_.Submit(*std::move(plan)); !status.ok()) {
      OnDeath(epoch, status, /*newest_was_sent=*/false);
    }
  }
}

void Replica::OnDeath(uint64_t epoch, const absl::Status& cause, bool newest_was_sent) {
  supervisor_.Down(epoch, cause);
  dead_epoch_ = std::max(dead_epoch_, epoch);
  if (!up_ || epoch != scheduler_->epoch()) return;
  up_ = false;
  // Nothing of it is cached any more.
  prefixes_.Clear();
  {
    std::lock_guard<std::mutex> lock(mu_);
    state_ = CoordinatorState::kRecovering;
  }
  scheduler_->OnGroupDeath(cause, newest_was_sent);
  Deliver();
}

void Replica::EndAll(absl::string_view why) {
  for (const auto& [serial, live] : live_) {
    const int64_t tokens = live->usage.completion_tokens;
    scheduler_->Cancel(
        serial, absl::UnavailableError(absl::StrCat(
                    why, "; this request had ",
                    tokens == 0 ? std::string("no token yet")
                                : absl::StrCat(tokens, tokens == 1 ? " token" : " tokens"))));
  }
}

void Replica::Deliver() {
  while (true) {
    std::vector<scheduler::RequestOutput> outputs = scheduler_->TakeOutputs();
    if (outputs.empty()) return;
    for (scheduler::RequestOutput& output : outputs) {
      const auto it = live_.find(output.request_id);
      if (it != live_.end()) DeliverOne(*it->second, std::move(output));
    }
  }
}

bool Replica::AddText(LiveRequest& live, const scheduler::SampleToken& token, SampleOutput& out) {
  TextStream& text = *live.texts[token.sample_index];
  const bool search = token.num_generated >= live.request.min_tokens;
  TextStream::Delta delta;
  // The id that ended the sample adds no text of its own.
  if (token.finish != FinishReason::kStop) delta = text.Push(token.token.id, search);
  if (token.finish != FinishReason::kNone && delta.stop_string.empty()) {
    TextStream::Delta rest = text.Finish(search);
    delta.text += rest.text;
    delta.stop_string = std::move(rest.stop_string);
  }
  out.text += delta.text;
  out.finish = token.finish;
  out.stop_token_id = token.stop_token_id;
  if (delta.stop_string.empty()) return false;
  out.finish = FinishReason::kStop;
  out.stop_token_id = -1;
  out.stop_string = std::move(delta.stop_string);
  return true;
}

void Replica::DeliverOne(LiveRequest& live, scheduler::RequestOutput output) {
  const uint64_t serial = live.serial;
  const absl::Time now = options_.clock();
  if (output.admitted) {
    live.usage.cached_tokens = output.cached_tokens;
    live.usage.queue_time = now - live.submitted;
  }
  if ((output.admitted || output.done) && !live.admitted) {
    live.admitted = true;
    --queued_;
  }
  Event event;
  event.request_id = live.request.id;
  event.seed = live.seed;
  event.prompt_logprobs = std::move(output.prompt_logprobs);
  std::sort(output.tokens.begin(), output.tokens.end(),
            [](const auto& a, const auto& b) { return a.sample_index < b.sample_index; });
  std::vector<int> stopped;
  for (scheduler::SampleToken& token : output.tokens) {
    if (!live.has_first_token) {
      live.has_first_token = true;
      live.usage.time_to_first_token = now - live.submitted;
    }
    ++live.usage.completion_tokens;
    Account(live, token);
    if (event.outputs.empty() || event.outputs.back().sample_index != token.sample_index) {
      event.outputs.emplace_back();
      event.outputs.back().sample_index = token.sample_index;
    }
    SampleOutput& out = event.outputs.back();
    if (AddText(live, token, out) && token.finish == FinishReason::kNone) {
      stopped.push_back(token.sample_index);
    }
    out.tokens.push_back(std::move(token.token));
  }
  for (const int sample : stopped) scheduler_->FinishSample(serial, sample);
  event.done = output.done;
  if (event.outputs.empty() && !event.done) return;
  if (!event.done) {
    live.callback(event);
    return;
  }
  event.status = std::move(output.status);
  if (!event.status.ok() && options_.log &&
      (absl::IsInternal(event.status) || absl::IsUnavailable(event.status))) {
    options_.log(absl::StrCat("request ", absl::Utf8SafeCEscape(live.request.id),
                              " failed: ", event.status.message()));
  }
  live.usage.preemptions = output.preemptions;
  live.usage.total_time = now - live.submitted;
  event.usage = live.usage;
  ++finished_requests_;
  CloseAccount(live);
  // The id is free and the status up to date before the client can act on the last event.
  PublishStatus();
  owner_.OnEnding(live);
  live.callback(event);
  live_.erase(serial);
  owner_.OnEnded();
}

void Replica::Account(LiveRequest& live, const scheduler::SampleToken& token) {
  work_tokens_ -= std::exchange(live.prompt_work, 0);
  if (int64_t& left = live.tokens_to_come[token.sample_index]; left > 0) {
    --left;
    --work_tokens_;
  }
  if (!live.prefixes.empty()) live.prefixes[token.sample_index].Push(token.token.id);
}

void Replica::CloseAccount(LiveRequest& live) {
  work_tokens_ -= std::exchange(live.prompt_work, 0);
  for (int64_t& left : live.tokens_to_come) work_tokens_ -= std::exchange(left, 0);
  held_tokens_ -= std::exchange(live.held_tokens, 0);
  // A conversation's next turn begins with this answer.
  if (!up_) return;
  for (const PrefixHasher& prefix : live.prefixes) prefixes_.Add(prefix.hashes());
}

void Replica::PublishStatus() {
  const scheduler::SchedulerStats stats = scheduler_->stats();
  const absl::Time now = options_.clock();
  std::lock_guard<std::mutex> lock(mu_);
  status_.running_requests = stats.running_requests;
  status_.running_sequences = stats.running_sequences;
  status_.blocks = stats.blocks;
  status_.steps = stats.steps;
  status_.prompt_tokens = stats.prompt_tokens;
  status_.cached_prompt_tokens = stats.cached_tokens;
  status_.generated_tokens = stats.generated_tokens;
  status_.preemptions = stats.preemptions;
  status_.finished_requests = finished_requests_;
  status_.compute_us = compute_us_;
  status_.expert_tokens = expert_tokens_;
  if (marks_.empty() || now - marks_.back().time >= kRateStep) {
    marks_.push_back({now, stats.prompt_tokens, stats.generated_tokens});
  }
  while (!marks_.empty() && now - marks_.front().time > kRateWindow) marks_.pop_front();
}

}  // namespace phalanx::coordinator
