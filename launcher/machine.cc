#include "launcher/machine.h"

#include <elf.h>
#include <link.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launcher/version.h"

namespace phalanx::launcher {

namespace {

// A group's directory in one hierarchy, and those above it to the mount's own.
std::vector<std::string> WithAncestors(const std::string& mount, std::string path) {
  std::vector<std::string> out;
  while (!path.empty() && path != "/") {
    out.push_back(mount + path);
    path.resize(path.rfind('/'));
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

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  const int cores = std::max(1, CPU_COUNT(&set));
  const std::optional<double> quota = CgroupCpuQuota({});
  return quota.has_value() && *quota < cores ? static_cast<int>(std::ceil(*quota)) : cores;
}

int64_t AvailableMemoryBytes() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (in >> key >> kib >> unit) {
    if (key != "MemAvailable:") continue;
    return std::min(kib * 1024, CgroupMemoryLeft({}).value_or(kib * 1024));
  }
  return 0;
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string InstalledPath() {
  std::array<char, 4096> path{};
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) return "phalanx";
  // What the kernel says of a file that has been removed or replaced.
  return std::string(absl::StripSuffix(absl::string_view(path.data(), length), " (deleted)"));
}

std::string OwnPath() {
  std::error_code error;
  const std::string installed = InstalledPath();
  if (std::filesystem::equivalent("/proc/self/exe", installed, error)) return installed;
  return absl::StrCat("/proc/", getpid(), "/exe");
}

absl::StatusOr<int64_t> ParseBytes(const std::string& text) {
  size_t digits = 0;
  while (digits < text.size() && (absl::ascii_isdigit(text[digits]) || text[digits] == '.')) {
    ++digits;
  }
  double number = 0;
  std::string unit = absl::AsciiStrToLower(text.substr(digits));
  double scale = 1;
  bool known = absl::SimpleAtod(text.substr(0, digits), &number);
  if (!unit.empty() && unit != "b") {
    const size_t power = std::string("kmgt").find(unit[0]);
    const std::string rest = unit.substr(1);
    known = known && power != std::string::npos &&
            (rest.empty() || rest == "b" || rest == "i" || rest == "ib");
    scale = std::pow(rest == "b" ? 1000.0 : 1024.0, static_cast<double>(power + 1));
  }
  const double bytes = number * scale;
  if (!known || !(bytes >= 0) || bytes > 9e18) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a size; write for example 512MiB, 2GiB or 1000000"));
  }
  return static_cast<int64_t>(bytes);
}

std::string FormatBytes(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " bytes") : absl::StrFormat("%.1f %s", value, units[unit]);
}

std::string BuildIdentity() {
  std::string id;
  // The first object is the binary itself.
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* out) {
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const ElfW(Phdr)& segment = object->dlpi_phdr[i];
          if (segment.p_type != PT_NOTE) continue;
          // NOLINTNEXTLINE(performance-no-int-to-ptr): the loader tells it so
          const char* at = reinterpret_cast<const char*>(object->dlpi_addr + segment.p_vaddr);
          const char* const end = at + segment.p_memsz;
          while (at + sizeof(ElfW(Nhdr)) <= end) {
            const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
            const char* name = at + sizeof(*note);
            const char* descriptor = name + (note->n_namesz + 3) / 4 * 4;
            at = descriptor + (note->n_descsz + 3) / 4 * 4;
            if (note->n_type != NT_GNU_BUILD_ID || note->n_namesz != 4 ||
                std::memcmp(name, "GNU", 4) != 0) {
              continue;
            }
            *static_cast<std::string*>(out) = absl::BytesToHexString(
                absl::string_view(descriptor, std::min<size_t>(note->n_descsz, 8)));
          }
        }
        return 1;
      },
      &id);
  return absl::StrCat(kVersion, " (build ", id.empty() ? "unknown" : id, ")");
}

std::string RandomToken() {
  std::random_device device;
  std::string token;
  for (int i = 0; i < 8; ++i) token += absl::StrFormat("%08x", device());
  return token;
}

}  // namespace phalanx::launcher
