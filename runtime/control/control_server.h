// The coordinator's end of the control plane: one port to which every rank holds one stream.
#ifndef PHALANX_RUNTIME_CONTROL_CONTROL_SERVER_H_
#define PHALANX_RUNTIME_CONTROL_CONTROL_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace phalanx::control {

// Of the messages in proto/phalanx/v1/control.proto: raised with every change of their meaning.
inline constexpr int kProtocolVersion = 3;

struct ControlServerOptions {
  std::string listen = "127.0.0.1:0";  // "HOST:PORT"; port 0: any free one
  std::string token;                   // shared secret; a rank without it is refused. Not empty.
  std::string build_version;           // a rank of another build is refused
  int replicas = 1;                    // a rank of a replica beyond is refused
  // A rank that answers no ping for keepalive_time + keepalive_timeout counts as lost. Generous:
  // ranks may spin on every core, and a dead process is noticed at once by its closed socket.
  absl::Duration keepalive_time = absl::Seconds(10);
  absl::Duration keepalive_timeout = absl::Seconds(20);
};

// Listens from creation to destruction; outlives the worker groups that use it (at most one of each
// replica at a time; a rank that arrives while there is none is told to try again). Thread-safe.
class ControlServer {
 public:
  // FAILED_PRECONDITION names an address that cannot be bound (in use, not of this machine).
  static absl::StatusOr<std::unique_ptr<ControlServer>> Listen(ControlServerOptions options);
  // Breaks every stream.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  int port() const;
  // "HOST:PORT" as bound, the port resolved.
  std::string address() const;

  class Impl;  // private to runtime/control
  Impl& impl() { return *impl_; }

 private:
  explicit ControlServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_CONTROL_SERVER_H_
