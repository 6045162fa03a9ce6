// The side of the coordinator that clients call: checks, ids, the choice of a replica.
#include "runtime/coordinator/coordinator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <unordered_map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "parallel/mesh.h"
#include "runtime/coordinator/agreement.h"
#include "runtime/coordinator/replica.h"
#include "runtime/coordinator/router.h"

namespace phalanx::coordinator {
namespace {

uint64_t DrawFromDevice() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

absl::string_view Name(CoordinatorState state) {
  switch (state) {
    case CoordinatorState::kLoading:
      return "loading";
    case CoordinatorState::kServing:
      return "serving";
    case CoordinatorState::kRecovering:
      return "recovering";
    case CoordinatorState::kDraining:
      return "draining";
    case CoordinatorState::kFailed:
      return "failed";
    case CoordinatorState::kStopped:
      return "stopped";
  }
  return "unknown";
}

void EngineCounters::Add(const EngineCounters& other) {
  queued_requests += other.queued_requests;
  running_requests += other.running_requests;
  running_sequences += other.running_sequences;
  blocks.Add(other.blocks);
  steps += other.steps;
  prompt_tokens += other.prompt_tokens;
  cached_prompt_tokens += other.cached_prompt_tokens;
  generated_tokens += other.generated_tokens;
  preemptions += other.preemptions;
  finished_requests += other.finished_requests;
  compute_us += other.compute_us;
  prompt_tokens_per_second += other.prompt_tokens_per_second;
  generated_tokens_per_second += other.generated_tokens_per_second;
  reckoned_tokens += other.reckoned_tokens;
  expert_tokens.resize(std::max(expert_tokens.size(), other.expert_tokens.size()));
  for (size_t e = 0; e < other.expert_tokens.size(); ++e) {
    expert_tokens[e] += other.expert_tokens[e];
  }
}

double EngineCounters::ExpertImbalance() const {
  const int64_t sum = std::accumulate(expert_tokens.begin(), expert_tokens.end(), int64_t{0});
  if (sum == 0) return 0;
  const int64_t most = *std::max_element(expert_tokens.begin(), expert_tokens.end());
  return static_cast<double>(most) * static_cast<double>(expert_tokens.size()) /
         static_cast<double>(sum);
}

class Coordinator::Impl final : public ReplicaOwner {
 public:
  Impl(CoordinatorOptions options, std::vector<std::unique_ptr<GroupSource>> sources);

  absl::Status Start();
  absl::StatusOr<RequestHandle> Submit(GenerateRequest request, EventCallback callback);
  bool Cancel(absl::string_view request_id);
  CoordinatorStatus GetStatus() const;
  std::string layout() const;
  absl::Status Drain(absl::Duration timeout);
  void Stop();
  void Wake();

  int num_replicas() const override { return static_cast<int>(replicas_.size()); }
  void OnEnding(const LiveRequest& live) override;
  void OnEnded() override;
  void Rehome(int replica, std::vector<Orphan>& orphans) override;
  void CancelElsewhere(int replica, uint64_t serial) override;

 private:
  struct Place {
    int replica = 0;
    uint64_t serial = 0;
  };

  absl::Status CheckReplicasAgree() const;
  // "replica 1: " where there are several.
  std::string Prefix(size_t replica) const;
  bool routes_by_prefix() const { return replicas_.size() > 1 && options_.scheduler.prefix_reuse; }
  std::unique_ptr<LiveRequest> MakeLive(GenerateRequest& request, EventCallback callback);
  // The state with the replicas' own taken into account; the failure of each where all failed.
  CoordinatorState State(absl::Status* failure) const;  // mu_ held
  absl::Status CheckAccepting() const;                  // mu_ held
  // Where the request goes; also reckons what it will cost there. RESOURCE_EXHAUSTED, UNAVAILABLE.
  absl::StatusOr<int> Route(LiveRequest& live) const;
  std::string DrawId();  // mu_ held

  const CoordinatorOptions options_;
  std::vector<std::unique_ptr<Replica>> replicas_;

