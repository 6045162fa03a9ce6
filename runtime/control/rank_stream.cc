#include "runtime/control/rank_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::control {
bool EqualSecrets(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  }
  return difference == 0;
}

namespace {

// Why the server itself refuses a rank, before any group is asked; empty: it does not.
std::string ReasonToRefuse(const v1::Register& rank, const ControlServerOptions& options) {
  if (!EqualSecrets(rank.token(), options.token)) {
    return "the token is not this coordinator's; start the worker with the token that the "
           "coordinator was started with";
  }
  if (rank.protocol_version() != kProtocolVersion) {
    return absl::StrCat("it speaks control protocol ", rank.protocol_version(),
                        ", the coordinator speaks ", kProtocolVersion,
                        "; run the same phalanx binary everywhere");
  }
  if (rank.build_version() != options.build_version) {
    return absl::StrCat("it is build \"", rank.build_version(), "\", the coordinator is build \"",
                        options.build_version, "\"; run the same phalanx binary everywhere");
  }
  if (rank.replica() < 0 || rank.replica() >= options.replicas) {
    return absl::StrCat("it is of replica ", rank.replica(),
                        ", this coordinator has replicas 0 to ", options.replicas - 1,
                        "; start the workers with the commands that serve prints");
  }
  return "";
}

v1::CoordinatorMessage RefusedMessage(std::string reason, bool retry) {
  v1::CoordinatorMessage message;
  message.mutable_refused()->set_reason(std::move(reason));
  message.mutable_refused()->set_retry(retry);
  return message;
}

}  // namespace

std::shared_ptr<RankStream> RankStream::Open(ControlServer::Impl* server,
                                             grpc::CallbackServerContext* context) {
  std::shared_ptr<RankStream> stream(new RankStream(server, context));
  stream->self_ = stream;
  stream->StartRead(&stream->incoming_);
  return stream;
}

void RankStream::Send(v1::CoordinatorMessage message) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (finished_ || finish_when_drained_) return;
  outgoing_.push_back(std::move(message));
  if (!writing_) WriteNext();
}

void RankStream::FinishAfterWrites() {
  std::lock_guard<std::mutex> lock(mutex_);
  finish_when_drained_ = true;
  if (!writing_) FinishOnce();
}

void RankStream::Break() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

void RankStream::WriteNext() {
  writing_ = true;
  StartWrite(&outgoing_.front());
}

void RankStream::FinishOnce() {
  if (finished_) return;
  finished_ = true;
  Finish(grpc::Status::OK);
}

void RankStream::OnWriteDone(bool ok) {
  std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
  outgoing_.pop_front();
  if (!ok) outgoing_.clear();  // broken: the read side will notice
  if (finished_) return;
  if (!outgoing_.empty()) {
    WriteNext();
  } else if (finish_when_drained_) {
    FinishOnce();
  }
}

void RankStream::OnReadDone(bool ok) {
  if (!ok) {
    if (handler_ != nullptr) handler_->OnLost(this);
    FinishAfterWrites();
    return;
  }
  HandleMessage();
  std::lock_guard<std::mutex> lock(mutex_);
  if (!finished_) StartRead(&incoming_);
}

void RankStream::HandleMessage() {
  if (handler_ != nullptr) {
    handler_->OnMessage(this, incoming_);
    return;
  }
  if (registered_seen_) return;  // refused: whatever it still says
  registered_seen_ = true;
  if (!incoming_.has_register_()) {
    Send(RefusedMessage("the first message of a control stream must be Register", false));
    FinishAfterWrites();
    return;
  }
  const v1::Register& rank = incoming_.register_();
  const std::shared_ptr<RankHandler> handler = server_->handler(rank.replica());
  const std::string reason = ReasonToRefuse(rank, server_->options());
  if (!reason.empty()) {
    if (handler != nullptr) {
      handler->OnRefused(absl::StrCat("refused rank ", rank.rank(), " (host ", rank.host(),
                                      ", pid ", rank.pid(), "): ", reason));
    }
    Send(RefusedMessage(reason, false));
    FinishAfterWrites();
    return;
  }
  if (handler == nullptr) {
    Send(RefusedMessage("the coordinator is not waiting for workers yet", true));
    FinishAfterWrites();
    return;
  }
  v1::CoordinatorMessage answer = handler->OnRegister(self_, rank);
  const bool accepted = answer.has_accepted();
  Send(std::move(answer));
  if (accepted) {
    handler_ = handler;
  } else {
    FinishAfterWrites();
  }
}

void RankStream::OnDone() {
  std::shared_ptr<RankStream> self;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
    context_ = nullptr;
    self = std::move(self_);
  }
}

}  // namespace phalanx::control
