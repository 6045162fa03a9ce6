#include "runtime/worker/agreement.h"

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace phalanx::worker {

absl::Status CheckAgreement(const std::vector<coordinator::RankInfo>& ranks) {
  using Field = std::string coordinator::RankInfo::*;
  const std::tuple<const char*, Field, const char*> fields[] = {
      {"op digest", &coordinator::RankInfo::op_digest,
       "their kernels give different bits; run the same binary on machines of one kind"},
      {"checkpoint digest", &coordinator::RankInfo::checkpoint_digest,
       "their model directories differ; give every host the same files"},
  };
  for (size_t i = 1; i < ranks.size(); ++i) {
    for (const auto& [name, field, advice] : fields) {
      if (ranks[i].*field == ranks[0].*field) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "rank ", ranks[0].rank, " (", ranks[0].host, ", ", ranks[0].device, ") has ", name, " ",
          ranks[0].*field, ", but rank ", ranks[i].rank, " (", ranks[i].host, ", ", ranks[i].device,
          ") has ", ranks[i].*field, ": ", advice));
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx::worker