  // Taken before a replica's own lock.
  mutable std::mutex mu_;
  std::condition_variable request_ended_;
  // Guarded by mu_.
  CoordinatorState state_ = CoordinatorState::kLoading;  // never kFailed
  std::unordered_map<std::string, Place> live_ids_;
  int64_t unfinished_ = 0;  // accepted, last event not delivered
  uint64_t next_serial_ = 1;
  bool stop_ = false;

  const uint64_t id_prefix_ = DrawFromDevice();
  std::mutex stop_mu_;  // one Stop() at a time; taken before mu_
};

Coordinator::Impl::Impl(CoordinatorOptions options,
                        std::vector<std::unique_ptr<GroupSource>> sources)
    : options_(std::move(options)) {
  PHALANX_CHECK(!sources.empty()) << "a coordinator needs worker groups";
  for (size_t i = 0; i < sources.size(); ++i) {
    replicas_.push_back(
        std::make_unique<Replica>(static_cast<int>(i), options_, std::move(sources[i]), *this));
  }
}

// "dp=2,tp=2"; where replicas had to be laid out differently, "tp=2 + tp=1".
std::string Coordinator::Impl::layout() const {
  std::vector<std::string> layouts;
  for (const auto& replica : replicas_) layouts.push_back(replica->layout());
  if (std::adjacent_find(layouts.begin(), layouts.end(), std::not_equal_to<>()) != layouts.end()) {
    return absl::StrJoin(layouts, " + ");
  }
  absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(layouts[0]);
  if (!layout.ok()) return layouts[0];  // loading
  layout->dp = static_cast<int>(replicas_.size());
  return layout->ToString();
}

std::string Coordinator::Impl::Prefix(size_t replica) const {
  return replicas_.size() > 1 ? absl::StrCat("replica ", replica, ": ") : "";
}

absl::Status Coordinator::Impl::Start() {
  if (options_.limits.vocab_size < 1 || options_.limits.max_context < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "limits: a vocabulary of ", options_.limits.vocab_size, " ids and a context of ",
        options_.limits.max_context, " tokens; at least 1 and 2 are needed"));
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stop_) return absl::UnavailableError("the coordinator was stopped before it had started");
  }
  // The first that fails stops the others, whose own errors then say nothing.
  std::mutex first_mu;
  absl::Status first;
  std::vector<std::thread> waiting;
  for (const auto& replica : replicas_) replica->BeginStart();
  for (size_t i = 0; i < replicas_.size(); ++i) {
    waiting.emplace_back([&, i] {
      const absl::Status status = replicas_[i]->AwaitStart();
      if (status.ok()) return;
      {
        std::lock_guard<std::mutex> lock(first_mu);
        if (!first.ok()) return;
        first = absl::Status(status.code(), absl::StrCat(Prefix(i), status.message()));
      }
      std::lock_guard<std::mutex> stop_lock(stop_mu_);
      for (const auto& replica : replicas_) replica->Stop();
    });
  }
  for (std::thread& thread : waiting) thread.join();
  if (first.ok()) first = CheckReplicasAgree();
  if (!first.ok()) {
    std::lock_guard<std::mutex> stop_lock(stop_mu_);
    for (const auto& replica : replicas_) replica->Stop();
    return first;
  }

  std::lock_guard<std::mutex> lock(mu_);
  if (stop_) return absl::UnavailableError("the coordinator was stopped while it started");
  state_ = CoordinatorState::kServing;
  return absl::OkStatus();
}

absl::Status Coordinator::Impl::CheckReplicasAgree() const {
  const std::vector<RankInfo> first = replicas_[0]->group_info().ranks;
  for (size_t i = 1; i < replicas_.size(); ++i) {
    const std::vector<RankInfo> other = replicas_[i]->group_info().ranks;
    if (first.empty() || other.empty()) continue;
    const absl::Status status = CheckAgreement(first[0], other[0]);
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("replicas 0 and ", i, " differ: ", status.message()));
    }
  }
  return absl::OkStatus();
}

