#include "runtime/serving/response.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::serving {
namespace {

using ::testing::ElementsAre;

coordinator::ReplicaStatus Replica(int index, int ranks) {
  coordinator::ReplicaStatus replica;
  replica.replica = index;
  replica.state = coordinator::CoordinatorState::kServing;
  replica.group.layout = "tp=2";
  replica.group.epoch = 3;
  replica.running_requests = 1 + index;
  replica.blocks.total = 10;
  replica.expert_tokens = {2, 6};
  for (int r = 0; r < ranks; ++r) {
    coordinator::RankInfo& rank = replica.group.ranks.emplace_back();
    rank.rank = r;
    rank.pid = 100 * index + r;
  }
  return replica;
}

TEST(FillStatus, ShowsEveryReplicaAndItsRanksAndTheSums) {
  coordinator::CoordinatorStatus status;
  status.state = coordinator::CoordinatorState::kServing;
  status.layout = "dp=2,tp=2";
  status.replicas = {Replica(0, 2), Replica(1, 2)};
  for (const auto& replica : status.replicas) status.Add(replica);
  v1::GetStatusResponse response;
  FillStatus(status, &response);
  EXPECT_EQ(response.state(), v1::SERVER_STATE_SERVING);
  EXPECT_EQ(response.layout(), "dp=2,tp=2");
  EXPECT_EQ(response.engine().running_requests(), 3);
  EXPECT_EQ(response.engine().kv_blocks_total(), 20);
  EXPECT_THAT(response.engine().expert_tokens(), ElementsAre(4, 12));
  EXPECT_DOUBLE_EQ(response.engine().expert_imbalance(), 1.5);
  ASSERT_EQ(response.replicas_size(), 2);
  EXPECT_EQ(response.replicas(1).replica(), 1);
  EXPECT_EQ(response.replicas(1).layout(), "tp=2");
  EXPECT_EQ(response.replicas(1).epoch(), 3u);
  EXPECT_EQ(response.replicas(1).engine().running_requests(), 2);
  EXPECT_THAT(response.replicas(1).engine().expert_tokens(), ElementsAre(2, 6));
  ASSERT_EQ(response.ranks_size(), 4);
  EXPECT_EQ(response.ranks(2).replica(), 1);
  EXPECT_EQ(response.ranks(2).rank(), 0);
  EXPECT_EQ(response.ranks(3).pid(), 101);
}

TEST(FillStatus, ALostReplicaSaysHowWhileTheServerServes) {
  coordinator::CoordinatorStatus status;
  status.state = coordinator::CoordinatorState::kServing;
  status.replicas = {Replica(0, 1), Replica(1, 1)};
  status.replicas[1].state = coordinator::CoordinatorState::kFailed;
  status.replicas[1].failure = absl::UnavailableError("lost rank 0");
  v1::GetStatusResponse response;
  FillStatus(status, &response);
  EXPECT_EQ(response.state(), v1::SERVER_STATE_SERVING);
  EXPECT_EQ(response.status_message(), "");
  EXPECT_EQ(response.replicas(0).state(), v1::SERVER_STATE_SERVING);
  EXPECT_EQ(response.replicas(1).state(), v1::SERVER_STATE_FAILED);
  EXPECT_EQ(response.replicas(1).status_message(), "lost rank 0");
}

}  // namespace
}  // namespace phalanx::serving
