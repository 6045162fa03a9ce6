#include "launcher/machine.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;

TEST(ParseBytes, KnowsBinaryAndDecimalUnits) {
  const std::pair<const char*, int64_t> cases[] = {
      {"4096", 4096},         {"4096B", 4096},
      {"1K", 1024},           {"1KiB", 1024},
      {"1KB", 1000},          {"512MiB", 1 << 29},
      {"2GiB", 1LL << 31},    {"1.5G", 3LL << 29},
      {"2tb", 2000000000000}, {"0", 0},
      {"0.5Ki", 512},
  };
  for (const auto& [text, bytes] : cases) {
    const auto parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBytes, NamesTheTextThatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "1X", "1GiBs", "1 GiB", "1..5G", "9999999T", "nan"}) {
    const auto parsed = ParseBytes(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("\"" + std::string(text) + "\""));
  }
}

TEST(FormatBytes, PicksTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 bytes");
  EXPECT_EQ(FormatBytes(1023), "1023 bytes");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(3LL << 29), "1.5 GiB");
}

TEST(RandomToken, IsHexadecimalAndNeverTheSame) {
  std::set<std::string> tokens;
  for (int i = 0; i < 100; ++i) {
    const std::string token = RandomToken();
    EXPECT_EQ(token.size(), 64u);
    EXPECT_EQ(token.find_first_not_of("0123456789abcdef"), std::string::npos);
    EXPECT_TRUE(tokens.insert(token).second);
  }
}

TEST(Machine, HasCoresMemoryAndAName) {
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_GT(AvailableMemoryBytes(), 0);
  EXPECT_FALSE(HostName().empty());
  EXPECT_THAT(OwnPath(), HasSubstr("launcher_test"));
}

}  // namespace
}  // namespace phalanx::launcher
