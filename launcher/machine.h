// What this machine has: what defaults are made from.
#ifndef PHALANX_LAUNCHER_MACHINE_H_
#define PHALANX_LAUNCHER_MACHINE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace phalanx::launcher {

// Processors that this process may run on, at least 1: those of its affinity, or its control
// groups' quota, rounded up.
int AvailableCores();
// Bytes: MemAvailable of /proc/meminfo, or what the cgroups leave where that is less; 0 where it
// can't be read.
int64_t AvailableMemoryBytes();
std::string HostName();
// The path of the running binary; where that has been removed or replaced, one by which it can
// still be started on this machine while this process lives.
std::string OwnPath();
// The path of the running binary, or of what has replaced it there: for other hosts, which have
// their own copies. Ranks of another build are refused.
std::string InstalledPath();
// "0.1.0 (build 63c718c4e2a6d3ee)": tells this binary from every other one, on whatever host, by
// the identifier of its contents that the linker has put into it (ELF note NT_GNU_BUILD_ID).
std::string BuildIdentity();
// Parses "512MiB", "2GiB", "1.5G", "4096": bytes; K, M, G, T and Ki, Mi, Gi, Ti with or without B,
// all of them powers of 1024 but "KB", "MB", "GB", "TB". INVALID_ARGUMENT names the text.
absl::StatusOr<int64_t> ParseBytes(const std::string& text);
// "1.5 GiB", for people.
std::string FormatBytes(int64_t bytes);
// 256 random bits in hexadecimal.
std::string RandomToken();

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_MACHINE_H_
