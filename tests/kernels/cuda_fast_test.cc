// Profile `fast` on the emulated device: row-major weights change no bit of what phalanx's own
// kernels compute, and what goes to cuBLASLt, when, and with which memory.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/lane_math.h"
#include "tests/kernels/emulation/fake_cublas.h"
#include "tests/kernels/products_testing.h"

namespace phalanx::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::unique_ptr<CudaKernels> Make(Numerics numerics, int64_t memory_bytes = int64_t{80} << 20) {
  CudaOptions options;
  options.pack_threads = 1;
  options.numerics = numerics;
  auto memory = cuda::DeviceMemory::Create(0, memory_bytes);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return std::make_unique<CudaKernels>(options, *std::move(memory));
}
std::unique_ptr<CudaKernels> MakeFast() {
  auto kernels = Make(Numerics::kFast);
  const absl::Status status = kernels->UseLibrary(emulation::FakeCublas());
  EXPECT_TRUE(status.ok()) << status;
  (void)emulation::TakeFakeCublasCounts();
  return kernels;
}

TEST(RowMajorWeights, GiveTheBitsOfPackedOnesInEveryKernel) {
  const auto exact = Make(Numerics::kExact);
  const auto fast = Make(Numerics::kFast);  // without a library
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    for (const auto& parts : std::vector<std::vector<std::vector<int>>>{{{0, 1, -1, 2, 3, -1, -1}},
                                                                        {{3, 0, -1}, {1, 2, -1}}}) {
      Products packed(*exact, {type, parts}, 3);
      Products by_rows(*fast, {type, parts}, 3);
      // The kernels of up to 8, 16, 32, 64 and 128 rows a block.
      for (const int64_t rows : {1, 3, 8, 13, 16, 17, 40, 150}) {
        EXPECT_TRUE(SameBits(packed.MatMul(rows), by_rows.MatMul(rows)))
            << Name(type) << ", " << rows << " rows, " << parts.size() << " parts";
      }
      for (const auto& counts :
           std::vector<std::vector<int64_t>>{{1, 0, 2}, {9, 5, 16}, {40, 0, 70}}) {
        EXPECT_TRUE(SameBits(packed.Grouped(counts), by_rows.Grouped(counts)))
            << Name(type) << ", " << counts[0] << " rows and others";
      }
    }
  }
}

TEST(RowMajorWeights, TakeAsManyBytes) {
  const auto exact = Make(Numerics::kExact);
  const auto fast = Make(Numerics::kFast);
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    WeightSpec spec;
    spec.dtype = type;
    spec.rows = {{nullptr, 77, 100}};
    spec.leaves = {{0, 100}};
    spec.parts = {{0}};
    EXPECT_EQ(exact->PackedBytes(spec), fast->PackedBytes(spec));
  }
}

TEST(Fast, MoreRowsGoToTheLibraryAPartAProduct) {
  const auto fast = MakeFast();
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    // Two F16 are what a row's value is split into.
    const int a_part = type == DType::kF16 ? 2 : 1;
    Products whole(*fast, {type}, 2);
    for (const int64_t rows : {1, 16}) whole.MatMul(rows);
    whole.Grouped({30, 50});
    EXPECT_EQ(emulation::TakeFakeCublasCounts().asked, 0);
    whole.MatMul(17);
    EXPECT_EQ(emulation::TakeFakeCublasCounts().products, a_part) << Name(type);
    // Leaves side by side, in any order; an empty one between them is no gap.
    Products parts(*fast, {type, {{1, 0, -1}, {3}, {2}}});
    parts.MatMul(40);
    EXPECT_EQ(emulation::TakeFakeCublasCounts().products, 0) << "an empty part is no product";
    Products two(*fast, {type, {{1, 0, -1}, {3, 2, -1}}});
    two.MatMul(40);
    EXPECT_EQ(emulation::TakeFakeCublasCounts().products, 2 * a_part) << Name(type);
  }
}

// Not where F16's two terms are added to each other, nor without the library.
TEST(Fast, GatesAndUpsOfBf16ComeRoundedFromTheLibrary) {
  const auto fast = MakeFast();
  for (const DType type : {DType::kBF16, DType::kF32, DType::kF16}) {
    Products products(*fast, {type});
    const std::vector<float> bias = products.Bias();
    for (const int64_t rows : {16, 17, 150}) {
      const std::vector<float> fused = products.Gated(rows, /*fused=*/true);
      std::vector<float> whole = products.MatMul(rows);
      if (type != DType::kBF16 || rows <= 16) {
        EXPECT_TRUE(SameBits(fused, products.Gated(rows, /*fused=*/false))) << Name(type) << rows;
        continue;
      }
      for (float& value : whole) value = Bf16ToF32(F32ToBf16(value));
      constexpr int64_t kN = Products::kN / 2;
      std::vector<float> expected;
      for (int64_t i = 0; i < rows * kN; ++i) {
        const float* const row = &whole[i / kN * 2 * kN];
        const int64_t j = i % kN;
        expected.push_back(
            cuda::SiluTimes(cuda::Add(row[j], bias[j]), cuda::Add(row[kN + j], bias[kN + j])));
      }
      EXPECT_TRUE(SameBits(fused, expected)) << rows;
    }
  }
  emulation::SetFakeCublasFaults({.no_kernel_for_rows = 40});
  Products products(*fast, {});
  EXPECT_TRUE(SameBits(products.Gated(40, /*fused=*/true), products.Gated(40, /*fused=*/false)));
  emulation::SetFakeCublasFaults({});
}

