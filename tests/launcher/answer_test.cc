#include "launcher/answer.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace phalanx::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ToJson, HasTheFieldsOfTheDesign) {
  Answer answer;
  answer.prompt_token_ids = {1, 2};
  answer.token_ids = {3};
  answer.text = "a \"quote\"\n";
  answer.finish_reason = "length";
  answer.has_logprobs = true;
  answer.logprobs = {{3, -0.5f, {{3, -0.5f}, {4, -1.25f}}}};
  answer.layout = "tp=2";
  answer.preemptions = 3;
  const nlohmann::json json = nlohmann::json::parse(ToJson(answer));
  EXPECT_EQ(json["prompt_token_ids"], nlohmann::json({1, 2}));
  EXPECT_EQ(json["token_ids"], nlohmann::json({3}));
  EXPECT_EQ(json["text"], "a \"quote\"\n");
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(json["logprobs"][0]["id"], 3);
  EXPECT_EQ(json["logprobs"][0]["top"][1]["logprob"], -1.25);
  EXPECT_EQ(json["layout"], "tp=2");
  EXPECT_TRUE(json["timings"].contains("total_ms"));
  EXPECT_EQ(json["timings"]["preemptions"], 3);
  EXPECT_FALSE(json.contains("index"));
  EXPECT_FALSE(json.contains("error"));
  EXPECT_FALSE(json.contains("prompt_logprobs"));
}

TEST(ToJson, NamesTheSampleAndTheError) {
  Answer answer;
  answer.index = 2;
  answer.finish_reason = "error";
  answer.error = "why";
  const nlohmann::json json = nlohmann::json::parse(ToJson(answer));
  EXPECT_EQ(json["index"], 2);
  EXPECT_EQ(json["error"], "why");
  EXPECT_TRUE(json["logprobs"].is_null());
}

TEST(ToJson, PrintsLogprobsSoThatEqualTextIsEqualBits) {
  std::mt19937 rng(3);
  for (int i = 0; i < 2000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(rng());
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    if (!std::isfinite(value)) continue;
    Answer answer;
    answer.has_logprobs = true;
    answer.logprobs = {{1, value, {}}};
    const std::string text = ToJson(answer);
    const size_t at = text.find("\"logprob\":") + 10;
    const float back = std::strtof(text.c_str() + at, nullptr);
    EXPECT_EQ(std::memcmp(&back, &value, sizeof(value)), 0) << text;
  }
}

TEST(ToJson, MinusInfinityIsNullAndBadBytesAreReplaced) {
  Answer answer;
  answer.has_logprobs = true;
  answer.logprobs = {{1, -std::numeric_limits<float>::infinity(), {}}};
  answer.text = "\xff";
  const std::string text = ToJson(answer);
  EXPECT_THAT(text, HasSubstr("\"logprob\":null"));
  EXPECT_THAT(text, Not(HasSubstr("inf")));
  EXPECT_EQ(nlohmann::json::parse(text)["text"], "\xEF\xBF\xBD");
}

TEST(ToText, SaysWhichAnswerItIsAndHowItEnded) {
  Prompt prompt;
  prompt.text = "Once";
  Answer answer;
  answer.text = " more";
  answer.token_ids = {7, 8};
  answer.finish_reason = "stop";
  EXPECT_EQ(ToText(answer, prompt, 3, /*has_text=*/true), "== prompt 3 (stop)\nOnce more\n");
  answer.index = 1;
  EXPECT_EQ(ToText(answer, prompt, 3, true), "== prompt 3, answer 2 (stop)\nOnce more\n");
  answer.index.reset();
  answer.finish_reason = "error";
  answer.error = "why";
  prompt = Prompt();
  prompt.is_text = false;
  EXPECT_EQ(ToText(answer, prompt, 1, /*has_text=*/false), "== prompt 1 (error: why)\n7,8\n");
}

}  // namespace
}  // namespace phalanx::launcher
