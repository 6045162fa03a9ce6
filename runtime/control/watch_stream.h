// One watcher's stream, as the coordinator holds it. Private to runtime/control.
#ifndef PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_
#define PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_

#include <grpcpp/grpcpp.h>

#include "proto/phalanx/v1/control.grpc.pb.h"

namespace phalanx::control {

// Stays open until either end goes, or, where the watcher is not admitted, ends at once. Deletes
// itself when gRPC is done with it.
grpc::ServerWriteReactor<v1::WatchEvent>* OpenWatch(bool admitted);

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_WATCH_STREAM_H_
