// Addresses to listen on, checked before gRPC sees them: gRPC's own failure says neither what was
// wrong nor on which address.
#ifndef PHALANX_RUNTIME_CONTROL_LISTEN_ADDRESS_H_
#define PHALANX_RUNTIME_CONTROL_LISTEN_ADDRESS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace phalanx::control {

struct HostPort {
  std::string host;  // without brackets
  int port = 0;
};

// "127.0.0.1:50051", "[::1]:0", "node7:9000". INVALID_ARGUMENT names the text and what is wrong.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// "HOST:PORT", an IPv6 host in brackets.
std::string JoinHostPort(absl::string_view host, int port);

// Whether a socket can be bound to `text` now. INVALID_ARGUMENT: not an address, or a name that
// does not resolve. FAILED_PRECONDITION: in use, or not an address of this machine.
absl::Status CheckListenAddress(absl::string_view text);

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_LISTEN_ADDRESS_H_
