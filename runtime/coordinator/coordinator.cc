// The side of the coordinator that clients call: checks, the mailbox, start and stop.
#include "runtime/coordinator/coordinator.h"

#include <chrono>
#include <limits>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/loop.h"

namespace phalanx::coordinator {
namespace {

uint64_t DrawFromDevice() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

constexpr absl::Duration kRateWindow = absl::Seconds(10);

}  // namespace

absl::string_view Name(CoordinatorState state) {
  switch (state) {
    case CoordinatorState::kLoading:
      return "loading";
    case CoordinatorState::kServing:
      return "serving";
    case CoordinatorState::kDraining:
      return "draining";
    case CoordinatorState::kFailed:
      return "failed";
    case CoordinatorState::kStopped:
      return "stopped";
  }
  return "unknown";
}

Coordinator::Coordinator(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group)
    : loop_(std::make_unique<Loop>(std::move(options), std::move(group))) {}
Coordinator::~Coordinator() { Stop(); }
absl::Status Coordinator::Start() { return loop_->Start(); }
absl::StatusOr<RequestHandle> Coordinator::Submit(GenerateRequest request, EventCallback callback) {
  return loop_->Submit(std::move(request), std::move(callback));
}
bool Coordinator::Cancel(absl::string_view request_id) { return loop_->Cancel(request_id); }
CoordinatorStatus Coordinator::GetStatus() const { return loop_->GetStatus(); }
absl::Status Coordinator::Drain(absl::Duration timeout) { return loop_->Drain(timeout); }
void Coordinator::Stop() { loop_->Stop(); }
void Coordinator::Wake() { loop_->Wake(); }

Coordinator::Loop::Loop(CoordinatorOptions options, std::unique_ptr<WorkerGroup> group)
    : options_(std::move(options)), group_(std::move(group)), id_prefix_(DrawFromDevice()) {}

Coordinator::Loop::~Loop() { Stop(); }

absl::Status Coordinator::Loop::Start() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stop_) return absl::UnavailableError("the coordinator was stopped before it had started");
  }
  scheduler::SchedulerOptions scheduler_options = options_.scheduler;
  scheduler_options.max_context = options_.limits.max_context;
  if (scheduler_options.eos_token_ids.empty()) {
    scheduler_options.eos_token_ids = options_.eos_token_ids;
  }
  if (options_.limits.vocab_size < 1 || options_.limits.max_context < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "limits: a vocabulary of ", options_.limits.vocab_size, " ids and a context of ",
        options_.limits.max_context, " tokens; at least 1 and 2 are needed"));
  }
  absl::StatusOr<GroupInfo> info =
      group_->Start([this](absl::StatusOr<scheduler::StepResult> result) {
        std::lock_guard<std::mutex> lock(mu_);
        mailbox_.results.push_back(std::move(result));
        mail_came_.notify_one();
      });
  if (!info.ok()) return info.status();
  const int64_t held = info->kv_blocks();
  if (scheduler_options.num_blocks == 0) scheduler_options.num_blocks = held;
  absl::Status status = scheduler::ValidateOptions(scheduler_options);
  if (held < 1) {
    status =
        absl::InvalidArgumentError("the ranks' KV memory holds no block; give them more KV memory");
  } else if (scheduler_options.num_blocks > held) {
    status =
        absl::InvalidArgumentError(absl::StrCat("num_blocks is ", scheduler_options.num_blocks,
                                                ", but the ranks hold only ", held, " KV blocks"));
  }
  if (!status.ok()) {
    group_->Stop();
    return status;
  }

  std::lock_guard<std::mutex> lock(mu_);
  if (stop_) return absl::UnavailableError("the coordinator was stopped while it started");
  scheduler_options_ = scheduler_options;
  scheduler_ = std::make_unique<scheduler::Scheduler>(scheduler_options, info->epoch);
  status_.group = *std::move(info);
  status_.blocks = scheduler_->stats().blocks;
  state_ = CoordinatorState::kServing;
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

absl::Status Coordinator::Loop::CheckAccepting() const {
  switch (state_) {
    case CoordinatorState::kServing:
      return absl::OkStatus();
    case CoordinatorState::kLoading:
      return absl::UnavailableError("the model is still loading; try again later");
    case CoordinatorState::kDraining:
      return absl::UnavailableError("the server is draining and takes no new requests");
    case CoordinatorState::kFailed:
      return absl::UnavailableError(absl::StrCat("the workers are gone: ", failure_.message()));
    case CoordinatorState::kStopped:
      break;
  }
  return absl::UnavailableError("the server has stopped");
}

std::string Coordinator::Loop::DrawId() {
  return absl::StrCat("req-", absl::Hex(id_prefix_, absl::kZeroPad16), "-", next_serial_);
}

absl::StatusOr<RequestHandle> Coordinator::Loop::Submit(GenerateRequest request,
                                                        EventCallback callback) {
  absl::Status status = ValidateRequest(request, options_.limits, options_.text_decoder != nullptr);
  if (!status.ok()) return status;
  auto live = std::make_unique<Live>();
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
  if (status = scheduler::Scheduler::CheckFits(scheduler_options_, spec); !status.ok()) {
    return status;
  }
  if (queued_ >= scheduler_options_.max_queued_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", queued_, " requests are waiting; try again later"));
  }
  live->serial = spec.request_id = next_serial_++;
  live->request = std::move(request);
  const RequestHandle handle{live->request.id, live->seed};
  live_ids_.emplace(handle.id, live->serial);
  ++queued_;
  ++unfinished_;
  mailbox_.submissions.push_back(std::move(live));
  mail_came_.notify_one();
  return handle;
}

bool Coordinator::Loop::Cancel(absl::string_view request_id) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = live_ids_.find(std::string(request_id));
  if (it == live_ids_.end()) return false;
  mailbox_.cancellations.push_back(it->second);
  mail_came_.notify_one();
  return true;
}

CoordinatorStatus Coordinator::Loop::GetStatus() const {
  const absl::Time now = options_.clock();
  std::lock_guard<std::mutex> lock(mu_);
  CoordinatorStatus status = status_;
  status.state = state_;
  status.failure = failure_;
  status.queued_requests = queued_;
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

absl::Status Coordinator::Loop::Drain(absl::Duration timeout) {
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

void Coordinator::Loop::Stop() {
  std::lock_guard<std::mutex> stop_lock(stop_mu_);
  std::thread thread;
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
    thread = std::move(thread_);
    mail_came_.notify_one();
  }
  if (thread.joinable()) thread.join();
  group_->Stop();
  std::lock_guard<std::mutex> lock(mu_);
  state_ = CoordinatorState::kStopped;
}

void Coordinator::Loop::Wake() {
  std::lock_guard<std::mutex> lock(mu_);
  wake_ = true;
  mail_came_.notify_one();
}

}  // namespace phalanx::coordinator
