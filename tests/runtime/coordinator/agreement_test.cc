#include "runtime/coordinator/agreement.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

RankInfo Rank(int rank, const std::string& ops, const std::string& files) {
  RankInfo info;
  info.rank = rank;
  info.host = absl::StrCat("host", rank);
  info.pid = 100 + rank;
  info.device = "cpu avx2";
  info.op_digest = ops;
  info.checkpoint_digest = files;
  return info;
}

TEST(CheckAgreement, NamesBothRanksAndDigests) {
  EXPECT_TRUE(CheckAgreement(std::vector<RankInfo>{}).ok());
  EXPECT_TRUE(CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb")}).ok());
  const absl::Status ops =
      CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "bb"), Rank(2, "cc", "bb")});
  EXPECT_EQ(ops.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ops.message()),
              AllOf(HasSubstr("rank 0 (host host0, pid 100, cpu avx2) has op digest aa"),
                    HasSubstr("rank 2 (host host2, pid 102, cpu avx2) has cc"),
                    HasSubstr("run the same binary")));
  std::vector<RankInfo> loaded = {Rank(0, "aa", "bb"), Rank(1, "aa", "bb")};
  loaded[0].content_digest = "ee";
  loaded[1].content_digest = "ff";
  EXPECT_THAT(std::string(CheckAgreement(loaded).message()),
              AllOf(HasSubstr("content digest ee"), HasSubstr("has ff")));
  const absl::Status files = CheckAgreement({Rank(0, "aa", "bb"), Rank(1, "aa", "dd")});
  EXPECT_THAT(
      std::string(files.message()),
      AllOf(HasSubstr("checkpoint digest bb"), HasSubstr("has dd"), HasSubstr("the same files")));
}

}  // namespace
}  // namespace phalanx::coordinator
