#include "runtime/serving/generate_stream.h"

#include <chrono>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/serving/parse.h"
#include "runtime/serving/request.h"

namespace phalanx::serving {
namespace {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  // gRPC's "none" is the end of its clock.
  if (deadline > std::chrono::system_clock::now() + std::chrono::hours(24 * 365 * 10)) {
    return absl::InfiniteFuture();
  }
  return absl::FromChrono(deadline);
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

std::shared_ptr<GenerateStream> GenerateStream::Open(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer& request,
                                                     int64_t max_unread_bytes, Log log) {
  std::shared_ptr<GenerateStream> stream(
      new GenerateStream(context, request, max_unread_bytes, std::move(log)));
  stream->self_ = stream;
  return stream;
}

void GenerateStream::Run(const std::shared_ptr<const ServedModel>& model) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (cancelled_) return;  // while it waited for its turn
    model_ = model;
  }
  const absl::Status status = Submit();
  if (!status.ok()) End(status);
}

absl::Status GenerateStream::Submit() {
  v1::GenerateRequest request;
  absl::Status status = ParseRequest(request_bytes_, &request);
  request_bytes_.Clear();
  if (!status.ok()) return status;
  const ModelInfo& info = model_->info;
  absl::StatusOr<coordinator::GenerateRequest> converted =
      ToCoordinatorRequest(request, info, *model_->tokenizer);
  if (!converted.ok()) return converted.status();
  const std::string layout = model_->coordinator->layout();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (cancelled_) return absl::OkStatus();
    converted->deadline = DeadlineOf(*context_);
    v1::Started* started = started_.mutable_started();
    started->set_model(info.name);
    started->mutable_prompt_token_ids()->Add(converted->prompt_token_ids.begin(),
                                             converted->prompt_token_ids.end());
    started->set_layout(layout);
    *started->mutable_profile() = ToProto(info);
    writer_.emplace(converted->sampling.logprobs >= 0);
  }
  // Not under the mutex: events may come before Submit returns.
  absl::StatusOr<coordinator::RequestHandle> handle = model_->coordinator->Submit(
      *std::move(converted),
      [stream = shared_from_this()](const coordinator::Event& event) { stream->OnEvent(event); });
  if (!handle.ok()) {
    return WithPublicFieldName(handle.status(),
                               request.prompt_case() == v1::GenerateRequest::kText);
  }
  bool cancelled = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    PushStarted(handle->id, handle->seed);
    cancelled = cancelled_;
  }
  if (cancelled) Cancel();
  return absl::OkStatus();
}

void GenerateStream::PushStarted(const std::string& id, uint64_t seed) {
  if (started_sent_) return;
  started_sent_ = true;
  request_id_ = id;
  started_.mutable_started()->set_request_id(id);
  started_.mutable_started()->set_seed(seed);
  Push(started_);
  started_.Clear();
}

void GenerateStream::OnEvent(const coordinator::Event& event) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = ended_ || event.done;
    if (cancelled_) return;
    PushStarted(event.request_id, event.seed);
    for (const v1::GenerateResponse& response : writer_->Write(event)) Push(response);
    if (event.done) EndLocked(ToGrpc(event.status));
    if (!cancelled_) return;
  }
  Cancel();
}

void GenerateStream::Push(const v1::GenerateResponse& response) {
  if (end_.has_value() || cancelled_) return;
  outgoing_.push_back(Serialize(response));
  outgoing_bytes_ += static_cast<int64_t>(outgoing_.back().Length());
  if (outgoing_bytes_ > max_unread_bytes_ && outgoing_.size() > 1) {
    const std::string why = absl::StrCat(
        "the client has left more than ", max_unread_bytes_,
        " bytes of this answer unread; what it has not been sent is lost: read as fast as tokens "
        "come, or ask for fewer samples or logprobs");
    if (log_) log_(absl::StrCat("request ", absl::Utf8SafeCEscape(request_id_), ": ", why));
    cancelled_ = true;
    DropUnread();
    EndLocked(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, why));
    return;
  }
  Advance();
}

void GenerateStream::DropUnread() {
  while (outgoing_.size() > (writing_ ? 1u : 0u)) {
    outgoing_bytes_ -= static_cast<int64_t>(outgoing_.back().Length());
    outgoing_.pop_back();
  }
}

void GenerateStream::End(const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  EndLocked(ToGrpc(status));
}

void GenerateStream::EndLocked(const grpc::Status& status) {
  if (!end_.has_value()) end_ = status;
  Advance();
}

void GenerateStream::Advance() {
  if (writing_ || finished_) return;
  if (!outgoing_.empty()) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  } else if (end_.has_value()) {
    finished_ = true;
    Finish(*end_);
  }
}

void GenerateStream::OnWriteDone(bool ok) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    outgoing_bytes_ -= static_cast<int64_t>(outgoing_.front().Length());
    outgoing_.pop_front();
    if (ok) {
      Advance();
      return;
    }
  }
  OnCancel();  // nobody reads any more
}

void GenerateStream::OnCancel() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    DropUnread();
    EndLocked(grpc::Status::CANCELLED);
  }
  Cancel();
}

void GenerateStream::Cancel() {
  std::string id;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ended_ || request_id_.empty()) return;
    id = request_id_;
  }
  model_->coordinator->Cancel(id);
}

void GenerateStream::OnDone() {
  std::shared_ptr<GenerateStream> self;
  std::lock_guard<std::mutex> lock(mutex_);
  context_ = nullptr;
  self = std::move(self_);
}

}  // namespace phalanx::serving
