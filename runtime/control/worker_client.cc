#include "runtime/control/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/phalanx/v1/control.grpc.pb.h"
#include "runtime/control/control_channel.h"
#include "runtime/control/conversions.h"

namespace phalanx::control {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRetryPause(100);
constexpr std::chrono::milliseconds kProgressInterval(100);
constexpr std::chrono::seconds kFarewell(2);  // for the coordinator to take note

std::shared_ptr<grpc::Channel> MakeChannel(const WorkerClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
  // The coordinator may come up after the rank.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return OpenControlChannel(options.coordinator, options.keepalive_time, options.keepalive_timeout,
                            arguments);
}

}  // namespace

class WorkerClient::Impl {
 public:
  Impl(WorkerClientOptions options, WorkerIdentity identity,
       const std::shared_ptr<grpc::Channel>& channel)
      : options_(std::move(options)),
        identity_(std::move(identity)),
        stub_(v1::Control::NewStub(channel)) {}
  ~Impl() { Close(); }

  enum class Outcome { kAccepted, kTryAgain, kRefused };
  // Opens the stream and registers. On kAccepted the threads run.
  Outcome Register(Clock::time_point deadline, absl::Status* why);

  uint64_t epoch() const { return epoch_; }
  void ReportProgress(int64_t loaded, int64_t total);
  absl::Status Send(const v1::WorkerMessage& message);
  absl::StatusOr<std::optional<scheduler::StepPlan>> NextPlan();
  void SendError(const absl::Status& error, uint64_t step);
  void NoteStep(uint64_t step) { step_ = step; }

 private:
  void Read();
  void Heartbeats();
  void Close();

  const WorkerClientOptions options_;
  const WorkerIdentity identity_;
  std::unique_ptr<v1::Control::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> stream_;
  uint64_t epoch_ = 0;
  std::atomic<uint64_t> step_{0};

  std::mutex write_mutex_;           // one writer at a time
  Clock::time_point last_progress_;  // under write_mutex_

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<v1::CoordinatorMessage> answer_;  // to Register
  std::deque<v1::StepPlan> plans_;
  bool shutdown_ = false;  // the coordinator has asked to leave
  bool closing_ = false;   // this end is leaving
  bool ended_ = false;     // nothing more will be read
  absl::Status end_status_;

  std::thread reader_;
  std::thread heartbeats_;
};

WorkerClient::Impl::Outcome WorkerClient::Impl::Register(Clock::time_point deadline,
                                                         absl::Status* why) {
  stream_ = stub_->Connect(&context_);
  v1::WorkerMessage message;
  v1::Register* rank = message.mutable_register_();
  rank->set_protocol_version(identity_.protocol_version);
  rank->set_build_version(identity_.build_version);
  rank->set_token(options_.token);
  rank->set_rank(identity_.rank);
  rank->set_world_size(identity_.world_size);
  rank->set_replica(identity_.replica);
  rank->set_epoch(identity_.epoch);
  rank->set_host(identity_.host);
  rank->set_pid(identity_.pid);
  rank->set_launcher_pid(identity_.launcher_pid);
  rank->set_device(identity_.device);
  rank->set_layout(identity_.layout);
  rank->set_op_digest(identity_.op_digest);
  rank->set_checkpoint_digest(identity_.checkpoint_digest);
  rank->set_profile(identity_.profile);
  rank->set_max_step_tokens(identity_.max_step_tokens);
  rank->set_max_context(identity_.max_context);
  stream_->Write(message);  // a failure shows in the reader
  reader_ = std::thread([this] { Read(); });

  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_until(lock, deadline, [&] { return answer_.has_value() || ended_; });
  if (!answer_.has_value()) {
    *why = ended_ ? end_status_ : absl::DeadlineExceededError("the coordinator gave no answer");
    return Outcome::kTryAgain;
  }
  if (answer_->has_accepted()) {
    epoch_ = answer_->accepted().epoch();
    heartbeats_ = std::thread([this] { Heartbeats(); });
    return Outcome::kAccepted;
  }
  if (!answer_->has_refused()) {  // Shutdown: this coordinator is stopping
    *why = absl::UnavailableError("the coordinator is stopping");
    return Outcome::kTryAgain;
  }
  *why = absl::FailedPreconditionError(absl::StrCat("the coordinator at ", options_.coordinator,
                                                    " refused rank ", identity_.rank, ": ",
                                                    answer_->refused().reason()));
  return answer_->refused().retry() ? Outcome::kTryAgain : Outcome::kRefused;
}

