// What the client commands share.
#ifndef PHALANX_LAUNCHER_CLIENT_H_
#define PHALANX_LAUNCHER_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "proto/phalanx/v1/inference.grpc.pb.h"

namespace phalanx::launcher {

struct Client {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;
};
// Doesn't connect yet. `endpoint`: HOST:PORT.
Client Connect(const std::string& endpoint);
// "INVALID_ARGUMENT: sampling.top_p: ..."; what can't be reached names the endpoint.
absl::Status ToAbslStatus(const grpc::Status& status, const std::string& endpoint);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_CLIENT_H_
