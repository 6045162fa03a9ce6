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
#include <optional>
#include <random>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "launcher/cgroups.h"
#include "launcher/version.h"

namespace phalanx::launcher {

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
  std::string installed = InstalledPath();
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
