// The cases of collective_cases.h over MPI: shared memory, point to point, and both, as the command
// line says (--ranks_per_node=K).
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>

#include "tests/comm/collective_cases.h"
#include "tests/comm/mpi_main.h"

namespace phalanx::comm {
namespace {

class MpiCollectives : public ::testing::TestWithParam<std::tuple<CollectiveCase, int>> {};

TEST_P(MpiCollectives, Holds) {
  const auto& [collective_case, ranks] = GetParam();
  Communicator& world = TestEnvironment().World();
  if (ranks > world.size()) GTEST_SKIP() << "the job has only " << world.size() << " ranks";
  // The last `ranks` ranks, in their order, so that group ranks and world ranks differ.
  const bool member = world.rank() >= world.size() - ranks;
  absl::StatusOr<std::unique_ptr<Communicator>> group = world.Split(member ? 0 : -1, 0);
  ASSERT_TRUE(group.ok()) << group.status();
  ASSERT_EQ(*group != nullptr, member);
  if (member) {
    const absl::Status status = collective_case.run(**group);
    EXPECT_TRUE(status.ok()) << "rank " << world.rank() << ": " << status;
    if (!status.ok()) world.Abort("a test failed");
  }
  const absl::Status together = world.Barrier();
  ASSERT_TRUE(together.ok()) << together;
}

INSTANTIATE_TEST_SUITE_P(All, MpiCollectives,
                         ::testing::Combine(::testing::ValuesIn(CollectiveCases()),
                                            ::testing::Values(1, 2, 3, 5, 7, 8)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param)) + "Ranks";
                         });

}  // namespace
}  // namespace phalanx::comm
