// One rank's stream, as the coordinator holds it. Private to runtime/control.
#ifndef PHALANX_RUNTIME_CONTROL_RANK_STREAM_H_
#define PHALANX_RUNTIME_CONTROL_RANK_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "proto/phalanx/v1/control.grpc.pb.h"
#include "runtime/control/control_server.h"

namespace phalanx::control {

// Takes the same time wherever two texts differ, so that it does not tell how much was right.
bool EqualSecrets(const std::string& a, const std::string& b);

class RankStream;

// What a worker group does about its streams. Calls for one stream come one after the other,
// OnRegister first, OnLost last, both once; those for different streams at the same time.
class RankHandler {
 public:
  virtual ~RankHandler() = default;
  // Answers a rank whose token, protocol and build are right, with Accepted or Refused. The handler
  // may keep an accepted stream.
  virtual v1::CoordinatorMessage OnRegister(const std::shared_ptr<RankStream>& stream,
                                            const v1::Register& rank) = 0;
  // A later message of an accepted rank.
  virtual void OnMessage(RankStream* stream, const v1::WorkerMessage& message) = 0;
  // The accepted rank's stream has ended.
  virtual void OnLost(RankStream* stream) = 0;
  // A rank that was refused before it came to OnRegister; `reason` names it.
  virtual void OnRefused(const std::string& reason) = 0;
};

// Deletes itself when gRPC is done with it and nobody holds it any more. Thread-safe.
class RankStream final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  // Begins to read. `server` outlives the stream.
  static std::shared_ptr<RankStream> Open(ControlServer::Impl* server,
                                          grpc::CallbackServerContext* context);

  // Queues a message; dropped where the stream has ended.
  void Send(v1::CoordinatorMessage message);
  // Ends the stream when what was queued has been sent.
  void FinishAfterWrites();
  // Breaks the stream without waiting for anything.
  void Break();
  // Address of the rank's end.
  const std::string& peer() const { return peer_; }

 private:
  RankStream(ControlServer::Impl* server, grpc::CallbackServerContext* context)
      : server_(server), context_(context), peer_(context->peer()) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;
  void HandleMessage();
  // Require mutex_.
  void WriteNext();
  void FinishOnce();

  ControlServer::Impl* const server_;
  grpc::CallbackServerContext* context_;  // null once gRPC is done
  const std::string peer_;
  std::shared_ptr<RankStream> self_;

  // Read side: touched by one callback at a time.
  v1::WorkerMessage incoming_;
  bool registered_seen_ = false;
  std::shared_ptr<RankHandler> handler_;  // set when accepted

  std::mutex mutex_;
  std::deque<v1::CoordinatorMessage> outgoing_;  // front: being written while writing_
  bool writing_ = false;
  bool finish_when_drained_ = false;
  bool finished_ = false;
};

// The service, and which groups are attached.
class ControlServer::Impl final : public v1::Control::CallbackService {
 public:
  explicit Impl(ControlServerOptions options) : options_(std::move(options)) {}
  ~Impl() override;

  absl::Status Listen();
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Connect(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<v1::WatchEvent>* Watch(grpc::CallbackServerContext* context,
                                                  const v1::WatchRequest* request) override;

  const ControlServerOptions& options() const { return options_; }
  int port() const { return port_; }
  const std::string& address() const { return address_; }

  // INVALID_ARGUMENT: `replica` is not in 0 .. options().replicas - 1. FAILED_PRECONDITION: it has
  // another handler.
  absl::Status Attach(int replica, const std::shared_ptr<RankHandler>& handler);
  void Detach(RankHandler* handler);
  // Null: nobody waits for ranks of that replica.
  std::shared_ptr<RankHandler> handler(int replica);

 private:
  const ControlServerOptions options_;
  int port_ = 0;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::map<int, std::shared_ptr<RankHandler>> handlers_;  // by replica
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_RANK_STREAM_H_
