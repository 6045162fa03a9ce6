#include "runtime/control/conversions.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

namespace phalanx::control {
namespace {

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Through bytes, as between processes.
template <typename Proto, typename Value>
Value RoundTrip(const Value& value) {
  Proto proto;
  ToProto(value, &proto);
  std::string bytes;
  EXPECT_TRUE(proto.SerializeToString(&bytes));
  Proto parsed;
  EXPECT_TRUE(parsed.ParseFromString(bytes));
  auto result = FromProto(parsed);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

scheduler::StepPlan FullPlan() {
  scheduler::StepPlan plan;
  plan.epoch = std::numeric_limits<uint64_t>::max();
  plan.number = 3;
  plan.copies = {{4, 9}, {0, 2147483647}};
  scheduler::SequenceStep& a = plan.sequences.emplace_back();
  a.pending_slot = 3;
  a.sequence_id = std::numeric_limits<uint64_t>::max() - 1;
  a.token_ids = {0, 5, 151935};
  a.start = 64;
  a.block_table = {3, 1, 2};
  a.samples = {{7, 0}, {8, 4294967295u}};
  a.sampling.temperature = 0.7f;
  a.sampling.top_p = 0.9f;
  a.sampling.top_k = 40;
  a.sampling.min_p = 0.05f;
  a.sampling.repetition_penalty = 1.1f;
  a.sampling.frequency_penalty = -2.0f;
  a.sampling.presence_penalty = 2.0f;
  a.sampling.seed = 0xfedcba9876543210u;
  a.sampling.logit_bias = {{9, -100.0f}, {3, 1e-30f}, {9, 2.0f}};  // order and repeats stay
  a.sampling.logprobs = 0;
  a.sampling.prompt_logprobs = 5;
  a.suppressed = {2, 1};
  a.history = {1, 2, 3, 4};
  a.prompt_length = 66;
  a.next_prompt_token = 17;
  plan.sequences.emplace_back().token_ids = {1};
  return plan;
}

TEST(ConversionsTest, PlanSurvivesTheRoundTrip) {
  const scheduler::StepPlan plan = FullPlan();
  EXPECT_EQ(RoundTrip<v1::StepPlan>(plan), plan);
}

TEST(ConversionsTest, EmptyPlanAndResultSurviveTheRoundTrip) {
  EXPECT_EQ(RoundTrip<v1::StepPlan>(scheduler::StepPlan()), scheduler::StepPlan());
  EXPECT_EQ(RoundTrip<v1::StepResult>(scheduler::StepResult()), scheduler::StepResult());
}

TEST(ConversionsTest, ResultSurvivesTheRoundTrip) {
  scheduler::StepResult result;
  result.epoch = 2;
  result.number = 9;
  result.compute_us = 123456789012;
  result.expert_tokens = {0, 123456789012, 3};
  scheduler::SequenceResult& sequence = result.sequences.emplace_back();
  sequence.sequence_id = 77;
  sequence.samples.push_back({78, {-1, 0.0f, {}}});
  sequence.samples.push_back({79, {5, -0.1f, {{5, -0.1f}, {6, -3.5f}}}});
  sequence.prompt_logprobs.push_back({1, -2.0f, {{0, -1.0f}}});
  sequence.prompt_logprobs.push_back({2, -9.0f, {}});
  EXPECT_EQ(RoundTrip<v1::StepResult>(result), result);
}

TEST(ConversionsTest, EveryFloatKeepsItsBits) {
  std::vector<uint32_t> patterns = {0x00000000, 0x80000000, 0x00000001, 0x807fffff,
                                    0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345};
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) patterns.push_back(random());
  scheduler::StepResult result;
  scheduler::SequenceResult& sequence = result.sequences.emplace_back();
  for (uint32_t pattern : patterns) {
    const float value = FromBits(pattern);
    sequence.samples.push_back({1, {1, value, {{2, value}}}});
  }
  const scheduler::StepResult back = RoundTrip<v1::StepResult>(result);
  ASSERT_EQ(back.sequences[0].samples.size(), patterns.size());
  for (size_t i = 0; i < patterns.size(); ++i) {
    EXPECT_EQ(Bits(back.sequences[0].samples[i].token.logprob), patterns[i]);
    EXPECT_EQ(Bits(back.sequences[0].samples[i].token.top[0].logprob), patterns[i]);
  }
}

TEST(ConversionsTest, ColumnsOfUnequalLengthAreRefused) {
  v1::StepPlan plan;
  plan.add_sequences()->mutable_sampling()->add_logit_bias_ids(1);
  EXPECT_EQ(FromProto(plan).status().code(), absl::StatusCode::kInternal);

  v1::StepResult result;
  result.add_sequences()->add_samples()->mutable_token()->add_top_logprobs(1.0f);
  EXPECT_EQ(FromProto(result).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace phalanx::control
