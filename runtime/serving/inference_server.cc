#include "runtime/serving/inference_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/phalanx/v1/inference.grpc.pb.h"
#include "runtime/control/listen_address.h"
#include "runtime/serving/generate_stream.h"
#include "runtime/serving/parse.h"
#include "runtime/serving/request.h"
#include "runtime/serving/response.h"
#include "runtime/serving/work_pool.h"

namespace phalanx::serving {
namespace {

constexpr char kServiceName[] = "phalanx.v1.Inference";
constexpr int kPoolThreads = 2;
constexpr size_t kPoolCapacity = 64;
constexpr std::chrono::milliseconds kHealthInterval(200);

// Requests come as bytes, see parse.h.
template <typename Service>
using Raw = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Tokenize<v1::Inference::WithRawCallbackMethod_Detokenize<
        v1::Inference::WithRawCallbackMethod_GetModel<
            v1::Inference::WithRawCallbackMethod_GetStatus<Service>>>>>;

}  // namespace

class InferenceServer::Impl final : public Raw<v1::Inference::Service> {
 public:
  explicit Impl(InferenceServerOptions options) : options_(std::move(options)) {}

  absl::Status Listen();
  void Serve(ServedModel model);
  void BeginDrain();
  void Shutdown(absl::Duration grace);
  int port() const { return port_; }
  const std::string& address() const { return address_; }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;

 private:
  using Served = std::shared_ptr<const ServedModel>;

  // The model, or UNAVAILABLE while it loads. `generating`: also UNAVAILABLE while draining.
  absl::StatusOr<Served> GetServed(bool generating);
  // Runs `job` here where the request is small, else in the pool. RESOURCE_EXHAUSTED: too many
  // large ones are waiting; the job does not run.
  absl::Status Dispatch(size_t request_bytes, std::function<void()> job);
  // A unary call: parse, then `handle(const Request&, Response*)`, then answer.
  template <typename Request, typename Response, typename Handler>
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                  Handler handle);
  void FillGetStatus(v1::GetStatusResponse* response);
  void SetHealth(bool serving);
  // Lets health follow the coordinator's state.
  void WatchHealth();

  const InferenceServerOptions options_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  int port_ = 0;
  std::string address_;
  std::unique_ptr<WorkPool> pool_;
  std::unique_ptr<grpc::Server> server_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Served served_;  // null while loading
  bool draining_ = false;
  bool stopping_ = false;
  std::thread health_thread_;
  std::once_flag shutdown_once_;
};

absl::Status InferenceServer::Impl::Listen() {
  absl::StatusOr<control::HostPort> parsed = control::ParseHostPort(options_.listen);
  if (!parsed.ok()) return parsed.status();
  absl::Status can_listen = control::CheckListenAddress(options_.listen);
  if (!can_listen.ok()) return can_listen;

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(control::JoinHostPort(parsed->host, parsed->port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  // Without this a second server could share the port and take half of the requests.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(
      static_cast<int>(std::min<int64_t>(options_.max_request_bytes, INT32_MAX)));
  builder.SetMaxSendMessageSize(-1);
  // A client whose host is gone must not hold KV memory for ever.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  pool_ = std::make_unique<WorkPool>(kPoolThreads, kPoolCapacity);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    server_.reset();
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", options_.listen,
                                                      ": the port has just been taken; try again"));
  }
  SetHealth(false);
  address_ = control::JoinHostPort(parsed->host, port_);
  return absl::OkStatus();
}

