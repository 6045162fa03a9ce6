#include "launcher/cgroups.h"

#include <algorithm>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace phalanx::launcher {
namespace {

// A group's directory in one hierarchy, and those above it to the mount's own.
std::vector<std::string> WithAncestors(const std::string& mount, std::string path) {
  std::vector<std::string> out;
  while (!path.empty() && path != "/") {
    out.push_back(mount + path);
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
  out.push_back(mount);
  return out;
}

// Where the groups of `controller` are; a container may see the path of a group that it has not
// mounted, and then its own is the mount's.
struct Groups {
  std::vector<std::string> v1;
  std::vector<std::string> v2;
};
Groups GroupsOf(const CgroupPaths& paths, absl::string_view controller) {
  Groups out;
  std::ifstream in(paths.own);
  for (std::string line; std::getline(in, line);) {
    // "4:cpu,cpuacct:/job/7"; v2: "0::/job/7".
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (parts[1].empty()) {
      // Beside v1's it is mounted in a folder of its own.
      for (const char* mount : {"", "/unified"}) {
        for (std::string& path : WithAncestors(paths.mounts + mount, parts[2])) {
          out.v2.push_back(std::move(path));
        }
      }
      continue;
    }
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) {
      continue;
    }
    for (const std::string& mount : {parts[1], std::string(controller)}) {
      for (std::string& path : WithAncestors(absl::StrCat(paths.mounts, "/", mount), parts[2])) {
        out.v1.push_back(std::move(path));
      }
    }
  }
  return out;
}

// The file's first number; nothing where there is none ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  int64_t value = 0;
  std::ifstream in(path);
  if (in >> value) return value;
  return std::nullopt;
}

// The value of a line "key 123".
int64_t ReadStatistic(const std::string& path, absl::string_view wanted) {
  std::ifstream in(path);
  std::string key;
  int64_t value = 0;
  while (in >> key >> value) {
    if (key == wanted) return value;
  }
  return 0;
}

template <typename T>
void TakeLess(std::optional<T>& least, T value) {
  least = std::min(least.value_or(value), value);
}

}  // namespace

std::optional<int64_t> CgroupMemoryLeft(const CgroupPaths& paths) {
  std::optional<int64_t> least;
  const auto look = [&](const std::vector<std::string>& groups, const char* limit_file,
                        const char* usage_file, const char* droppable) {
    for (const std::string& group : groups) {
      const auto limit = ReadNumber(absl::StrCat(group, "/", limit_file));
      const auto usage = ReadNumber(absl::StrCat(group, "/", usage_file));
      // v1 writes "no limit" as a number near 2^63.
      if (!limit.has_value() || !usage.has_value() || *limit >= int64_t{1} << 60) continue;
      const int64_t files = ReadStatistic(absl::StrCat(group, "/memory.stat"), droppable);
      const int64_t used = std::max<int64_t>(0, *usage - files);
      TakeLess(least, std::max<int64_t>(0, *limit - used));
    }
  };
  const Groups groups = GroupsOf(paths, "memory");
  look(groups.v2, "memory.max", "memory.current", "inactive_file");
  look(groups.v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
  return least;
}

std::optional<double> CgroupCpuQuota(const CgroupPaths& paths) {
  std::optional<double> least;
  const auto take = [&least](std::optional<int64_t> quota, std::optional<int64_t> period) {
    if (quota.value_or(0) <= 0 || period.value_or(0) <= 0) return;
    TakeLess(least, static_cast<double>(*quota) / static_cast<double>(*period));
  };
  const Groups groups = GroupsOf(paths, "cpu");
  for (const std::string& group : groups.v2) {
    std::ifstream in(group + "/cpu.max");  // "150000 100000", "max 100000"
    int64_t quota = 0;
    int64_t period = 0;
    if (in >> quota >> period) take(quota, period);
  }
  for (const std::string& group : groups.v1) {
    take(ReadNumber(group + "/cpu.cfs_quota_us"), ReadNumber(group + "/cpu.cfs_period_us"));
  }
  return least;
}

}  // namespace phalanx::launcher
