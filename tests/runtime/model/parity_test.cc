// Parity with Hugging Face Transformers in float32: the golden files of tests/goldens.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/sampling/sampler.h"
#include "tests/testing/decode.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

struct Golden {
  std::string name;
  std::string directory;  // of the checkpoint
  nlohmann::json expected;
};

std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry :
       fs::directory_iterator(fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/expected")) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Golden LoadGolden(const std::string& name) {
  const fs::path root = PHALANX_SOURCE_DIR;
  Golden golden;
  golden.name = name;
  std::ifstream in(root / "tests/goldens/expected" / (name + ".json"));
  golden.expected = nlohmann::json::parse(in);
  if (name == "demo-model") {
    golden.directory = root / "launcher/demo-model";
  } else if (name == "tinystories-656k") {
    golden.directory = fs::path(PHALANX_SHARED_DIR) / "models" / name;
  } else {
    golden.directory = root / "tests/goldens/models" / name;
  }
  return golden;
}

struct Errors {
  double max = 0;
  double sum = 0;
  int64_t count = 0;
  void Add(double error) {
    max = std::max(max, error);
    sum += error;
    ++count;
  }
  double mean() const { return sum / static_cast<double>(count); }
};

class Parity : public ::testing::TestWithParam<std::string> {};

TEST_P(Parity, TeacherForcedLogprobsMatchTransformers) {
  const Golden golden = LoadGolden(GetParam());
  if (!fs::exists(golden.directory)) {
    GTEST_SKIP() << golden.directory << " is not there: it comes with ../shared";
  }
  const std::vector<int32_t> ids = golden.expected["input_ids"];
  const std::vector<int32_t> inputs(ids.begin(), ids.end() - 1);
  const absl::StatusOr<std::vector<float>> logits =
      testing::DecodeLogits(golden.directory, inputs, {});
  ASSERT_TRUE(logits.ok()) << logits.status();
  const int64_t vocab = static_cast<int64_t>(logits->size() / inputs.size());
  auto kernels = kernels::CreateCpuKernels({});
  ASSERT_TRUE(kernels.ok());
  sampling::Sampler sampler(kernels->get(), vocab, 8);

  const bool f32 = golden.expected["dtype"] == "F32";
  const nlohmann::json& positions = golden.expected["positions"];
  ASSERT_EQ(positions.size(), inputs.size());
  ASSERT_GE(positions.size(), 64U);
  Errors target;
  Errors top;
  Errors native_target;
  Errors native_top;
  int argmax_differs = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const nlohmann::json& want = positions[i];
    const absl::Span<const float> row(logits->data() + i * vocab, vocab);
    const scheduler::TokenLogprobs got = sampler.Logprobs(row, ids[i + 1], 5);
    target.Add(std::abs(got.logprob - want["logprob"].get<double>()));
    for (size_t k = 0; k < want["top"].size(); ++k) {
      const double reference = want["top"][k]["logprob"];
      const int32_t id = want["top"][k]["id"];
      top.Add(std::abs(sampler.Logprobs(row, id, 0).logprob - reference));
      if (!f32) {
        const double native =
            golden.expected["native"]["positions"][i]["top_logprobs"][k].get<double>();
        native_top.Add(std::abs(native - reference));
      }
    }
    if (!f32) {
      const double native = golden.expected["native"]["positions"][i]["logprob"];
      native_target.Add(std::abs(native - want["logprob"].get<double>()));
    }
    const bool same = got.top[0].id == want["argmax"].get<int32_t>();
    if (!same) ++argmax_differs;
    if (f32 && want["lead"].get<double>() > 1e-4) {
      EXPECT_TRUE(same) << "position " << i;
    }
  }
  RecordProperty("max_error", std::to_string(target.max));
  std::cout << golden.name << ": logprob error max " << target.max << " mean " << target.mean()
            << ", top-5 max " << top.max << " mean " << top.mean();
  if (f32) {
    std::cout << "\n";
    EXPECT_LE(target.max, 1e-4);
    EXPECT_LE(top.max, 1e-4);
    return;
  }
  std::cout << "; Transformers' own run: max " << native_target.max << " mean "
            << native_target.mean() << ", top-5 max " << native_top.max << " mean "
            << native_top.mean() << "; argmax differs at " << argmax_differs << "\n";
  EXPECT_LE(target.max, native_target.max);
  EXPECT_LE(target.mean(), native_target.mean());
  EXPECT_LE(top.mean(), native_top.mean());
}

INSTANTIATE_TEST_SUITE_P(Goldens, Parity, ::testing::ValuesIn(GoldenNames()),
                         [](const ::testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace phalanx
