// The cases of collective_cases.h over NcclCommunicator, on fake devices and a fake NCCL; and what
// of it goes beyond them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <latch>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tests/comm/collective_cases.h"
#include "tests/comm/device_arrays.h"
#include "tests/comm/nccl_ranks.h"

namespace phalanx::comm {
namespace {

using ::testing::Each;
using ::testing::IsEmpty;

void ExpectOk(const std::vector<absl::Status>& statuses) {
  for (size_t r = 0; r < statuses.size(); ++r) {
    EXPECT_TRUE(statuses[r].ok()) << "rank " << r << ": " << statuses[r];
  }
  EXPECT_EQ(LiveFakeNcclComms(), 0);
}

class NcclCollectives : public ::testing::TestWithParam<std::tuple<CollectiveCase, int>> {};

TEST_P(NcclCollectives, Holds) {
  const auto& [collective_case, ranks] = GetParam();
  NcclOptions options = QuickOptions();
  options.messages = NcclMessages::kHost;  // the cases make full use of tags
  ExpectOk(RunNccl(
      ranks,
      [&](NcclCommunicator& group, FakeDevice& device) {
        return collective_case.run(*WithDeviceArrays(group, device));
      },
      options));
}

INSTANTIATE_TEST_SUITE_P(All, NcclCollectives,
                         ::testing::Combine(::testing::ValuesIn(CollectiveCases()),
                                            ::testing::Values(1, 2, 3, 5, 8)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param)) + "Ranks";
                         });

TEST(NcclCommunicator, TakesItsPlaceInTheOrderOfTheStream) {
  ExpectOk(RunNccl(2, [](NcclCommunicator& group, FakeDevice& device) {
    const kernels::Buffer memory = Floats(device, 1000, 0);
    const kernels::Buffer sum = Floats(device, 1000, 0);
    const kernels::Buffer ones = Floats(device, 1000, 1);
    const float* operands[] = {memory.as<float>(), ones.as<float>()};
    device.AddParts(operands, {0, 1, -1}, memory.as<float>(), 1000);
    const ReducePlan plan{{1, 1}, {0, 1, -1}};
    const float* part = memory.as<float>();
    absl::Status status = group.AllReduce(plan, {&part, 1}, sum.as<float>(), 1000);
    const float* again[] = {sum.as<float>(), ones.as<float>()};
    device.AddParts(again, {0, 1, -1}, sum.as<float>(), 1000);
    EXPECT_THAT(OnHost(device, sum), Each(3.0f));
    return status;
  }));
}

TEST(NcclCommunicator, ReturnsBeforeItsPeersHaveComeOnceTheyAreConnected) {
  // Rank 0 makes its calls before rank 1 makes any: host threads never wait for each other.
  std::latch first_done(1);
  ExpectOk(RunNccl(2, [&](NcclCommunicator& group, FakeDevice& device) {
    const kernels::Buffer all = Floats(device, 2, -1);
    const kernels::Buffer mine = Floats(device, 1, static_cast<float>(group.rank()));
    const std::vector<int64_t> bytes = {4, 4};
    if (group.rank() == 1) first_done.wait();
    absl::Status status;
    for (int i = 0; i < 5 && status.ok(); ++i) {
      status = group.AllGather(mine.data(), all.data(), bytes);
    }
    if (group.rank() == 0) first_done.count_down();
    EXPECT_EQ(OnHost(device, all), (std::vector<float>{0, 1}));
    return status;
  }));
}

TEST(NcclCommunicator, ScratchMemoryIsKeptFromCallToCall) {
  ExpectOk(RunNccl(3, [](NcclCommunicator& group, FakeDevice& device) {
    const kernels::Buffer memory = Floats(device, 100000, 1);
    const float* part = memory.as<float>();
    const ReducePlan plan{{1, 1, 1}, {0, 1, -1, 2, -1}};
    absl::Status status;
    int64_t after_first = 0;
    for (int i = 0; i < 4 && status.ok(); ++i) {
      // The largest comes first.
      status = group.AllReduce(plan, {&part, 1}, memory.as<float>(), 100000 >> i);
      if (i == 0) after_first = device.allocations();
    }
    EXPECT_EQ(device.allocations(), after_first);
    return status;
  }));
}

