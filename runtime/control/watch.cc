#include "runtime/control/watch.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/phalanx/v1/control.grpc.pb.h"
#include "runtime/control/control_channel.h"
#include "runtime/control/watch_stream.h"

namespace phalanx::control {
namespace {

class WatchStream final : public grpc::ServerWriteReactor<v1::WatchEvent> {
 public:
  explicit WatchStream(bool admitted) {
    if (admitted) {
      StartWrite(&hello_);
    } else {
      End(grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "the token is wrong"));
    }
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) End(grpc::Status::OK);
  }
  // The watcher has gone, or the server is shutting down.
  void OnCancel() override { End(grpc::Status::OK); }
  void OnDone() override { delete this; }
  void End(const grpc::Status& status) {
    if (!ended_.exchange(true)) Finish(status);
  }

  const v1::WatchEvent hello_;
  std::atomic<bool> ended_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::WatchEvent>* OpenWatch(bool admitted) {
  return new WatchStream(admitted);
}

class CoordinatorWatch::Impl {
 public:
  explicit Impl(const WatchOptions& options) : options_(options) {
    // A connection of its own, with keepalive of its own.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = OpenControlChannel(options.coordinator, options.keepalive_time,
                                  options.keepalive_timeout, arguments);
    stub_ = v1::Control::NewStub(channel_);
  }

  ~Impl() {
    closing_ = true;
    context_.TryCancel();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Connect() {
    const auto deadline =
        std::chrono::system_clock::now() + absl::ToChronoMilliseconds(options_.connect_timeout);
    if (!channel_->WaitForConnected(deadline)) {
      return absl::UnavailableError(
          absl::StrCat("nobody answers at the coordinator's address, ", options_.coordinator));
    }
    v1::WatchRequest request;
    request.set_token(options_.token);
    stream_ = stub_->Watch(&context_, request);
    v1::WatchEvent event;
    if (!stream_->Read(&event)) {
      const grpc::Status status = stream_->Finish();
      return absl::Status(
          static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat("the coordinator at ", options_.coordinator, ": ", status.error_message()));
    }
    thread_ = std::thread([this] {
      v1::WatchEvent later;
      while (stream_->Read(&later)) {
      }
      (void)stream_->Finish();
      if (!closing_ && options_.on_gone) options_.on_gone();
    });
    return absl::OkStatus();
  }

 private:
  const WatchOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Control::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WatchEvent>> stream_;
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<CoordinatorWatch>> CoordinatorWatch::Connect(
    const WatchOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  if (absl::Status status = impl->Connect(); !status.ok()) return status;
  return std::unique_ptr<CoordinatorWatch>(new CoordinatorWatch(std::move(impl)));
}

CoordinatorWatch::CoordinatorWatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorWatch::~CoordinatorWatch() = default;

}  // namespace phalanx::control
