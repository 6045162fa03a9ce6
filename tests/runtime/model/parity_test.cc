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

// How far a cache in FP8 takes logprobs from what the same decoder says with a plain one: on
// average no further than 16 times as far as BF16 takes Transformers' own run from float32. BF16
// rounds every activation to 8 significant bits; FP8 rounds keys and values alone, in steps 16
// times as large. Models that have no such run get 16 times the mean of those that have, 0.016;
// twice that with experts, where a router that is near a tie chooses another one.
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
  double typical = 0.016;
  if (golden.expected["dtype"] == "BF16") {
    testing::Errors native;
    const nlohmann::json& positions = golden.expected["positions"];
    for (size_t i = 0; i < positions.size(); ++i) {
      native.Add(std::abs(golden.expected["native"]["positions"][i]["logprob"].get<double>() -
                          positions[i]["logprob"].get<double>()));
    }
    typical = native.mean();
  } else if (golden.name.find("moe") != std::string::npos ||
             golden.name.find("mixtral") != std::string::npos) {
    typical *= 2;
  }
  EXPECT_LE(distance.mean(), 16 * typical);
}

INSTANTIATE_TEST_SUITE_P(Goldens, Parity, ::testing::ValuesIn(testing::GoldenNames()),
                         testing::GoldenTestName);

}  // namespace
}  // namespace phalanx
