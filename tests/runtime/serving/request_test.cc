#include "runtime/serving/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/serving/text_decoder.h"
#include "tests/runtime/serving/byte_tokenizer.h"

namespace phalanx::serving {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;

ModelInfo Model() {
  ModelInfo model;
  model.name = "m";
  model.context_length = 100;
  model.vocab_size = 300;
  return model;
}

std::string Text(const absl::Status& status) { return std::string(status.message()); }

TEST(ToCoordinatorRequest, WithoutATokenizerAPromptIsIds) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  const auto got = ToCoordinatorRequest(request, Model(), nullptr);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(got->prompt_token_ids, ::testing::ElementsAre(5));
  request.set_text("a");
  EXPECT_EQ(ToCoordinatorRequest(request, Model(), nullptr).status().message(),
            "text: the model has no tokenizer; send token_ids");
}

TEST(RequestTest, AbsentFieldsTakeTheDocumentedDefaults) {
  v1::GenerateRequest request;
  request.set_text("hi");
  const auto got = ToCoordinatorRequest(request, Model(), ByteTokenizer());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(got->prompt_token_ids, ElementsAre(ByteTokenizer::kBos, 'h', 'i'));
  sampling::SamplingParams neutral;
  neutral.temperature = 0;  // greedy, as no generation_config.json asks for sampling
  EXPECT_EQ(got->sampling, neutral);
  EXPECT_FALSE(got->seed.has_value());
  EXPECT_FALSE(got->max_tokens.has_value());
  EXPECT_EQ(got->min_tokens, 0);
  EXPECT_EQ(got->n, 1);
  EXPECT_TRUE(got->skip_special_tokens);
}

TEST(RequestTest, GenerationConfigFillsWhatIsAbsentAndOnlyThat) {
  ModelInfo model = Model();
  model.defaults.do_sample = true;
  model.defaults.temperature = 0.6;
  model.defaults.top_p = 0.9;
  model.defaults.top_k = 20;
  model.defaults.min_p = 0.1;
  model.defaults.repetition_penalty = 1.1;
  model.defaults.max_new_tokens = 40;
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(1);
  request.mutable_sampling()->set_top_p(1.0f);  // the neutral value, but said
  const auto got = ToCoordinatorRequest(request, model, ByteTokenizer());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->sampling.temperature, 0.6f);
  EXPECT_EQ(got->sampling.top_p, 1.0f);
  EXPECT_EQ(got->sampling.top_k, 20);
  EXPECT_EQ(got->sampling.min_p, 0.1f);
  EXPECT_EQ(got->sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(got->max_tokens, 40);

  model.defaults.do_sample = false;
  EXPECT_EQ(ToCoordinatorRequest(request, model, ByteTokenizer())->sampling.temperature, 0.0f);
  EXPECT_EQ(DefaultSampling(model).max_tokens(), 40);

  // min_tokens that are asked for outweigh a default maximum.
  request.mutable_sampling()->set_min_tokens(41);
  EXPECT_FALSE(ToCoordinatorRequest(request, model, ByteTokenizer())->max_tokens.has_value());
}

TEST(RequestTest, EveryFieldArrives) {
  v1::GenerateRequest request;
  request.set_request_id("id");
  request.set_model("m");
  request.set_text("a");
  request.set_add_special_tokens(false);
  request.set_cache_salt("salt");
  request.set_show_special_tokens(true);
  v1::SamplingParams* s = request.mutable_sampling();
  s->set_temperature(0.0f);
  s->set_top_k(3);
  s->set_min_p(0.25f);
  s->set_frequency_penalty(0.5f);
  s->set_presence_penalty(-0.5f);
  s->set_repetition_penalty(1.5f);
  s->set_seed(0);
  (*s->mutable_logit_bias())[9] = 1.0f;
  (*s->mutable_logit_bias())[3] = -2.0f;
  s->set_n(2);
  s->set_max_tokens(2147483648);
  s->set_min_tokens(1);
  s->add_stop("x");
  s->add_stop_token_ids(7);
  s->set_ignore_eos(true);
  s->set_logprobs(0);
  s->set_prompt_logprobs(2);
  const auto got = ToCoordinatorRequest(request, Model(), ByteTokenizer());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->id, "id");
  EXPECT_THAT(got->prompt_token_ids, ElementsAre('a'));
  EXPECT_EQ(got->cache_salt, "salt");
  EXPECT_FALSE(got->skip_special_tokens);
  EXPECT_EQ(got->sampling.temperature, 0.0f);
  EXPECT_EQ(got->sampling.top_k, 3);
  EXPECT_EQ(got->sampling.min_p, 0.25f);
  EXPECT_EQ(got->sampling.frequency_penalty, 0.5f);
  EXPECT_EQ(got->sampling.presence_penalty, -0.5f);
  EXPECT_EQ(got->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(got->seed, 0u);
  EXPECT_THAT(got->sampling.logit_bias, ElementsAre(Pair(3, -2.0f), Pair(9, 1.0f)));
  EXPECT_EQ(got->n, 2);
  EXPECT_EQ(got->max_tokens, 2147483648);  // refused by the coordinator, not wrapped here
  EXPECT_EQ(got->min_tokens, 1);
  EXPECT_THAT(got->stop, ElementsAre("x"));
  EXPECT_THAT(got->stop_token_ids, ElementsAre(7));
  EXPECT_TRUE(got->ignore_eos);
  EXPECT_EQ(got->sampling.logprobs, 0);
  EXPECT_EQ(got->sampling.prompt_logprobs, 2);
}

TEST(RequestTest, WhatIsWrongIsNamed) {
  v1::GenerateRequest request;
  EXPECT_THAT(Text(ToCoordinatorRequest(request, Model(), ByteTokenizer()).status()),
              StartsWith("prompt:"));
  request.set_text("");
  EXPECT_THAT(Text(ToCoordinatorRequest(request, Model(), ByteTokenizer()).status()),
              StartsWith("text:"));
  ModelInfo model = Model();
  model.max_prompt_bytes = 3;
  request.set_text("long");
  const absl::Status too_long = ToCoordinatorRequest(request, model, ByteTokenizer()).status();
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(too_long), HasSubstr("text: 4 bytes"));
  request.mutable_sampling()->set_logprobs(-1);
  EXPECT_THAT(Text(ToCoordinatorRequest(request, Model(), ByteTokenizer()).status()),
              StartsWith("sampling.logprobs: found -1"));
  request.set_model("other");
  EXPECT_EQ(ToCoordinatorRequest(request, Model(), ByteTokenizer()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(RequestTest, TheCoordinatorsFieldNamesBecomeThoseOfTheProto) {
  const auto renamed = [](absl::string_view message, bool from_text) {
    return Text(WithPublicFieldName(absl::InvalidArgumentError(message), from_text));
  };
  EXPECT_EQ(renamed("temperature: x", true), "sampling.temperature: x");
  EXPECT_EQ(renamed("prompt: x", true), "text: x");
  EXPECT_EQ(renamed("prompt_token_ids: x", false), "token_ids: x");
  EXPECT_EQ(renamed("cache_salt: x", true), "cache_salt: x");
  EXPECT_EQ(WithPublicFieldName(absl::UnavailableError("n: x"), true),
            absl::UnavailableError("n: x"));
}

TEST(RequestTest, MaxPromptBytesCoversTheLongestToken) {
  EXPECT_EQ(MaxPromptBytes(ByteTokenizer(), 10), 4 * 10 * 5);  // "<bos>"
}

}  // namespace
}  // namespace phalanx::serving
