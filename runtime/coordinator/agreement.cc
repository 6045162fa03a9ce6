#include "runtime/coordinator/agreement.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx::coordinator {
namespace {

std::string Describe(const RankInfo& rank) {
  return absl::StrCat("rank ", rank.rank, " (host ", rank.host, ", pid ", rank.pid, ", ",
                      rank.device, ")");
}

}  // namespace

absl::Status CheckAgreement(const RankInfo& first, const RankInfo& other) {
  struct Field {
    const char* name;
    std::string RankInfo::*value;
    const char* advice;
  };
  constexpr Field kFields[] = {
      {"op digest", &RankInfo::op_digest,
       "their kernels would not give the same bits (R6); run the same binary on machines of one "
       "kind"},
      {"checkpoint digest", &RankInfo::checkpoint_digest,
       "their model directories differ; give every host the same files"},
      // Empty until both have loaded.
      {"content digest", &RankInfo::content_digest,
       "the weights that they have read differ; give every host the same files"},
  };
  for (const Field& field : kFields) {
    if (first.*field.value == other.*field.value) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(Describe(first), " has ", field.name, " ", first.*field.value, ", but ",
                     Describe(other), " has ", other.*field.value, ": ", field.advice));
  }
  return absl::OkStatus();
}

absl::Status CheckAgreement(const std::vector<RankInfo>& ranks) {
  for (const RankInfo& rank : ranks) {
    if (absl::Status status = CheckAgreement(ranks.front(), rank); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace phalanx::coordinator
