#include "launcher/status_table.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "launcher/machine.h"

namespace phalanx::launcher {

std::string RankTable(const v1::GetStatusResponse& status) {
  if (status.ranks_size() == 0) return "";
  const bool replicas = status.replicas_size() > 1;
  int host = 4;
  int device = 6;
  for (const v1::RankStatus& rank : status.ranks()) {
    host = std::max(host, static_cast<int>(rank.host().size()));
    device = std::max(device, static_cast<int>(rank.device().size()));
  }
  std::string out = replicas ? "replica " : "";
  absl::StrAppendFormat(&out, "%-5s %-*s %9s  %-*s %10s %10s %9s\n", "rank", host, "host", "pid",
                        device, "device", "weights", "KV", "step");
  for (const v1::RankStatus& rank : status.ranks()) {
    if (replicas) absl::StrAppendFormat(&out, "%-8d", rank.replica());
    absl::StrAppendFormat(&out, "%-5d %-*s %9d  %-*s %10s %10s %9d\n", rank.rank(), host,
                          rank.host(), rank.pid(), device, rank.device(),
                          FormatBytes(rank.weight_bytes()), FormatBytes(rank.kv_bytes()),
                          rank.last_step());
  }
  return out;
}

}  // namespace phalanx::launcher