void InferenceServer::Impl::SetHealth(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

void InferenceServer::Impl::Serve(ServedModel model) {
  std::lock_guard<std::mutex> lock(mutex_);
  served_ = std::make_shared<const ServedModel>(std::move(model));
  if (stopping_ || health_thread_.joinable()) return;
  SetHealth(!draining_);
  health_thread_ = std::thread([this] { WatchHealth(); });
}

void InferenceServer::Impl::WatchHealth() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    const Served served = served_;
    const bool draining = draining_;
    lock.unlock();
    // A recovery is a pause: requests are taken.
    const coordinator::CoordinatorState state = served->coordinator->GetStatus().state;
    SetHealth(!draining && (state == coordinator::CoordinatorState::kServing ||
                            state == coordinator::CoordinatorState::kRecovering));
    lock.lock();
    if (!stopping_ && draining == draining_) changed_.wait_for(lock, kHealthInterval);
  }
}

void InferenceServer::Impl::BeginDrain() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
  }
  SetHealth(false);
}

void InferenceServer::Impl::Shutdown(absl::Duration grace) {
  std::call_once(shutdown_once_, [&] {
    if (server_ == nullptr) return;
    BeginDrain();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (health_thread_.joinable()) health_thread_.join();
    SetHealth(false);
    server_->Shutdown(std::chrono::system_clock::now() +
                      absl::ToChronoMicroseconds(std::min(grace, absl::Hours(24))));
    server_->Wait();
    pool_.reset();
  });
}

absl::StatusOr<InferenceServer::Impl::Served> InferenceServer::Impl::GetServed(bool generating) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (served_ == nullptr) {
    return absl::UnavailableError("the model is loading; try again when health says SERVING");
  }
  if (generating && draining_) {
    return absl::UnavailableError("the server is draining and takes no new requests");
  }
  return served_;
}

absl::Status InferenceServer::Impl::Dispatch(size_t request_bytes, std::function<void()> job) {
  if (static_cast<int64_t>(request_bytes) <= options_.inline_request_bytes) {
    job();
    return absl::OkStatus();
  }
  if (pool_->Add(std::move(job))) return absl::OkStatus();
  return absl::ResourceExhaustedError("too many large requests wait to be read; try again later");
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceServer::Impl::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  std::shared_ptr<GenerateStream> stream =
      GenerateStream::Open(context, *request, options_.max_unread_bytes, options_.log);
  absl::StatusOr<Served> served = GetServed(true);
  absl::Status status = served.status();
  if (status.ok()) {
    status =
        Dispatch(request->Length(), [stream, served = *std::move(served)] { stream->Run(served); });
  }
  if (!status.ok()) stream->End(status);
  return stream.get();
}

template <typename Request, typename Response, typename Handler>
grpc::ServerUnaryReactor* InferenceServer::Impl::Unary(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response, Handler handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status = Dispatch(request->Length(), [=, bytes = *request] {
    Request message;
    Response answer;
    absl::Status done = ParseRequest(bytes, &message);
    if (done.ok()) done = handle(message, &answer);
    if (done.ok()) *response = Serialize(answer);
    reactor->Finish(ToGrpc(done));
  });
  if (!status.ok()) reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceServer::Impl::Tokenize(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  const auto handle = [this](const v1::TokenizeRequest& message, v1::TokenizeResponse* answer) {
    absl::StatusOr<Served> served = GetServed(false);
    if (!served.ok()) return served.status();
    absl::Status status = CheckModelName(message.model(), (*served)->info);
    if (!status.ok()) return status;
    tokenizer::EncodeOptions options;
    options.parse_special = message.parse_special_tokens();
    if (message.has_add_special_tokens()) {
      options.add_special_tokens = message.add_special_tokens();
    }
    absl::StatusOr<std::vector<int32_t>> ids =
        (*served)->tokenizer->Encode(message.text(), options);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(), absl::StrCat("text: ", ids.status().message()));
    }
    answer->mutable_token_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  };
  return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(context, request, response, handle);
}

