#include "launcher/cgroups.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::launcher {
namespace {

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
