// What Transformers says of small models (tests/goldens), and how far a decoder's logits are from
// it.
#ifndef PHALANX_TESTS_TESTING_GOLDEN_H_
#define PHALANX_TESTS_TESTING_GOLDEN_H_

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/kernels.h"
#include "nlohmann/json.hpp"
#include "runtime/sampling/sampler.h"

namespace phalanx::testing {

struct Golden {
  std::string name;
  std::string directory;  // of the checkpoint
  nlohmann::json expected;

  bool f32() const { return expected["dtype"] == "F32"; }
  // All but the last of the ids: what a decoder is fed.
  std::vector<int32_t> inputs() const {
    std::vector<int32_t> ids = expected["input_ids"];
    ids.pop_back();
    return ids;
  }
};

inline std::vector<std::string> GoldenNames() {
  namespace fs = std::filesystem;
  std::vector<std::string> names;
  for (const auto& entry :
       fs::directory_iterator(fs::path(PHALANX_SOURCE_DIR) / "tests/goldens/expected")) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// For INSTANTIATE_TEST_SUITE_P.
inline std::string GoldenTestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

inline Golden LoadGolden(const std::string& name) {
  const std::filesystem::path root = PHALANX_SOURCE_DIR;
  Golden golden;
  golden.name = name;
  std::ifstream in(root / "tests/goldens/expected" / (name + ".json"));
  golden.expected = nlohmann::json::parse(in);
  if (name == "demo-model") {
    golden.directory = root / "launcher/demo-model";
  } else if (name == "tinystories-656k") {
    golden.directory = std::filesystem::path(PHALANX_SHARED_DIR) / "models" / name;
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
    // A NaN is an error of any size.
    max = error <= max ? max : std::isnan(error) ? HUGE_VAL : error;
    sum += error;
    ++count;
  }
  double mean() const { return sum / static_cast<double>(count); }
};

// Of the logprobs of ids[1], ids[2], ... by two decoders' logits [ids.size() - 1, vocab].
inline Errors LogprobDistance(const std::vector<int32_t>& ids, absl::Span<const float> a,
                              absl::Span<const float> b) {
  const size_t inputs = ids.size() - 1;
  const size_t vocab = a.size() / inputs;
  const auto kernels = kernels::CreateCpuKernels({});
  sampling::Sampler sampler(kernels->get(), static_cast<int64_t>(vocab), 8);
  Errors distance;
  for (size_t i = 0; i < inputs; ++i) {
    const auto logprob = [&](absl::Span<const float> logits) {
      return sampler.Logprobs(logits.subspan(i * vocab, vocab), ids[i + 1], 0).logprob;
    };
    distance.Add(std::abs(logprob(a) - logprob(b)));
  }
  return distance;
}

// Compares logits [inputs, vocab] with the golden's: F32 within `f32_error`, and the same most
// likely token where its lead is above that; BF16 and F16 no further from float32 than
// Transformers' own run in that type. Prints the distances.
// Of the distances the means, and where the sums are those of the processors that the golden was
// looked at on, the largest: another matrix unit's sums draw the errors anew, and of two draws of
// 64 either may have the largest (tests/goldens/README.md).
enum class Largest { kCompared, kPrinted };
inline void ExpectParity(const Golden& golden, absl::Span<const float> logits, double f32_error,
                         Largest largest = Largest::kCompared) {
  const std::vector<int32_t> ids = golden.expected["input_ids"];
  const size_t inputs = ids.size() - 1;
  const int64_t vocab = static_cast<int64_t>(logits.size() / inputs);
  auto kernels = kernels::CreateCpuKernels({});
  ASSERT_TRUE(kernels.ok());
  sampling::Sampler sampler(kernels->get(), vocab, 8);

  const bool f32 = golden.f32();
  const nlohmann::json& positions = golden.expected["positions"];
  ASSERT_EQ(positions.size(), inputs);
  ASSERT_GE(positions.size(), 64U);
  Errors target;
  Errors top;
  Errors native_target;
  Errors native_top;
  int argmax_differs = 0;
  for (size_t i = 0; i < inputs; ++i) {
    const nlohmann::json& want = positions[i];
    const absl::Span<const float> row = logits.subspan(i * vocab, vocab);
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
    if (f32 && want["lead"].get<double>() > f32_error) {
      EXPECT_TRUE(same) << "position " << i;
    }
  }
  ::testing::Test::RecordProperty("max_error", std::to_string(target.max));
  std::cout << golden.name << ": logprob error max " << target.max << " mean " << target.mean()
            << ", top-5 max " << top.max << " mean " << top.mean();
  if (f32) {
    std::cout << "\n";
    EXPECT_LE(target.max, f32_error);
    EXPECT_LE(top.max, f32_error);
    return;
  }
  std::cout << "; Transformers' own run: max " << native_target.max << " mean "
            << native_target.mean() << ", top-5 max " << native_top.max << " mean "
            << native_top.mean() << "; argmax differs at " << argmax_differs << "\n";
  if (largest == Largest::kCompared) {
    EXPECT_LE(target.max, native_target.max);
  }
  EXPECT_LE(target.mean(), native_target.mean());
  EXPECT_LE(top.mean(), native_top.mean());
}

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_GOLDEN_H_
