// Expected values: inv_freq and attention_scaling of Transformers 5's LlamaRotaryEmbedding for the
// same parameters, in float32.
#include "runtime/checkpoint/rope_scaling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace phalanx::checkpoint {
namespace {

void ExpectFrequencies(const std::vector<float>& expected, const std::vector<float>& found) {
  ASSERT_EQ(expected.size(), found.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    // One rounding of a power may differ between torch and us.
    EXPECT_NEAR(expected[i], found[i], expected[i] * 2.4e-7f) << "frequency " << i;
  }
}

TEST(RopeScalingTest, DefaultIsPowersOfTheta) {
  const RopeFrequencies rope = ComputeRopeFrequencies(RopeParameters{}, 16);
  EXPECT_EQ(rope.attention_factor, 1.0f);
  ExpectFrequencies({0x1p+0, 0x1.43d136p-2, 0x1.99999ap-4, 0x1.030dc6p-5, 0x1.47ae14p-7,
                     0x1.9e7c70p-9, 0x1.0624dep-10, 0x1.4b96c0p-12},
                    rope.inv_freq);
}

TEST(RopeScalingTest, LinearDividesEveryFrequency) {
  const RopeFrequencies rope =
      ComputeRopeFrequencies({.type = RopeType::kLinear, .factor = 4.0}, 16);
  EXPECT_EQ(rope.attention_factor, 1.0f);
  ExpectFrequencies({0x1p-2, 0x1.43d136p-4, 0x1.99999ap-6, 0x1.030dc6p-7, 0x1.47ae14p-9,
                     0x1.9e7c70p-11, 0x1.0624dep-12, 0x1.4b96c0p-14},
                    rope.inv_freq);
}

TEST(RopeScalingTest, Llama3KeepsShortScalesLongAndBlendsBetween) {
  const RopeFrequencies rope = ComputeRopeFrequencies({.type = RopeType::kLlama3,
                                                       .theta = 500000.0,
                                                       .factor = 32.0,
                                                       .low_freq_factor = 1.0,
                                                       .high_freq_factor = 4.0,
                                                       .original_max_position_embeddings = 8192},
                                                      64);
  EXPECT_EQ(rope.attention_factor, 1.0f);
  ExpectFrequencies({0x1p+0,         0x1.53c38cp-1,  0x1.c2ef78p-2,  0x1.2b3dc6p-2,  0x1.8d2760p-3,
                     0x1.078d40p-3,  0x1.5dc95ap-4,  0x1.d03ccep-5,  0x1.341190p-5,  0x1.98de92p-6,
                     0x1.0f5386p-6,  0x1.681adap-7,  0x1.ddee9ep-8,  0x1.3d2804p-8,  0x1.a4ee40p-9,
                     0x1.524f36p-10, 0x1.c26c40p-12, 0x1.9731eep-14, 0x1.46831ap-16, 0x1.b15902p-17,
                     0x1.1f91f0p-17, 0x1.7da9e8p-18, 0x1.fa8b86p-19, 0x1.5024d6p-19, 0x1.be2188p-20,
                     0x1.280d96p-20, 0x1.88ec20p-21, 0x1.04be68p-21, 0x1.5a0f4ep-22, 0x1.cb4a9ap-23,
                     0x1.30c94ep-23, 0x1.948360p-24},
                    rope.inv_freq);
}

TEST(RopeScalingTest, YarnRampsBetweenItsBetas) {
  const RopeFrequencies rope = ComputeRopeFrequencies(
      {.type = RopeType::kYarn, .factor = 4.0, .original_max_position_embeddings = 128}, 24);
  EXPECT_EQ(rope.attention_factor, 1.13862943649292f);
  ExpectFrequencies({0x1p+0, 0x1.822e22p-2, 0x1.13c482p-3, 0x1.666668p-5, 0x1.7c3d2ap-7,
                     0x1.60fb8cp-8, 0x1.47ae14p-9, 0x1.3030f4p-10, 0x1.1a62d2p-11, 0x1.0624dep-12,
                     0x1.e6b4b8p-14, 0x1.c3d14ep-15},
                    rope.inv_freq);
}

TEST(RopeScalingTest, YarnHonoursMscaleBetasAndTruncate) {
  const RopeFrequencies rope = ComputeRopeFrequencies({.type = RopeType::kYarn,
                                                       .factor = 40.0,
                                                       .original_max_position_embeddings = 4096,
                                                       .mscale = 1.0,
                                                       .mscale_all_dim = 0.707,
                                                       .beta_fast = 16,
                                                       .beta_slow = 2,
                                                       .truncate = false},
                                                      24);
  EXPECT_EQ(rope.attention_factor, 1.0857263803482056f);
  ExpectFrequencies({0x1p+0, 0x1.db4c78p-2, 0x1.b93a6ap-3, 0x1.99999ap-4, 0x1.7c3d2ap-5,
                     0x1.4b6912p-6, 0x1.7b75d4p-8, 0x1.0aa2bap-10, 0x1.c3d14ep-15, 0x1.a36e2ep-16,
                     0x1.855d60p-17, 0x1.69743ep-18},
                    rope.inv_freq);
}

TEST(RopeScalingTest, GivenAttentionFactorWins) {
  const RopeFrequencies rope = ComputeRopeFrequencies({.type = RopeType::kYarn,
                                                       .factor = 4.0,
                                                       .original_max_position_embeddings = 128,
                                                       .attention_factor = 1.5,
                                                       .mscale = 1.0,
                                                       .mscale_all_dim = 0.5},
                                                      24);
  EXPECT_EQ(rope.attention_factor, 1.5f);
}

}  // namespace
}  // namespace phalanx::checkpoint