grpc::ServerUnaryReactor* InferenceServer::Impl::Detokenize(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer* request,
                                                            grpc::ByteBuffer* response) {
  const auto handle = [this](const v1::DetokenizeRequest& message, v1::DetokenizeResponse* answer) {
    absl::StatusOr<Served> served = GetServed(false);
    if (!served.ok()) return served.status();
    const ModelInfo& info = (*served)->info;
    absl::Status status = CheckModelName(message.model(), info);
    if (!status.ok()) return status;
    const std::unique_ptr<tokenizer::StreamDecoder> decoder =
        (*served)->tokenizer->NewStreamDecoder(!message.show_special_tokens());
    std::string text;
    for (int i = 0; i < message.token_ids_size(); ++i) {
      const int32_t id = message.token_ids(i);
      if (id < 0 || id >= info.vocab_size) {
        return absl::InvalidArgumentError(absl::StrCat("token_ids: entry ", i, " is token id ", id,
                                                       ", but the vocabulary has ids 0 to ",
                                                       info.vocab_size - 1));
      }
      text += decoder->Next(id);
    }
    text += decoder->Flush();
    answer->set_text(std::move(text));
    return absl::OkStatus();
  };
  return Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(context, request, response, handle);
}

grpc::ServerUnaryReactor* InferenceServer::Impl::GetModel(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  const auto handle = [this](const v1::GetModelRequest& message, v1::GetModelResponse* answer) {
    absl::StatusOr<Served> served = GetServed(false);
    if (!served.ok()) return served.status();
    *answer = ModelResponse((*served)->info);
    return CheckModelName(message.model(), (*served)->info);
  };
  return Unary<v1::GetModelRequest, v1::GetModelResponse>(context, request, response, handle);
}

grpc::ServerUnaryReactor* InferenceServer::Impl::GetStatus(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  const auto handle = [this](const v1::GetStatusRequest&, v1::GetStatusResponse* answer) {
    FillGetStatus(answer);
    return absl::OkStatus();
  };
  return Unary<v1::GetStatusRequest, v1::GetStatusResponse>(context, request, response, handle);
}

void InferenceServer::Impl::FillGetStatus(v1::GetStatusResponse* response) {
  Served served;
  bool draining = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    served = served_;
    draining = draining_;
  }
  response->set_version(options_.version);
  response->set_uptime_seconds(
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count());
  if (served == nullptr) {
    response->set_state(draining ? v1::SERVER_STATE_DRAINING : v1::SERVER_STATE_LOADING);
    response->set_model(options_.model);
    response->set_layout(options_.layout);
    if (options_.loading_message) response->set_status_message(options_.loading_message());
    return;
  }
  response->set_model(served->info.name);
  *response->mutable_profile() = ToProto(served->info);
  FillStatus(served->coordinator->GetStatus(), response);
  if (draining && response->state() == v1::SERVER_STATE_SERVING) {
    response->set_state(v1::SERVER_STATE_DRAINING);
  }
  if (!served->rank_health) return;
  for (const control::RankHealth& health : served->rank_health()) {
    for (v1::RankStatus& rank : *response->mutable_ranks()) {
      if (rank.replica() != health.replica || rank.rank() != health.rank) continue;
      rank.set_last_step(health.step);
      rank.set_last_collective(health.collective);
    }
  }
}

absl::StatusOr<std::unique_ptr<InferenceServer>> InferenceServer::Listen(
    InferenceServerOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  absl::Status status = impl->Listen();
  if (!status.ok()) return status;
  return std::unique_ptr<InferenceServer>(new InferenceServer(std::move(impl)));
}

InferenceServer::InferenceServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
InferenceServer::~InferenceServer() { impl_->Shutdown(absl::ZeroDuration()); }
int InferenceServer::port() const { return impl_->port(); }
std::string InferenceServer::address() const { return impl_->address(); }
void InferenceServer::Serve(ServedModel model) { impl_->Serve(std::move(model)); }
void InferenceServer::BeginDrain() { impl_->BeginDrain(); }
void InferenceServer::Shutdown(absl::Duration grace) { impl_->Shutdown(grace); }

}  // namespace phalanx::serving
