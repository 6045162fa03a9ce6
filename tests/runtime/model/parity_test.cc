// Parity with Hugging Face Transformers in float32: the golden files of tests/goldens.

#include <filesystem>
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

INSTANTIATE_TEST_SUITE_P(Goldens, Parity, ::testing::ValuesIn(testing::GoldenNames()),
                         testing::GoldenTestName);

}  // namespace
}  // namespace phalanx