CoordinatorState Coordinator::Impl::State(absl::Status* failure) const {
  if (state_ == CoordinatorState::kLoading || state_ == CoordinatorState::kStopped) return state_;
  std::string causes;
  bool up = false;
  bool failed = true;
  for (size_t i = 0; i < replicas_.size(); ++i) {
    const absl::Status status = replicas_[i]->failure();
    up = up || replicas_[i]->state() == CoordinatorState::kServing;
    failed = failed && !status.ok();
    absl::StrAppend(&causes, i > 0 ? "; " : "", Prefix(i), status.message());
  }
  if (failed) {
    *failure = absl::UnavailableError(causes);
    return CoordinatorState::kFailed;
  }
  if (!up && state_ == CoordinatorState::kServing) return CoordinatorState::kRecovering;
  return state_;
}

absl::Status Coordinator::Impl::CheckAccepting() const {
  // Before the loops end: what comes later would never be looked at.
  if (stop_) return absl::UnavailableError("the server has stopped");
  absl::Status failure;
  switch (State(&failure)) {
    case CoordinatorState::kServing:
    case CoordinatorState::kRecovering:
      return absl::OkStatus();
    case CoordinatorState::kLoading:
      return absl::UnavailableError("the model is still loading; try again later");
    case CoordinatorState::kDraining:
      return absl::UnavailableError("the server is draining and takes no new requests");
    case CoordinatorState::kFailed:
      return absl::UnavailableError(absl::StrCat("the workers are gone: ", failure.message()));
    case CoordinatorState::kStopped:
      break;
  }
  return absl::UnavailableError("the server has stopped");
}

std::string Coordinator::Impl::DrawId() {
  return absl::StrCat("req-", absl::Hex(id_prefix_, absl::kZeroPad16), "-", next_serial_);
}

std::unique_ptr<LiveRequest> Coordinator::Impl::MakeLive(GenerateRequest& request,
                                                         EventCallback callback) {
  auto live = std::make_unique<LiveRequest>();
  live->submitted = options_.clock();
  live->callback = std::move(callback);
  live->seed = request.seed.has_value() ? *request.seed
               : options_.draw_seed     ? options_.draw_seed()
                                        : DrawFromDevice();
  scheduler::RequestSpec& spec = live->spec;
  spec.prompt = std::move(request.prompt_token_ids);
  spec.sampling = std::move(request.sampling);
  spec.sampling.seed = live->seed;
  spec.max_tokens = request.max_tokens.value_or(options_.limits.max_context);
  spec.min_tokens = request.min_tokens;
  spec.stop_token_ids = request.stop_token_ids;
  spec.ignore_eos = request.ignore_eos;
  spec.n = static_cast<int32_t>(request.n);
  spec.cache_salt = request.cache_salt;
  spec.deadline = request.deadline;
  live->usage.prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (routes_by_prefix()) {
    live->prefixes.emplace_back(spec.cache_salt, options_.scheduler.block_tokens);
    live->prefixes[0].Push(spec.prompt);
  }
  return live;
}

