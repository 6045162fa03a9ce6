#include "runtime/control/listen_address.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace phalanx::control {
namespace {

using ::testing::HasSubstr;

TEST(ListenAddressTest, SplitsHostAndPort) {
  const auto v4 = ParseHostPort("127.0.0.1:50051");
  ASSERT_TRUE(v4.ok()) << v4.status();
  EXPECT_EQ(v4->host, "127.0.0.1");
  EXPECT_EQ(v4->port, 50051);
  const auto v6 = ParseHostPort("[::1]:0");
  ASSERT_TRUE(v6.ok()) << v6.status();
  EXPECT_EQ(v6->host, "::1");
  EXPECT_EQ(v6->port, 0);
  EXPECT_EQ(JoinHostPort(v6->host, 7), "[::1]:7");
}

TEST(ListenAddressTest, BadTextIsNamed) {
  for (const char* text : {"", "localhost", "localhost:", "localhost:x", "localhost:65536",
                           "localhost:-1", ":80", "::1:80", "http://localhost:80"}) {
    const auto parsed = ParseHostPort(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(absl::StrCat("\"", text, "\"")));
  }
}

TEST(ListenAddressTest, PortInUseIsNamed) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_GE(fd, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  socklen_t length = sizeof(address);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const std::string text = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));

  const absl::Status taken = CheckListenAddress(text);
  EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(taken.message()), HasSubstr(text));
  EXPECT_THAT(std::string(taken.message()), HasSubstr("in use"));

  close(fd);
  EXPECT_TRUE(CheckListenAddress(text).ok());
}

TEST(ListenAddressTest, AddressOfAnotherMachineIsRefused) {
  // 192.0.2.0/24 is reserved for documentation (RFC 5737).
  EXPECT_EQ(CheckListenAddress("192.0.2.1:0").code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace phalanx::control
