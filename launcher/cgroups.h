// Limits of Linux control groups, cgroup-v1 and cgroup-v2: containers and batch systems set them.
#ifndef PHALANX_LAUNCHER_CGROUPS_H_
#define PHALANX_LAUNCHER_CGROUPS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace phalanx::launcher {

// Where the kernel shows this process's groups; all above them count, too.
struct CgroupPaths {
  std::string own = "/proc/self/cgroup";
  std::string mounts = "/sys/fs/cgroup";
};
// Bytes that may still be taken before somebody is killed for it: the least, over the groups, of
// limit - (usage - file pages that can be dropped). Nothing where there is no limit.
std::optional<int64_t> CgroupMemoryLeft(const CgroupPaths& paths);
// Processors' worth of time: the least of quota / period. Nothing where there is no quota.
std::optional<double> CgroupCpuQuota(const CgroupPaths& paths);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_CGROUPS_H_
