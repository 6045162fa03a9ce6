// R6: the digest of all ops is the same on every path and thread count, and tells dtypes apart.
#include <string>

#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

TEST(KnownAnswers, DigestIsTheSameOnEveryPathAndThreadCount) {
  for (const DType type : kAllTypes) {
    std::string expected;
    for (const auto& [name, kernels] : AllKernels()) {
      const std::string digest = KnownAnswerDigest(*kernels, type);
      EXPECT_EQ(digest.size(), 32u);
      if (expected.empty()) expected = digest;
      EXPECT_EQ(digest, expected) << name << " " << Name(type);
      EXPECT_EQ(KnownAnswerDigest(*kernels, type), digest) << "a second run differs on " << name;
    }
  }
}

TEST(KnownAnswers, DigestOfAnFp8CacheIsOneOfItsOwnOnEveryPathAndThreadCount) {
  for (const DType type : kAllTypes) {
    std::string expected;
    for (const auto& [name, kernels] : AllKernels()) {
      const std::string digest = KnownAnswerDigest(*kernels, type, KvFormat::kF8E4M3);
      if (expected.empty()) expected = digest;
      EXPECT_EQ(digest, expected) << name << " " << Name(type);
      EXPECT_NE(digest, KnownAnswerDigest(*kernels, type)) << name << " " << Name(type);
    }
  }
}

TEST(KnownAnswers, DigestsOfFp8WeightsAreOnesOfTheirOwnOnEveryPathAndThreadCount) {
  std::string expected, expected_fine;
  for (const auto& [name, kernels] : AllKernels()) {
    const auto digest = [&, &ops = kernels](WeightFormat format) {
      return KnownAnswerDigest(*ops, DType::kBF16, KvFormat::kPlain, format);
    };
    const std::string fp8 = digest(WeightFormat::kF8E4M3);
    const std::string fine = digest(WeightFormat::kF8E4M3Fine);
    if (expected.empty()) expected = fp8;
    if (expected_fine.empty()) expected_fine = fine;
    EXPECT_EQ(fp8, expected) << name;
    EXPECT_EQ(fine, expected_fine) << name;
    EXPECT_NE(fp8, digest(WeightFormat::kPlain)) << name;
    EXPECT_NE(fp8, fine) << name;
  }
}

TEST(KnownAnswers, DigestDependsOnTheDtype) {
  const auto kernels = CreateCpuKernels({});
  ASSERT_TRUE(kernels.ok());
  const std::string f32 = KnownAnswerDigest(**kernels, DType::kF32);
  const std::string bf16 = KnownAnswerDigest(**kernels, DType::kBF16);
  const std::string f16 = KnownAnswerDigest(**kernels, DType::kF16);
  EXPECT_NE(f32, bf16);
  EXPECT_NE(f32, f16);
  EXPECT_NE(bf16, f16);
}

}  // namespace
}  // namespace phalanx::kernels
