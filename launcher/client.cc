#include "launcher/client.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace phalanx::launcher {

Client Connect(const std::string& endpoint) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A cluster's nodes are reached directly, whatever http_proxy says.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A server whose host disappears is noticed while an answer is awaited.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  Client client;
  client.channel =
      grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
  client.stub = v1::Inference::NewStub(client.channel);
  return client;
}

absl::Status ToAbslStatus(const grpc::Status& status, const std::string& endpoint) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      (absl::StrContains(message, "failed to connect") ||
       absl::StrContains(message, "resolution") || absl::StrContains(message, "subchannel"))) {
    return absl::UnavailableError(
        absl::StrCat("no server answers at ", endpoint, " (", message,
                     "); start one with phalanx serve or correct --endpoint"));
  }
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED &&
      message == "Deadline Exceeded") {
    return absl::DeadlineExceededError(absl::StrCat(
        "no complete answer from ", endpoint,
        " in time (generate: --timeout, status: 10 s); is a server there, and does it go on?"));
  }
  return absl::Status(code, absl::StrCat(absl::StatusCodeToString(code), ": ", message));
}

}  // namespace phalanx::launcher
