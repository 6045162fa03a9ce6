// The paths of a machine's CPU, and host memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {
namespace {

std::unique_ptr<Kernels> Make(CpuPath path, int threads) {
  absl::StatusOr<std::unique_ptr<Kernels>> kernels = CreateCpuKernels({threads, path});
  EXPECT_TRUE(kernels.ok()) << kernels.status();
  return *std::move(kernels);
}

TEST(CpuPathTest, EveryInstructionSetOfTheMachineIsAPath) {
  std::vector<CpuPath> expected = {CpuPath::kPortable};
  const cpu::CpuFeatures& features = cpu::DetectCpuFeatures();
  if (features.avx2) expected.push_back(CpuPath::kAvx2);
  if (features.avx512) expected.push_back(CpuPath::kAvx512);
  if (features.amx) expected.push_back(CpuPath::kAmx);
  EXPECT_EQ(AvailableCpuPaths(), expected);
#if defined(__x86_64__)
  EXPECT_EQ(features.avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(features.avx512,
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
#endif
}

TEST(CpuPathTest, RefusesMissingPathsAndBadThreadCounts) {
  for (const int threads : {0, -1, 1 << 20}) {
    const absl::Status status = CreateCpuKernels({threads, CpuPath::kPortable}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat("threads is ", threads)));
  }
  const size_t available = AvailableCpuPaths().size();
  if (available < 4) {
    EXPECT_EQ(CreateCpuKernels({1, CpuPath::kAmx}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(Make(AvailableCpuPaths().back(), 2)->Describe(),
            absl::StrCat("cpu ", std::string(Name(AvailableCpuPaths().back())), ", 2 threads"));
}

TEST(AllocateTest, GivesZeroedAlignedMemory) {
  const std::unique_ptr<Kernels> kernels = Make(CpuPath::kPortable, 1);
  for (const int64_t bytes : {0, 1, 64, 100000, (2 << 20) - 1, 2 << 20, (5 << 20) + 3}) {
    absl::StatusOr<Buffer> buffer = kernels->Allocate(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), static_cast<size_t>(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer->as<char>()[i], 0);
  }
}

TEST(AllocateTest, SaysHowMuchTheSystemRefused) {
  const std::unique_ptr<Kernels> kernels = Make(CpuPath::kPortable, 1);
  for (const int64_t bytes : {int64_t{1} << 50, std::numeric_limits<int64_t>::max()}) {
    const absl::Status status = kernels->Allocate(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat(bytes, " bytes"))) << status;
  }
}

}  // namespace
}  // namespace phalanx::kernels
