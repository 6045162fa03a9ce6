// Parity with Hugging Face Transformers in float32: the golden files of tests/goldens.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/decode.h"
#include "tests/testing/golden.h"

namespace phalanx {
namespace {

class Parity : public ::testing::TestWithParam<std::string> {};

TEST_P(Parity, TeacherForcedLogprobsMatchTransformers) {
  const testing::Golden golden = testing::LoadGolden(GetParam());
  if (!std::filesystem::exists(golden.directory)) {
    GTEST_SKIP() << golden.directory << " is not there: it comes with ../shared";
  }
  const auto logits = testing::DecodeLogits(golden.directory, golden.inputs(), {});
  ASSERT_TRUE(logits.ok()) << logits.status();
  testing::ExpectParity(golden, *logits, 1e-4);
}

// How far BF16 takes Transformers' own run from float32, on average. Models without such a run get
// the mean of those that have one; twice that with experts, where a router that is near a tie
// chooses another one.
double TypicalDistance(const testing::Golden& golden) {
  constexpr double kMean = 0.016;
  if (golden.expected["dtype"] == "BF16") {
    testing::Errors native;
    const nlohmann::json& positions = golden.expected["positions"];
    for (size_t i = 0; i < positions.size(); ++i) {
      native.Add(std::abs(golden.expected["native"]["positions"][i]["logprob"].get<double>() -
                          positions[i]["logprob"].get<double>()));
    }
    return native.mean();
  }
  const bool experts = golden.name.find("moe") != std::string::npos ||
                       golden.name.find("mixtral") != std::string::npos;
  return experts ? 2 * kMean : kMean;
}

// How far a cache in FP8 takes logprobs from what the same decoder says with a plain one: on
// average no further than 16 times as far as BF16 takes Transformers' own run from float32. BF16
// rounds every activation to 8 significant bits; FP8 rounds keys and values alone, in steps 16
// times as large.
TEST_P(Parity, LogprobsWithAnFp8CacheStayNear) {
  const testing::Golden golden = testing::LoadGolden(GetParam());
  if (!std::filesystem::exists(golden.directory)) {
    GTEST_SKIP() << golden.directory << " is not there: it comes with ../shared";
  }
  const std::vector<int32_t> ids = golden.expected["input_ids"];
  const auto plain = testing::DecodeLogits(golden.directory, golden.inputs(), {});
  const auto fp8 =
      testing::DecodeLogits(golden.directory, golden.inputs(), {.kv = kernels::KvFormat::kF8E4M3});
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_TRUE(fp8.ok()) << fp8.status();
  const testing::Errors distance = testing::LogprobDistance(ids, *plain, *fp8);
  std::cout << golden.name << ": FP8 cache moves logprobs by at most " << distance.max << ", by "
            << distance.mean() << " on average\n";
  EXPECT_GT(distance.max, 0);
  EXPECT_LE(distance.mean(), 16 * TypicalDistance(golden));
}

// Likewise weights in FP8: every matrix of a layer, in steps 16 times as large as BF16's own.
TEST_P(Parity, LogprobsWithFp8WeightsStayNear) {
  const testing::Golden golden = testing::LoadGolden(GetParam());
  if (!std::filesystem::exists(golden.directory)) {
    GTEST_SKIP() << golden.directory << " is not there: it comes with ../shared";
  }
  const std::vector<int32_t> ids = golden.expected["input_ids"];
  const auto fp8 = testing::DecodeLogits(golden.directory, golden.inputs(),
                                         {.weights = kernels::WeightFormat::kF8E4M3});
  if (golden.expected["dtype"] != "BF16") {
    EXPECT_EQ(fp8.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(fp8.status().message().find("FP8 is made of BF16 alone"), absl::string_view::npos);
    return;
  }
  const auto plain = testing::DecodeLogits(golden.directory, golden.inputs(), {});
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_TRUE(fp8.ok()) << fp8.status();
  const testing::Errors distance = testing::LogprobDistance(ids, *plain, *fp8);
  std::cout << golden.name << ": FP8 weights move logprobs by at most " << distance.max << ", by "
            << distance.mean() << " on average\n";
  const bool coded = golden.name.find("-fp8-") != std::string::npos;
  EXPECT_EQ(distance.max > 0, !coded);
  EXPECT_LE(distance.mean(), 16 * TypicalDistance(golden));
}

INSTANTIATE_TEST_SUITE_P(Goldens, Parity, ::testing::ValuesIn(testing::GoldenNames()),
                         testing::GoldenTestName);

}  // namespace
}  // namespace phalanx
