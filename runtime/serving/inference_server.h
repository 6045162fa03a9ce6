// The public gRPC service (proto/phalanx/v1/inference.proto), grpc.health.v1 and reflection on one
// port.
#ifndef PHALANX_RUNTIME_SERVING_INFERENCE_SERVER_H_
#define PHALANX_RUNTIME_SERVING_INFERENCE_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/remote_worker_group.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/serving/model_info.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::serving {

struct InferenceServerOptions {
  std::string listen = "127.0.0.1:50051";  // "HOST:PORT"; port 0: any free one
  std::string version;                     // of this program, for GetStatus
  // For GetStatus until Serve(): what is being loaded, and how far that has got ("1.2 GiB of 2.5
  // GiB loaded"; null: nothing is said). Called from any thread, until Shutdown().
  std::string model;
  std::string layout;
  std::function<std::string()> loading_message;
  int64_t max_request_bytes = int64_t{128} << 20;  // larger ones: RESOURCE_EXHAUSTED
  // Answers that a client leaves unread; beyond that its request ends, RESOURCE_EXHAUSTED. A client
  // that never reads again keeps its call, and one message of memory, until its connection ends.
  int64_t max_unread_bytes = int64_t{64} << 20;
  // A line for the log; may be null. From any thread, also when the server is gone.
  std::function<void(const std::string& line)> log;
  // Requests above this size are parsed and tokenized by threads of their own, so that they hold
  // up nobody else.
  int64_t inline_request_bytes = 32 << 10;
};

// What is served; all of it outlives Shutdown().
struct ServedModel {
  coordinator::Coordinator* coordinator = nullptr;  // started
  const tokenizer::Tokenizer* tokenizer = nullptr;
  ModelInfo info;
  // Last heartbeats for GetStatus; null: none are shown.
  std::function<std::vector<control::RankHealth>()> rank_health;
};

// Thread-safe. Listens from Listen() on: until Serve() every call but GetStatus is answered
// UNAVAILABLE and health is NOT_SERVING.
class InferenceServer {
 public:
  // INVALID_ARGUMENT: not an address. FAILED_PRECONDITION: it is in use or not this machine's.
  static absl::StatusOr<std::unique_ptr<InferenceServer>> Listen(InferenceServerOptions options);
  ~InferenceServer();  // Shutdown(zero)
  InferenceServer(const InferenceServer&) = delete;
  InferenceServer& operator=(const InferenceServer&) = delete;

  int port() const;
  // "HOST:PORT" as bound, the port resolved.
  std::string address() const;

  // The model is loaded: from now on everything is served, until the coordinator leaves its serving
  // state (health follows within half a second).
  void Serve(ServedModel model);
  // New requests are answered UNAVAILABLE and health is NOT_SERVING; running ones go on. For a
  // graceful stop: BeginDrain, Coordinator::Drain, Shutdown.
  void BeginDrain();
  // Stops listening, gives running calls up to `grace`, cancels what is left. Idempotent.
  void Shutdown(absl::Duration grace);

  class Impl;  // private to runtime/serving

 private:
  explicit InferenceServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_INFERENCE_SERVER_H_
