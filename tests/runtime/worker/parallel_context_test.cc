// Which communicators of a device's memory a rank gets: NCCL adds as it likes in profile `fast`,
// and in no other; what is staged keeps the plan's order.
#include "runtime/worker/parallel_context.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/comm/nccl_ranks.h"

namespace phalanx::worker {
namespace {

// How often NCCL was called while two ranks added to each other's parts.
std::map<std::string, int> CallsOfASum(DeviceTransport transport, kernels::Numerics numerics) {
  comm::TakeFakeNcclCalls();
  const std::vector<absl::Status> statuses =
      testing::RunRanks(2, [&](comm::Communicator& group) -> absl::Status {
        comm::FakeDevice device("GPU-" + std::to_string(group.rank()));
        auto context = ParallelContext::Create({.tp = 2}, group);
        if (!context.ok()) return context.status();
        absl::Status bound =
            context->BindDevice(device, transport, numerics, comm::FakeNcclLibrary());
        if (!bound.ok()) return bound;
        const kernels::Buffer part = comm::Floats(device, 300, 1.0f + group.rank());
        const kernels::Buffer sum = comm::Floats(device, 300, -5);
        const float* parts[] = {part.as<float>()};
        absl::Status added =
            context->groups().tp->AllReduce({{1, 1}, {0, 1, -1}}, parts, sum.as<float>(), 300);
        EXPECT_EQ(comm::OnHost(device, sum), std::vector<float>(300, 3));
        return added;
      });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
  return comm::TakeFakeNcclCalls();
}

TEST(ParallelContext, NcclAddsInItsOwnOrderInFastAlone) {
  using kernels::Numerics;
  EXPECT_EQ(CallsOfASum(DeviceTransport::kNccl, Numerics::kFast).at("AllReduce"), 2);
  const std::map<std::string, int> exact = CallsOfASum(DeviceTransport::kNccl, Numerics::kExact);
  EXPECT_EQ(exact.count("AllReduce"), 0);
  EXPECT_EQ(exact.at("AllGather"), 2);
}

TEST(ParallelContext, StagedSumsKeepTheirOrderInFast) {
  EXPECT_TRUE(CallsOfASum(DeviceTransport::kStaged, kernels::Numerics::kFast).empty());
}

}  // namespace
}  // namespace phalanx::worker
