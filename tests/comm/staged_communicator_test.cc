// The cases of collective_cases.h over memory of a device that the host can't touch, staged through
// ranks as threads; and what is particular to staging.
#include "comm/staged/staged_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/comm/collective_cases.h"
#include "tests/comm/device_arrays.h"
#include "tests/comm/fake_device.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::comm {
namespace {

using ::phalanx::testing::RunRanks;
using ::testing::HasSubstr;

class StagedCollectives : public ::testing::TestWithParam<std::tuple<CollectiveCase, int>> {};

TEST_P(StagedCollectives, Holds) {
  const auto& [collective_case, ranks] = GetParam();
  const std::vector<absl::Status> statuses = RunRanks(ranks, [&](Communicator& host) {
    FakeDevice device(absl::StrCat("device ", host.rank()));
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    return collective_case.run(*WithDeviceArrays(*staged, device));
  });
  for (int r = 0; r < ranks; ++r) {
    EXPECT_TRUE(statuses[r].ok()) << "rank " << r << ": " << statuses[r];
  }
}

INSTANTIATE_TEST_SUITE_P(All, StagedCollectives,
                         ::testing::Combine(::testing::ValuesIn(CollectiveCases()),
                                            ::testing::Values(1, 2, 3, 5, 8)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param)) + "Ranks";
                         });

// `count` floats of `value` on `device`.
kernels::Buffer Floats(FakeDevice& device, int64_t count, float value) {
  absl::StatusOr<kernels::Buffer> buffer = device.Allocate(count * 4);
  const std::vector<float> host(count, value);
  device.CopyIn(buffer->data(), host.data(), count * 4);
  return *std::move(buffer);
}

TEST(StagedCommunicator, TakesItsPlaceInTheOrderOfTheStream) {
  const auto statuses = RunRanks(2, [](Communicator& host) {
    FakeDevice device("a device");
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    const kernels::Buffer memory = Floats(device, 1000, 0);
    const kernels::Buffer sum = Floats(device, 1000, 0);
    const kernels::Buffer ones = Floats(device, 1000, 1);
    // What is enqueued before the call but hasn't happened yet is sent; what is enqueued after it
    // sees what came.
    const float* operands[] = {memory.as<float>(), ones.as<float>()};
    device.AddParts(operands, {0, 1, -1}, memory.as<float>(), 1000);
    const ReducePlan plan{{1, 1}, {0, 1, -1}};
    const float* part = memory.as<float>();
    absl::Status status = staged->AllReduce(plan, {&part, 1}, sum.as<float>(), 1000);
    const float* again[] = {sum.as<float>(), ones.as<float>()};
    device.AddParts(again, {0, 1, -1}, sum.as<float>(), 1000);
    std::vector<float> got(1000);
    device.CopyOut(got.data(), sum.data(), 4000);
    EXPECT_EQ(got, std::vector<float>(1000, 3.0f));
    return status;
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(StagedCommunicator, BadArgumentsAreRefusedByTheHostBeforeAnythingIsCopied) {
  const auto statuses = RunRanks(1, [](Communicator& host) {
    FakeDevice device("a device");
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    return staged->AllReduceOr(nullptr, -1);
  });
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInvalidArgument);
  const auto sizes = RunRanks(1, [](Communicator& host) {
    FakeDevice device("a device");
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    return staged->AllGather(nullptr, nullptr, {});
  });
  EXPECT_EQ(sizes[0].code(), absl::StatusCode::kInvalidArgument);
}

TEST(StagedCommunicator, ARankWithoutHostMemoryEndsTheOthersCalls) {
  const auto statuses = RunRanks(2, [](Communicator& host) {
    FakeDevice device("a device");
    host.set_timeout(absl::InfiniteDuration());
    if (host.rank() == 1) device.set_host_memory_gone();
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    const kernels::Buffer memory = Floats(device, 8, 1);
    return staged->Broadcast(memory.data(), 32, 0);
  });
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(statuses[1].message()), HasSubstr("rank 1 of 2: "));
  // The root may have sent before it heard, or not.
  if (!statuses[0].ok()) {
    EXPECT_THAT(std::string(statuses[0].message()), HasSubstr("rank 1 of 2"));
  }
}

TEST(StagedCommunicator, AbortAndItsReasonPassThrough) {
  const auto statuses = RunRanks(2, [](Communicator& host) {
    FakeDevice device("a device");
    const std::unique_ptr<Communicator> staged = StageDeviceMemory(host, device);
    const std::unique_ptr<Communicator> half = *staged->Split(0, 0);
    EXPECT_FALSE(half->abort_reason().has_value());
    EXPECT_TRUE(half->Barrier().ok() || half->abort_reason().has_value());  // both have looked
    if (host.rank() == 0) staged->Abort("enough");
    const kernels::Buffer memory = Floats(device, 8, 1);
    absl::Status status = half->Recv(memory.data(), 32, 1 - host.rank(), 0);
    EXPECT_THAT(half->abort_reason().value_or(""), HasSubstr("enough"));
    EXPECT_THAT(host.abort_reason().value_or(""), HasSubstr("enough"));
    return status;
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("enough"));
  }
}

}  // namespace
}  // namespace phalanx::comm
