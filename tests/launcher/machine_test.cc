#include "launcher/machine.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/checkpoint/test_files.h"

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

// Files as the kernel shows them.
class Cgroups : public testing::Test {
 protected:
  void Write(const std::string& file, const std::string& text) {
    const std::filesystem::path path = dir_.file(file);
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  CgroupPaths Paths() const { return {dir_.file("own"), dir_.file("fs")}; }

  checkpoint::TempDir dir_;
};

TEST_F(Cgroups, NoneIsNoLimit) {
  EXPECT_EQ(CgroupMemoryLeft(Paths()), std::nullopt);
  EXPECT_EQ(CgroupCpuQuota(Paths()), std::nullopt);
  Write("own", "0::/job/7\n");
  Write("fs/job/memory.max", "max\n");
  Write("fs/job/memory.current", "5000\n");
  Write("fs/job/7/cpu.max", "max 100000\n");
  EXPECT_EQ(CgroupMemoryLeft(Paths()), std::nullopt);
  EXPECT_EQ(CgroupCpuQuota(Paths()), std::nullopt);
}

TEST_F(Cgroups, TheTightestOfTheGroupsAboveCounts) {
  Write("own", "0::/job/7\n");
  Write("fs/memory.max", "100000\n");
  Write("fs/memory.current", "60000\n");
  Write("fs/job/memory.max", "10000\n");
  Write("fs/job/memory.current", "9000\n");
  Write("fs/job/memory.stat", "anon 1000\nactive_file 100\ninactive_file 7000\n");
  Write("fs/job/7/memory.max", "9500\n");
  Write("fs/job/7/memory.current", "400\n");
  EXPECT_EQ(CgroupMemoryLeft(Paths()), 8000);
  Write("fs/job/7/memory.current", "9900\n");  // file pages of others' are not to be counted on
  EXPECT_EQ(CgroupMemoryLeft(Paths()), 0);
  Write("fs/job/cpu.max", "150000 100000\n");
  Write("fs/job/7/cpu.max", "400000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(Paths()), 1.5);
}

TEST_F(Cgroups, VersionOneHasAHierarchyForEachController) {
  Write("own", "5:memory:/slurm/job_3\n4:cpu,cpuacct:/slurm/job_3\n1:name=systemd:/x\n0::/\n");
  Write("fs/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("fs/memory/memory.usage_in_bytes", "70000\n");
  Write("fs/memory/slurm/job_3/memory.limit_in_bytes", "1000\n");
  Write("fs/memory/slurm/job_3/memory.usage_in_bytes", "600\n");
  Write("fs/memory/slurm/job_3/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n");
  Write("fs/cpu,cpuacct/slurm/cpu.cfs_quota_us", "250000\n");
  Write("fs/cpu,cpuacct/slurm/cpu.cfs_period_us", "100000\n");
  Write("fs/cpu,cpuacct/slurm/job_3/cpu.cfs_quota_us", "-1\n");
  Write("fs/cpu,cpuacct/slurm/job_3/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupMemoryLeft(Paths()), 450);
  EXPECT_EQ(CgroupCpuQuota(Paths()), 2.5);
}

// In a container the path is the host's, and what is mounted is the container's own.
TEST_F(Cgroups, APathThatIsNotMountedIsTheMountsOwn) {
  Write("own", "3:memory:/docker/abc\n");
  Write("fs/memory/memory.limit_in_bytes", "1000\n");
  Write("fs/memory/memory.usage_in_bytes", "100\n");
  EXPECT_EQ(CgroupMemoryLeft(Paths()), 900);
}

}  // namespace
}  // namespace phalanx::launcher