TEST(NcclCommunicator, MessagesOnTheDeviceFollowAPipeline) {
  // Each stage receives, adds one and passes on; no host thread waits for another.
  const int n = 4;
  ExpectOk(RunNccl(n, [&](NcclCommunicator& group, FakeDevice& device) -> absl::Status {
    const kernels::Buffer ones = Floats(device, 500, 1);
    for (int step = 0; step < 3; ++step) {
      const kernels::Buffer hidden = Floats(device, 500, static_cast<float>(100 * step));
      if (group.rank() > 0) {
        absl::Status status = group.Recv(hidden.data(), 2000, group.rank() - 1, 0);
        if (!status.ok()) return status;
      }
      const float* operands[] = {hidden.as<float>(), ones.as<float>()};
      device.AddParts(operands, {0, 1, -1}, hidden.as<float>(), 500);
      if (group.rank() + 1 < n) {
        absl::Status status = group.Send(hidden.data(), 2000, group.rank() + 1, 0);
        if (!status.ok()) return status;
      }
      EXPECT_THAT(OnHost(device, hidden), Each(100.0f * step + group.rank() + 1));
    }
    // A message to oneself is buffered.
    const kernels::Buffer mine = Floats(device, 3, 7);
    const kernels::Buffer got = Floats(device, 3, 0);
    absl::Status status = group.Send(mine.data(), 12, group.rank(), 5);
    if (status.ok()) status = group.Recv(got.data(), 12, group.rank(), 5);
    EXPECT_THAT(OnHost(device, got), Each(7.0f));
    return status;
  }));
}

TEST(NcclCommunicator, ExactSumsNeverLetNcclAdd) {
  TakeFakeNcclCalls();
  ExpectOk(RunNccl(2, [](NcclCommunicator& group, FakeDevice& device) {
    const kernels::Buffer memory = Floats(device, 200000, 1);
    const float* part = memory.as<float>();
    const ReducePlan plan{{1, 1}, {0, 1, -1}};
    absl::Status status = group.AllReduce(plan, {&part, 1}, memory.as<float>(), 200000);
    if (status.ok()) {
      status = group.ReduceScatter(plan, {&part, 1}, memory.as<float>(), {100000, 100000});
    }
    return status;
  }));
  const std::map<std::string, int> calls = TakeFakeNcclCalls();
  EXPECT_EQ(calls.count("AllReduce"), 0);
  EXPECT_EQ(calls.count("ReduceScatter"), 0);
  // Two members that share the work: each sends the other its half of the parts, then the sums are
  // gathered in place.
  EXPECT_EQ(calls.at("AllGather"), 2);
}

TEST(NcclCommunicator, FastSumsAreAddedByNcclAfterOnesOwnParts) {
  NcclOptions options = QuickOptions();
  options.profile = NcclProfile::kFast;
  TakeFakeNcclCalls();
  ExpectOk(RunNccl(
      3,
      [](NcclCommunicator& group, FakeDevice& device) -> absl::Status {
        // Rank 0 has no parts, rank 1 one, rank 2 three.
        const ReducePlan plan{{0, 1, 3}, {0, 1, -1, 2, -1, 3, -1}};
        std::vector<kernels::Buffer> memory;
        std::vector<const float*> parts;
        for (int p = 0; p < plan.parts_per_member[group.rank()]; ++p) {
          memory.push_back(Floats(device, 300, static_cast<float>(1 + 10 * p)));
          parts.push_back(memory.back().as<float>());
        }
        const kernels::Buffer sum = Floats(device, 300, -5);
        absl::Status status = group.AllReduce(plan, parts, sum.as<float>(), 300);
        EXPECT_THAT(OnHost(device, sum), Each(1.0f + 1 + 11 + 21));
        if (!status.ok()) return status;
        const kernels::Buffer block = Floats(device, 100, -5);
        status = group.ReduceScatter(plan, parts, block.as<float>(), {100, 100, 100});
        EXPECT_THAT(OnHost(device, block), Each(1.0f + 1 + 11 + 21));
        if (!status.ok()) return status;
        // NCCL has no blocks of different sizes.
        const std::vector<int64_t> counts = {50, 0, 250};
        const kernels::Buffer ragged = Floats(device, counts[group.rank()], -5);
        status = group.ReduceScatter(plan, parts, ragged.as<float>(), counts);
        EXPECT_THAT(OnHost(device, ragged), Each(1.0f + 1 + 11 + 21));
        return status;
      },
      options));
  const std::map<std::string, int> calls = TakeFakeNcclCalls();
  EXPECT_EQ(calls.at("AllReduce"), 3);
  EXPECT_EQ(calls.at("ReduceScatter"), 3);
}

