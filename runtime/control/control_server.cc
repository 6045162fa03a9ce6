#include "runtime/control/control_server.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/control/listen_address.h"
#include "runtime/control/rank_stream.h"
#include "runtime/control/watch_stream.h"

namespace phalanx::control {

absl::Status ControlServer::Impl::Listen() {
  absl::StatusOr<HostPort> parsed = ParseHostPort(options_.listen);
  if (!parsed.ok()) return parsed.status();
  absl::Status can_listen = CheckListenAddress(options_.listen);
  if (!can_listen.ok()) return can_listen;

  grpc::ServerBuilder builder;
  builder.AddListeningPort(JoinHostPort(parsed->host, parsed->port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  // Without this a second server could share the port and take half of the ranks.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Plans of long sequences with penalties carry their histories.
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(options_.keepalive_time)));
  builder.AddChannelArgument(
      GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
      static_cast<int>(absl::ToInt64Milliseconds(options_.keepalive_timeout)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Ranks ping every few seconds; gRPC's default would take that for an attack and hang up.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    server_.reset();
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", options_.listen,
                                                      ": the port has just been taken; try again"));
  }
  address_ = JoinHostPort(parsed->host, port_);
  return absl::OkStatus();
}

ControlServer::Impl::~Impl() {
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now());  // cancels what is open
    server_->Wait();
  }
}

grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* ControlServer::Impl::Connect(
    grpc::CallbackServerContext* context) {
  return RankStream::Open(this, context).get();
}

grpc::ServerWriteReactor<v1::WatchEvent>* ControlServer::Impl::Watch(
    grpc::CallbackServerContext* /*context*/, const v1::WatchRequest* request) {
  return OpenWatch(EqualSecrets(request->token(), options_.token));
}

absl::Status ControlServer::Impl::Attach(int replica, const std::shared_ptr<RankHandler>& handler) {
  if (replica < 0 || replica >= options_.replicas) {
    return absl::InvalidArgumentError(absl::StrCat("the control server is for ", options_.replicas,
                                                   " replicas; found replica ", replica));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (!handlers_.try_emplace(replica, handler).second) {
    return absl::FailedPreconditionError(
        absl::StrCat("the control server already has a worker group of replica ", replica,
                     "; stop that one first"));
  }
  return absl::OkStatus();
}

void ControlServer::Impl::Detach(RankHandler* handler) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(handlers_, [handler](const auto& entry) { return entry.second.get() == handler; });
}

std::shared_ptr<RankHandler> ControlServer::Impl::handler(int replica) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = handlers_.find(replica);
  return it == handlers_.end() ? nullptr : it->second;
}

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Listen(ControlServerOptions options) {
  if (options.token.empty()) {
    return absl::InvalidArgumentError("control server: the token must not be empty");
  }
  if (options.replicas < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("control server: ", options.replicas, " replicas; at least 1 is needed"));
  }
  auto impl = std::make_unique<Impl>(std::move(options));
  absl::Status status = impl->Listen();
  if (!status.ok()) return status;
  return std::unique_ptr<ControlServer>(new ControlServer(std::move(impl)));
}

ControlServer::ControlServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControlServer::~ControlServer() = default;
int ControlServer::port() const { return impl_->port(); }
std::string ControlServer::address() const { return impl_->address(); }

}  // namespace phalanx::control