absl::StatusOr<int> Coordinator::Impl::Route(LiveRequest& live) const {
  const scheduler::RequestSpec& spec = live.spec;
  const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t block = options_.scheduler.block_tokens;
  live.tokens_to_come.assign(spec.n, std::min({spec.max_tokens, kReckonedAnswerTokens,
                                               options_.limits.max_context - prompt}));
  const int64_t answers = live.tokens_to_come[0] * spec.n;
  // As in the scheduler: the last row is always computed, and a prompt whose logprobs are asked for
  // wholly.
  const int64_t reusable = spec.sampling.prompt_logprobs >= 0 ? 0 : (prompt - 1) / block;
  absl::Status refused;
  std::vector<int> candidates;
  std::vector<ReplicaLoad> loads;
  // Who recovers takes requests only where nobody is up.
  for (const CoordinatorState wanted :
       {CoordinatorState::kServing, CoordinatorState::kRecovering}) {
    for (size_t i = 0; i < replicas_.size(); ++i) {
      Replica& replica = *replicas_[i];
      if (replica.state() != wanted) continue;
      const absl::Status fits = scheduler::Scheduler::CheckFits(replica.scheduler_options(), spec);
      if (!fits.ok()) {
        refused = fits;
        continue;
      }
      candidates.push_back(static_cast<int>(i));
      ReplicaLoad& load = loads.emplace_back(replica.load());
      if (!live.prefixes.empty()) {
        const int64_t blocks = replica.prefixes().Match(live.prefixes[0].hashes());
        load.cached_tokens = std::min(blocks, reusable) * block;
      }
    }
    if (!candidates.empty()) break;
  }
  if (candidates.empty()) {
    // None was up: the last one has been lost since it was asked.
    if (refused.ok()) refused = CheckAccepting();
    return refused.ok() ? absl::UnavailableError("the workers are gone") : refused;
  }
  const int chosen = ChooseReplica(loads, prompt + answers);
  live.prompt_work = prompt - loads[chosen].cached_tokens;
  live.held_tokens = live.prompt_work + answers;
  return candidates[chosen];
}

absl::StatusOr<RequestHandle> Coordinator::Impl::Submit(GenerateRequest request,
                                                        EventCallback callback) {
  absl::Status status = ValidateRequest(request, options_.limits, options_.text_decoder != nullptr);
  if (!status.ok()) return status;
  std::unique_ptr<LiveRequest> live = MakeLive(request, std::move(callback));

  std::lock_guard<std::mutex> lock(mu_);
  if (status = CheckAccepting(); !status.ok()) return status;
  if (request.deadline <= live->submitted) {
    return absl::DeadlineExceededError("the request's deadline has already passed");
  }
  if (request.id.empty()) request.id = DrawId();
  if (live_ids_.contains(request.id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id: a request \"", request.id, "\" is still running"));
  }
  const absl::StatusOr<int> chosen = Route(*live);
  if (!chosen.ok()) return chosen.status();
  int64_t queued = 0;
  for (const auto& replica : replicas_) queued += replica->queued();
  if (queued >= options_.scheduler.max_queued_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", queued, " requests are waiting; try again later"));
  }
  live->serial = live->spec.request_id = next_serial_++;
  live->request = std::move(request);
  RequestHandle handle{live->request.id, live->seed};
  live_ids_.emplace(handle.id, Place{*chosen, live->serial});
  ++unfinished_;
  replicas_[*chosen]->Submit(std::move(live));
  return handle;
}

void Coordinator::Impl::OnEnding(const LiveRequest& live) {
  std::lock_guard<std::mutex> lock(mu_);
  live_ids_.erase(live.request.id);
}

void Coordinator::Impl::OnEnded() {
  std::lock_guard<std::mutex> lock(mu_);
  --unfinished_;
  request_ended_.notify_all();
}

void Coordinator::Impl::Rehome(int replica, std::vector<Orphan>& orphans) {
  std::lock_guard<std::mutex> lock(mu_);
  if (stop_) return;
  // To each in turn: all of them begin with an empty cache.
  std::vector<Replica*> homes;
  for (const CoordinatorState wanted :
       {CoordinatorState::kServing, CoordinatorState::kRecovering}) {
    if (!homes.empty()) break;
    for (const auto& other : replicas_) {
      if (other->state() == wanted) homes.push_back(other.get());
    }
  }
  if (homes.empty()) return;
  for (size_t i = 0; i < orphans.size(); ++i) {
    Replica& home = *homes[i % homes.size()];
    Place& place = live_ids_.at(orphans[i].live->request.id);
    place.replica = home.index();
    if (options_.log) {
      options_.log(absl::StrCat("request ", absl::Utf8SafeCEscape(orphans[i].live->request.id),
                                " goes on with replica ", home.index(), ": replica ", replica,
                                " is lost"));
    }
    home.Adopt(std::move(orphans[i]));
  }
  orphans.clear();
}