TEST(Fast, TheLibraryIsAskedOnceForEachShape) {
  const auto fast = MakeFast();
  Products first(*fast, {});
  Products second(*fast, {});
  for (int i = 0; i < 3; ++i) {
    for (const int64_t rows : {20, 33}) {
      first.MatMul(rows);
      second.MatMul(rows);
    }
  }
  const emulation::FakeCublasCounts counts = emulation::TakeFakeCublasCounts();
  EXPECT_EQ(counts.asked, 2);
  EXPECT_EQ(counts.products, 12);
}

TEST(Fast, WhatTheLibraryHasNoKernelForIsExacts) {
  const auto exact = Make(Numerics::kExact);
  for (const bool says_not_supported : {false, true}) {
    const auto fast = MakeFast();
    Products expected(*exact, {});
    Products got(*fast, {});
    emulation::SetFakeCublasFaults(
        {.no_kernel_for_rows = 40, .says_not_supported = says_not_supported});
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(SameBits(expected.MatMul(40), got.MatMul(40)));
    emulation::SetFakeCublasFaults({});
    EXPECT_EQ(emulation::TakeFakeCublasCounts().asked, 1);
    got.MatMul(41);
    EXPECT_EQ(emulation::TakeFakeCublasCounts().products, 1);
  }
}

TEST(Fast, AllocatesNothingOnceItsScratchIsFrozen) {
  for (const DType type : {DType::kBF16, DType::kF16}) {
    const auto fast = MakeFast();
    Products products(*fast, {type});
    products.MatMul(Products::kMostRows);
    fast->FreezeScratch();
    const int64_t left = *fast->FreeBytes();
    const auto rest = fast->Allocate(left);
    ASSERT_TRUE(rest.ok()) << rest.status();
    // The library's kernels, phalanx's few-row ones, and those that step in for the library.
    for (const int64_t rows : {1, 16, 17, 100}) products.MatMul(rows);
    emulation::SetFakeCublasFaults({.no_kernel_for_rows = 60});
    products.MatMul(60);
    emulation::SetFakeCublasFaults({});
    EXPECT_EQ(emulation::TakeFakeCublasCounts().products, type == DType::kF16 ? 6 : 3);
  }
}

TEST(Fast, MemoryThatTheWorkspaceLacksIsARefusalAtTheStart) {
  CudaOptions options;
  options.numerics = Numerics::kFast;
  options.memory_bytes = int64_t{24} << 20;
  const absl::Status status = CreateCudaKernels(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("for matmuls"), HasSubstr("33554432 bytes")));
  options.numerics = Numerics::kExact;
  EXPECT_TRUE(CreateCudaKernels(options).ok());
}

TEST(Fast, ALibraryThatDoesNotStartIsRefusedWithItsReason) {
  emulation::SetFakeCublasFaults({.no_context = true});
  CudaOptions options;
  options.numerics = Numerics::kFast;
  const absl::Status status = CreateCudaKernels(options).status();
  emulation::SetFakeCublasFaults({});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("an emulated cuBLASLt, version 13.1.0"),
            HasSubstr("the emulated library was not initialized"), HasSubstr("--numerics exact")));
}

TEST(FastDeathTest, AProductThatTheLibraryRefusesEndsTheProcess) {
  const auto fast = MakeFast();
  Products products(*fast, {});
  emulation::SetFakeCublasFaults({.refuses_products = true});
  EXPECT_DEATH(products.MatMul(40), "the product of 40 x 200 x 736 BF16: not supported");
  emulation::SetFakeCublasFaults({});
}

TEST(Fast, SaysWhichLibraryItHas) {
  CudaOptions options;
  options.numerics = Numerics::kFast;
  const auto kernels = CreateCudaKernels(options);
  ASSERT_TRUE(kernels.ok()) << kernels.status();
  EXPECT_THAT((*kernels)->Describe(), HasSubstr(", cuBLASLt 13.1.0"));
}

TEST(Fast, LeavesNothingOfTheLibrarysBehind) {
  const int64_t before = emulation::LiveFakeCublasObjects();
  {
    const auto fast = MakeFast();
    Products products(*fast, {});
    products.MatMul(40);
    EXPECT_GT(emulation::LiveFakeCublasObjects(), before);
  }
  EXPECT_EQ(emulation::LiveFakeCublasObjects(), before);
}

}  // namespace
}  // namespace phalanx::kernels
