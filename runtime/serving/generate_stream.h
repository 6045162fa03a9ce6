// One Generate call. Private to runtime/serving.
#ifndef PHALANX_RUNTIME_SERVING_GENERATE_STREAM_H_
#define PHALANX_RUNTIME_SERVING_GENERATE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "proto/phalanx/v1/inference.pb.h"
#include "runtime/serving/inference_server.h"
#include "runtime/serving/response.h"

namespace phalanx::serving {

grpc::Status ToGrpc(const absl::Status& status);

// Lives until gRPC is done with the call and the coordinator with the request. Callbacks of both
// only queue and never block.
class GenerateStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  using Log = std::function<void(const std::string& line)>;
  static std::shared_ptr<GenerateStream> Open(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer& request,
                                              int64_t max_unread_bytes, Log log);

  // Parses, tokenizes and submits; ends the call where that fails. Once.
  void Run(const std::shared_ptr<const ServedModel>& model);
  // Ends the call when what is queued has been written.
  void End(const absl::Status& status);

 private:
  GenerateStream(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                 int64_t max_unread_bytes, Log log)
      : context_(context),
        request_bytes_(request),
        max_unread_bytes_(max_unread_bytes),
        log_(std::move(log)) {}

  absl::Status Submit();
  void OnEvent(const coordinator::Event& event);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void Cancel();

  // Require mutex_.
  void PushStarted(const std::string& id, uint64_t seed);
  void Push(const v1::GenerateResponse& response);
  void DropUnread();
  void EndLocked(const grpc::Status& status);
  void Advance();

  std::shared_ptr<GenerateStream> self_;  // until OnDone
  grpc::CallbackServerContext* context_;  // null after OnDone
  grpc::ByteBuffer request_bytes_;
  const int64_t max_unread_bytes_;
  const Log log_;
  // Null until Run. Used by Run, by gRPC's callbacks, and by an event of its coordinator, which is
  // there then, though the server may be gone.
  std::shared_ptr<const ServedModel> model_;

  std::mutex mutex_;
  v1::GenerateResponse started_;  // all but id and seed; sent first
  bool started_sent_ = false;
  std::optional<ResponseWriter> writer_;
  std::string request_id_;                 // empty until started_sent_
  bool ended_ = false;                     // the coordinator has said its last
  bool cancelled_ = false;                 // or given up: nothing more is queued
  std::deque<grpc::ByteBuffer> outgoing_;  // front: being written while writing_
  int64_t outgoing_bytes_ = 0;
  bool writing_ = false;
  std::optional<grpc::Status> end_;  // sent when outgoing_ is empty
  bool finished_ = false;
};

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_GENERATE_STREAM_H_
