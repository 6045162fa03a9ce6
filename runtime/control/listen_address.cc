#include "runtime/control/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace phalanx::control {

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", text, "\": ", why,
                                                   "; expected HOST:PORT, e.g. 127.0.0.1:50051"));
  };
  if (text.empty()) return bad("is empty");
  if (text.find('/') != absl::string_view::npos) return bad("is a URL or a path");
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return bad("has no port");
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port_text = text.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != absl::string_view::npos) {
    return bad("an IPv6 host needs brackets");
  }
  if (host.empty()) return bad("has no host");
  int port = 0;
  if (!absl::SimpleAtoi(port_text, &port) || port < 0 || port > 65535) {
    return bad(absl::StrCat("port \"", port_text, "\" is not a number from 0 to 65535"));
  }
  return HostPort{std::string(host), port};
}

std::string JoinHostPort(absl::string_view host, int port) {
  if (host.find(':') != absl::string_view::npos) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::Status CheckListenAddress(absl::string_view text) {
  absl::StatusOr<HostPort> parsed = ParseHostPort(text);
  if (!parsed.ok()) return parsed.status();
  // The C library takes it for any address, and others take it for a name.
  if (parsed->host == "*") {
    return absl::InvalidArgumentError(absl::StrCat("address \"", text,
                                                   "\": write 0.0.0.0 or [::] for all of this "
                                                   "machine's addresses"));
  }

  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(parsed->host.c_str(), absl::StrCat(parsed->port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", text, "\": host \"", parsed->host,
                                                   "\" does not resolve: ", gai_strerror(error)));
  }
  int bind_error = 0;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;  // a family that this machine lacks
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    bind_error = 0;
    // listen, too: two sockets that share an address by SO_REUSEADDR part ways only there.
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, 1) != 0) bind_error = errno;
    close(fd);
    if (bind_error != 0) break;
  }
  freeaddrinfo(found);
  if (bind_error == 0) return absl::OkStatus();
  if (bind_error == EADDRINUSE) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot listen on ", text, ": the port is in use; choose another one, or 0 for any"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on ", text, ": ", strerror(bind_error)));
}

}  // namespace phalanx::control