TEST(NcclCommunicator, NothingIsEnqueuedForNoBytes) {
  TakeFakeNcclCalls();
  ExpectOk(RunNccl(2, [](NcclCommunicator& group, FakeDevice&) {
    const ReducePlan plan{{1, 1}, {0, 1, -1}};
    const float* part = nullptr;
    absl::Status status = group.AllReduce(plan, {&part, 1}, nullptr, 0);
    if (status.ok()) status = group.AllReduceOr(nullptr, 0);
    if (status.ok()) status = group.AllGather(nullptr, nullptr, {0, 0});
    if (status.ok()) status = group.Gather(nullptr, nullptr, {0, 0}, 1);
    if (status.ok()) status = group.AllToAll(nullptr, {0, 0}, nullptr, {0, 0});
    if (status.ok()) status = group.Broadcast(nullptr, 0, 1);
    EXPECT_EQ(group.collective_number(), 6);
    return status;
  }));
  EXPECT_THAT(TakeFakeNcclCalls(), IsEmpty());
}

TEST(NcclCommunicator, GathersInPlace) {
  ExpectOk(RunNccl(3, [](NcclCommunicator& group, FakeDevice& device) -> absl::Status {
    const std::vector<int64_t> ragged = {4, 12, 8};
    const std::vector<int64_t> begins = {0, 4, 16};
    const std::vector<float> want = {0, 1, 1, 1, 2, 2};
    for (const bool to_root : {false, true}) {
      const kernels::Buffer all = Floats(device, 6, static_cast<float>(group.rank()));
      char* mine = all.as<char>() + begins[group.rank()];
      absl::Status status = to_root ? group.Gather(mine, all.data(), ragged, 1)
                                    : group.AllGather(mine, all.data(), ragged);
      if (!status.ok()) return status;
      const std::vector<float> got = OnHost(device, all);
      if (!to_root || group.rank() == 1) {
        EXPECT_EQ(got, want);
      }
    }
    return absl::OkStatus();
  }));
}

TEST(NcclCommunicator, BadArgumentsAreRefused) {
  const auto refused = [](const std::function<absl::Status(NcclCommunicator&)>& call) {
    return RunNccl(1, [&](NcclCommunicator& group, FakeDevice&) { return call(group); })[0].code();
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto reduce = [&](ReducePlan plan, size_t parts, int64_t count) {
    return refused([&](NcclCommunicator& group) {
      const std::vector<const float*> pointers(parts, nullptr);
      return group.AllReduce(plan, pointers, nullptr, count);
    });
  };
  EXPECT_EQ(reduce({{1}, {0}}, 1, 0), absl::StatusCode::kOk);
  EXPECT_EQ(reduce({{1}, {0}}, 1, -1), kInvalid);
  EXPECT_EQ(reduce({{1}, {0}}, 2, 0), kInvalid);
  EXPECT_EQ(reduce({{1}, {1}}, 1, 0), kInvalid);
  EXPECT_EQ(reduce({{65}, {0}}, 65, 0), kInvalid);
  EXPECT_EQ(refused([](auto& g) {
              return g.ReduceScatter({{1}, {0}}, {nullptr}, nullptr, {});
            }),
            kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.AllReduceOr(nullptr, -1); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.AllGather(nullptr, nullptr, {-1}); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.Gather(nullptr, nullptr, {0}, 1); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.AllToAll(nullptr, {4}, nullptr, {8}); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.Broadcast(nullptr, -4, 0); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.Send(nullptr, 4, 1, 0); }), kInvalid);
  EXPECT_EQ(refused([](auto& g) { return g.Recv(nullptr, 4, 0, -1); }), kInvalid);
}

}  // namespace
}  // namespace phalanx::comm
