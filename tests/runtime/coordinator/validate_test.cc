#include "runtime/coordinator/validate.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::coordinator {
namespace {

using ::testing::StartsWith;

ModelLimits Limits() {
  ModelLimits limits;
  limits.vocab_size = 100;
  limits.eos_token_ids = {99};
  limits.max_context = 32;
  return limits;
}

GenerateRequest Good() {
  GenerateRequest r;
  r.prompt_token_ids = {1, 2, 99};
  return r;
}

struct Case {
  std::string field;  // that the message begins with; empty: the request is good
  std::function<void(GenerateRequest&)> change;
};

void Check(const std::vector<Case>& cases) {
  for (size_t i = 0; i < cases.size(); ++i) {
    GenerateRequest r = Good();
    cases[i].change(r);
    const absl::Status status = ValidateRequest(r, Limits(), true);
    if (cases[i].field.empty()) {
      EXPECT_TRUE(status.ok()) << "case " << i << ": " << status;
      continue;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "case " << i;
    EXPECT_THAT(std::string(status.message()), StartsWith(cases[i].field + ":")) << "case " << i;
  }
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(ValidateRequest, ChecksThePrompt) {
  Check({
      {"", [](auto&) {}},
      {"prompt", [](auto& r) { r.prompt_token_ids.clear(); }},
      {"", [](auto& r) { r.prompt_token_ids.assign(31, 1); }},
      {"prompt", [](auto& r) { r.prompt_token_ids.assign(32, 1); }},
      {"prompt_token_ids", [](auto& r) { r.prompt_token_ids[1] = 100; }},
      {"prompt_token_ids", [](auto& r) { r.prompt_token_ids[1] = -1; }},
  });
}

TEST(ValidateRequest, ChecksSampling) {
  Check({
      {"", [](auto& r) { r.sampling.temperature = 0; }},
      {"temperature", [](auto& r) { r.sampling.temperature = kNan; }},
      {"temperature", [](auto& r) { r.sampling.temperature = -0.5f; }},
      {"temperature", [](auto& r) { r.sampling.temperature = kInf; }},
      {"", [](auto& r) { r.sampling.top_p = 1e-6f; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 0; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 1.01f; }},
      {"top_p", [](auto& r) { r.sampling.top_p = kNan; }},
      {"top_k", [](auto& r) { r.sampling.top_k = -1; }},
      {"", [](auto& r) { r.sampling.top_k = 1000000; }},
      {"min_p", [](auto& r) { r.sampling.min_p = 1.5f; }},
      {"min_p", [](auto& r) { r.sampling.min_p = kNan; }},
      {"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = 0; }},
      {"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = kNan; }},
      {"frequency_penalty", [](auto& r) { r.sampling.frequency_penalty = 2.5f; }},
      {"presence_penalty", [](auto& r) { r.sampling.presence_penalty = -kInf; }},
      {"", [](auto& r) { r.sampling.logprobs = 0; }},
      {"", [](auto& r) { r.sampling.logprobs = 100; }},
      {"logprobs", [](auto& r) { r.sampling.logprobs = 101; }},
      {"logprobs", [](auto& r) { r.sampling.logprobs = -2; }},
      {"prompt_logprobs", [](auto& r) { r.sampling.prompt_logprobs = 129; }},
      {"",
       [](auto& r) {
         r.sampling.logit_bias = {{5, -100.0f}, {6, 1.0f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{5, kNan}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{5, 1.0f}, {5, 2.0f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias.assign(5000, {1, 1.0f});
       }},
      {"", [](auto& r) { r.seed = ~uint64_t{0}; }},
  });
}

std::vector<int32_t> Ids(int32_t count) {
  std::vector<int32_t> ids(count);
  for (int32_t i = 0; i < count; ++i) ids[i] = i;
  return ids;
}

TEST(ValidateRequest, ChecksCountsAndStops) {
  Check({
      {"", [](auto& r) { r.max_tokens = 2147483647; }},
      {"max_tokens", [](auto& r) { r.max_tokens = -1; }},
      {"max_tokens", [](auto& r) { r.max_tokens = 0; }},
      {"max_tokens", [](auto& r) { r.max_tokens = int64_t{1} << 31; }},
      {"min_tokens", [](auto& r) { r.min_tokens = -1; }},
      {"min_tokens", [](auto& r) { r.max_tokens = 3, r.min_tokens = 4; }},
      {"n", [](auto& r) { r.n = 0; }},
      {"n", [](auto& r) { r.n = 129; }},
      {"stop_token_ids", [](auto& r) { r.stop_token_ids = {100}; }},
      {"stop_token_ids", [](auto& r) { r.stop_token_ids.assign(1025, 1); }},
      {"stop_token_ids", [](auto& r) { r.min_tokens = 1, r.stop_token_ids = Ids(100); }},
      {"", [](auto& r) { r.min_tokens = 1, r.ignore_eos = true, r.stop_token_ids = Ids(99); }},
      {"stop_token_ids", [](auto& r) { r.min_tokens = 1, r.stop_token_ids = Ids(99); }},
      {"", [](auto& r) { r.min_tokens = 1, r.stop_token_ids = Ids(98); }},
      {"", [](auto& r) { r.stop_token_ids = Ids(100); }},
      {"",
       [](auto& r) {
         r.stop = {"a", "\n\n"};
       }},
      {"stop", [](auto& r) { r.stop = {""}; }},
      {"stop", [](auto& r) { r.stop.assign(65, "a"); }},
      {"stop", [](auto& r) { r.stop = {std::string(1025, 'a')}; }},
      {"request_id", [](auto& r) { r.id = std::string(257, 'a'); }},
      {"cache_salt", [](auto& r) { r.cache_salt = std::string(257, 'a'); }},
  });
}

TEST(ValidateRequest, RefusesStopStringsWithoutATokenizer) {
  GenerateRequest r = Good();
  r.stop = {"a"};
  EXPECT_THAT(std::string(ValidateRequest(r, Limits(), false).message()), StartsWith("stop:"));
}

}  // namespace
}  // namespace phalanx::coordinator
