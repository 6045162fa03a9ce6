// A channel to the coordinator's control port. Private to runtime/control.
#ifndef PHALANX_RUNTIME_CONTROL_CONTROL_CHANNEL_H_
#define PHALANX_RUNTIME_CONTROL_CONTROL_CHANNEL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/time/time.h"

namespace phalanx::control {

// A coordinator that answers no ping for keepalive_time + keepalive_timeout counts as gone. Opens
// no connection yet. `arguments`: what the caller wants beside.
std::shared_ptr<grpc::Channel> OpenControlChannel(const std::string& coordinator,
                                                  absl::Duration keepalive_time,
                                                  absl::Duration keepalive_timeout,
                                                  grpc::ChannelArguments arguments = {});

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_CONTROL_CHANNEL_H_