void WorkerClient::Impl::Read() {
  v1::CoordinatorMessage message;
  while (stream_->Read(&message)) {
    std::string shutdown_reason;
    bool shutdown = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!answer_.has_value()) {
        answer_ = std::move(message);
      } else if (message.has_plan()) {
        plans_.push_back(std::move(*message.mutable_plan()));
      } else if (message.has_shutdown() && !shutdown_) {
        shutdown = shutdown_ = true;
        shutdown_reason = message.shutdown().reason();
      }
    }
    changed_.notify_all();
    if (shutdown && options_.on_shutdown) options_.on_shutdown(shutdown_reason);
  }
  const grpc::Status status = stream_->Finish();
  absl::Status lost;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    end_status_ = absl::UnavailableError(absl::StrCat(
        "the coordinator at ", options_.coordinator, " is gone",
        status.error_message().empty() ? "" : absl::StrCat(": ", status.error_message())));
    const bool accepted = answer_.has_value() && answer_->has_accepted();
    if (accepted && !closing_) lost = end_status_;
  }
  changed_.notify_all();
  if (!lost.ok() && options_.on_disconnect) options_.on_disconnect(lost);
}

void WorkerClient::Impl::Heartbeats() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closing_ && !ended_) {
    changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.heartbeat_interval),
                      [&] { return closing_ || ended_; });
    if (closing_ || ended_) return;
    lock.unlock();
    v1::WorkerMessage message;
    message.mutable_heartbeat()->set_step(step_);
    if (options_.collective_number) {
      message.mutable_heartbeat()->set_collective(options_.collective_number());
    }
    if (options_.layers_computed) {
      message.mutable_heartbeat()->set_layer(options_.layers_computed());
    }
    Send(message).IgnoreError();  // a broken stream shows in the reader
    lock.lock();
  }
}

absl::Status WorkerClient::Impl::Send(const v1::WorkerMessage& message) {
  std::lock_guard<std::mutex> write_lock(write_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return end_status_;
    if (closing_) return absl::UnavailableError("this rank is leaving");
  }
  if (stream_->Write(message)) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the coordinator at ", options_.coordinator, " is gone"));
}

void WorkerClient::Impl::ReportProgress(int64_t loaded, int64_t total) {
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    const Clock::time_point now = Clock::now();
    if (loaded < total && now - last_progress_ < kProgressInterval) return;
    last_progress_ = now;
  }
  v1::WorkerMessage message;
  message.mutable_load_progress()->set_bytes_loaded(loaded);
  message.mutable_load_progress()->set_bytes_total(total);
  Send(message).IgnoreError();  // a broken stream shows in the reader
}

absl::StatusOr<std::optional<scheduler::StepPlan>> WorkerClient::Impl::NextPlan() {
  v1::StepPlan proto;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return shutdown_ || ended_ || !plans_.empty(); });
    if (shutdown_) return std::nullopt;  // plans that are left have nobody waiting for them
    if (plans_.empty()) return end_status_;
    proto = std::move(plans_.front());
    plans_.pop_front();
  }
  absl::StatusOr<scheduler::StepPlan> plan = FromProto(proto);
  if (!plan.ok()) return plan.status();
  step_ = plan->number;
  return std::optional<scheduler::StepPlan>(*std::move(plan));
}

void WorkerClient::Impl::SendError(const absl::Status& error, uint64_t step) {
  v1::WorkerMessage message;
  message.mutable_error()->set_code(static_cast<int>(error.code()));
  message.mutable_error()->set_message(std::string(error.message()));
  message.mutable_error()->set_step(step);
  const bool sent = Send(message).ok();
  std::unique_lock<std::mutex> lock(mutex_);
  closing_ = true;
  changed_.notify_all();
  if (sent) changed_.wait_for(lock, kFarewell, [&] { return ended_; });
}

