// One watcher's stream, as the coordinator holds it. Private to runtime/control.
#ifndef PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_
#define PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "proto/phalanx/v1/control.grpc.pb.h"

namespace phalanx::control {

// Stays open until either end goes. Deletes itself when gRPC is done with it.
grpc::ServerWriteReactor<v1::WatchEvent>* OpenWatch(const std::string& token,
                                                    const v1::WatchRequest& request);

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_
