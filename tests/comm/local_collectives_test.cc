// The cases of collective_cases.h over ranks as threads.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/comm/collective_cases.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::comm {
namespace {

// (case, ranks, bytes of a slot): a small slot makes every payload pass in many pieces.
class LocalCollectives : public ::testing::TestWithParam<std::tuple<CollectiveCase, int, int64_t>> {
};

TEST_P(LocalCollectives, Holds) {
  const auto& [collective_case, ranks, slot_bytes] = GetParam();
  LocalGroupOptions options;
  options.slot_bytes = slot_bytes;
  if (slot_bytes < (1 << 20)) options.ring_bytes = 2048;
  const std::vector<absl::Status> statuses = testing::RunRanks(ranks, collective_case.run, options);
  for (int r = 0; r < ranks; ++r)
    EXPECT_TRUE(statuses[r].ok()) << "rank " << r << ": " << statuses[r];
}

INSTANTIATE_TEST_SUITE_P(All, LocalCollectives,
                         ::testing::Combine(::testing::ValuesIn(CollectiveCases()),
                                            ::testing::Range(1, 9),
                                            ::testing::Values(int64_t{16384}, int64_t{1} << 20)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param)) +
                                  (std::get<2>(info.param) < (1 << 20) ? "RanksSmallSlots"
                                                                       : "Ranks");
                         });

}  // namespace
}  // namespace phalanx::comm