void Coordinator::Impl::CancelElsewhere(int replica, uint64_t serial) {
  std::lock_guard<std::mutex> lock(mu_);
  for (const auto& [id, place] : live_ids_) {
    if (place.serial == serial && place.replica != replica) {
      replicas_[place.replica]->Cancel(serial);
    }
  }
}

bool Coordinator::Impl::Cancel(absl::string_view request_id) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = live_ids_.find(std::string(request_id));
  if (it == live_ids_.end()) return false;
  replicas_[it->second.replica]->Cancel(it->second.serial);
  return true;
}

CoordinatorStatus Coordinator::Impl::GetStatus() const {
  CoordinatorStatus status;
  {
    std::lock_guard<std::mutex> lock(mu_);
    status.state = State(&status.failure);
  }
  status.layout = layout();
  for (const auto& replica : replicas_) {
    ReplicaStatus& of = status.replicas.emplace_back(replica->GetStatus());
    // What is lost holds no blocks.
    if (of.state == CoordinatorState::kFailed) of.blocks = of.blocks.Counted();
    status.Add(of);
  }
  status.group = status.replicas[0].group;
  return status;
}

absl::Status Coordinator::Impl::Drain(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mu_);
  if (state_ == CoordinatorState::kServing) state_ = CoordinatorState::kDraining;
  const auto idle = [this] { return unfinished_ == 0; };
  if (timeout == absl::InfiniteDuration()) {
    request_ended_.wait(lock, idle);
  } else if (!request_ended_.wait_for(lock, absl::ToChronoMilliseconds(timeout), idle)) {
    return absl::DeadlineExceededError(
        absl::StrCat(unfinished_, " requests had not ended after ", absl::FormatDuration(timeout)));
  }
  return absl::OkStatus();
}

void Coordinator::Impl::Stop() {
  std::lock_guard<std::mutex> stop_lock(stop_mu_);
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  // At the same time: each may wait for its ranks to leave.
  std::vector<std::thread> stopping;
  for (size_t i = 1; i < replicas_.size(); ++i) {
    stopping.emplace_back([this, i] { replicas_[i]->Stop(); });
  }
  replicas_[0]->Stop();
  for (std::thread& thread : stopping) thread.join();
  std::lock_guard<std::mutex> lock(mu_);
  state_ = CoordinatorState::kStopped;
}

void Coordinator::Impl::Wake() {
  for (const auto& replica : replicas_) replica->Wake();
}

Coordinator::Coordinator(CoordinatorOptions options,
                         std::vector<std::unique_ptr<GroupSource>> sources)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(sources))) {}
Coordinator::Coordinator(CoordinatorOptions options,
                         std::vector<std::unique_ptr<WorkerGroup>> groups)
    : Coordinator(
          [&options] {
            options.restart.max_tries = 0;
            return std::move(options);
          }(),
          [&groups] {
            std::vector<std::unique_ptr<GroupSource>> sources;
            sources.reserve(groups.size());
            for (auto& group : groups) {
              sources.push_back(std::make_unique<SingleGroupSource>(std::move(group)));
            }
            return sources;
          }()) {}
Coordinator::Coordinator(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group)
    : Coordinator(std::move(options), [&group] {
        std::vector<std::unique_ptr<WorkerGroup>> groups;
        groups.push_back(std::move(group));
        return groups;
      }()) {}
Coordinator::~Coordinator() { Stop(); }
absl::Status Coordinator::Start() { return impl_->Start(); }
absl::StatusOr<RequestHandle> Coordinator::Submit(GenerateRequest request, EventCallback callback) {
  return impl_->Submit(std::move(request), std::move(callback));
}
bool Coordinator::Cancel(absl::string_view request_id) { return impl_->Cancel(request_id); }
CoordinatorStatus Coordinator::GetStatus() const { return impl_->GetStatus(); }
std::string Coordinator::layout() const { return impl_->layout(); }
absl::Status Coordinator::Drain(absl::Duration timeout) { return impl_->Drain(timeout); }
void Coordinator::Stop() { impl_->Stop(); }
void Coordinator::Wake() { impl_->Wake(); }

}  // namespace phalanx::coordinator