void WorkerClient::Impl::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (heartbeats_.joinable()) heartbeats_.join();
  if (stream_ == nullptr) return;
  {
    std::lock_guard<std::mutex> write_lock(write_mutex_);
    stream_->WritesDone();
  }
  {
    // The coordinator answers the end of our side with the end of its own.
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, kFarewell, [&] { return ended_; });
  }
  context_.TryCancel();
  if (reader_.joinable()) reader_.join();
}

absl::StatusOr<std::unique_ptr<WorkerClient>> WorkerClient::Connect(
    const WorkerClientOptions& options, const WorkerIdentity& identity) {
  const Clock::time_point deadline =
      Clock::now() +
      absl::ToChronoNanoseconds(std::min(options.connect_timeout, absl::Hours(24 * 365)));
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(options);
  absl::Status why;
  do {
    const auto remaining =
        std::chrono::duration_cast<std::chrono::microseconds>(deadline - Clock::now());
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + remaining)) break;
    auto impl = std::make_unique<Impl>(options, identity, channel);
    switch (impl->Register(deadline, &why)) {
      case Impl::Outcome::kAccepted:
        return std::unique_ptr<WorkerClient>(new WorkerClient(std::move(impl)));
      case Impl::Outcome::kRefused:
        return why;
      case Impl::Outcome::kTryAgain:
        break;
    }
    impl.reset();
    std::this_thread::sleep_for(kRetryPause);
  } while (Clock::now() < deadline);
  if (why.ok()) {
    return absl::UnavailableError(absl::StrCat(
        "no coordinator answers at ", options.coordinator, " (waited ",
        absl::FormatDuration(options.connect_timeout),
        "); check that `phalanx serve` runs there and that the port can be reached from here"));
  }
  return absl::DeadlineExceededError(absl::StrCat(
      "rank ", identity.rank, " could not register with the coordinator at ", options.coordinator,
      " within ", absl::FormatDuration(options.connect_timeout), "; last: ", why.message()));
}

WorkerClient::WorkerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WorkerClient::~WorkerClient() = default;
uint64_t WorkerClient::epoch() const { return impl_->epoch(); }
void WorkerClient::ReportProgress(int64_t bytes_loaded, int64_t bytes_total) {
  impl_->ReportProgress(bytes_loaded, bytes_total);
}
absl::Status WorkerClient::ReportReady(int64_t weight_bytes, int64_t kv_block_bytes,
                                       int64_t kv_blocks, const std::string& content_digest,
                                       const coordinator::RankTimes& times) {
  v1::WorkerMessage message;
  message.mutable_ready()->set_weight_bytes(weight_bytes);
  message.mutable_ready()->set_kv_block_bytes(kv_block_bytes);
  message.mutable_ready()->set_kv_blocks(kv_blocks);
  message.mutable_ready()->set_content_digest(content_digest);
  v1::RankTimes* to = message.mutable_ready()->mutable_times();
  to->set_mpi_init(absl::ToInt64Microseconds(times.mpi_init));
  to->set_open(absl::ToInt64Microseconds(times.open));
  to->set_register_(absl::ToInt64Microseconds(times.registers));
  to->set_weights(absl::ToInt64Microseconds(times.weights));
  to->set_weights_were_kept(times.weights_were_kept);
  to->set_agreement(absl::ToInt64Microseconds(times.agreement));
  to->set_kv(absl::ToInt64Microseconds(times.kv));
  to->set_total(absl::ToInt64Microseconds(times.total));
  return impl_->Send(message);
}
absl::StatusOr<std::optional<scheduler::StepPlan>> WorkerClient::NextPlan() {
  return impl_->NextPlan();
}
absl::Status WorkerClient::SendResult(const scheduler::StepResult& result) {
  v1::WorkerMessage message;
  ToProto(result, message.mutable_result());
  return impl_->Send(message);
}
void WorkerClient::SendError(const absl::Status& error, uint64_t step) {
  impl_->SendError(error, step);
}
void WorkerClient::NoteStep(uint64_t step) { impl_->NoteStep(step); }

}  // namespace phalanx::control
