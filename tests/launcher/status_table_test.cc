#include "launcher/status_table.h"

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

void AddRank(v1::GetStatusResponse& status, int number, const std::string& device) {
  v1::RankStatus& rank = *status.add_ranks();
  rank.set_rank(number);
  rank.set_replica(number);
  rank.set_host("n1");
  rank.set_pid(42);
  rank.set_device(device);
  rank.set_weight_bytes(int64_t{3} << 29);
}

TEST(RankTable, NamesEveryRanksDeviceWhole) {
  v1::GetStatusResponse status;
  AddRank(status, 0, "cpu avx2, 4 threads");
  AddRank(status, 1, "cuda 3: NVIDIA H100 80GB HBM3, sm_90, 132 multiprocessors");
  const std::vector<std::string> lines = absl::StrSplit(RankTable(status), '\n');
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_THAT(lines[0], StartsWith("rank  host       pid  device"));
  EXPECT_THAT(lines[1], HasSubstr(" cpu avx2, 4 threads "));
  EXPECT_THAT(lines[2], HasSubstr("  cuda 3: NVIDIA H100 80GB HBM3, sm_90, 132 multiprocessors "
                                  "   1.5 GiB "));
  EXPECT_EQ(lines[0].size(), lines[1].size());
  EXPECT_EQ(lines[0].size(), lines[2].size());
  EXPECT_EQ(lines[3], "");
}

TEST(RankTable, SaysTheReplicaWhereThereAreSeveral) {
  v1::GetStatusResponse status;
  EXPECT_EQ(RankTable(status), "");
  AddRank(status, 0, "cpu avx2, 1 thread");
  EXPECT_THAT(RankTable(status), StartsWith("rank "));
  status.add_replicas();
  status.add_replicas();
  const std::vector<std::string> lines = absl::StrSplit(RankTable(status), '\n');
  EXPECT_THAT(lines[0], StartsWith("replica rank "));
  EXPECT_THAT(lines[1], StartsWith("0       0    "));
}

}  // namespace
}  // namespace phalanx::launcher
