#include "runtime/checkpoint/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace phalanx::checkpoint {
namespace {

constexpr double kPi = std::numbers::pi;

// base ^ (2i / dim) in float32 for each i: the exponent is rounded to float first, as torch does.
std::vector<float> PositionFrequencies(double theta, int64_t dim) {
  const auto base = static_cast<long double>(static_cast<float>(theta));
  std::vector<float> powers(dim / 2);
  for (int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    powers[i] = static_cast<float>(std::pow(base, static_cast<long double>(exponent)));
  }
  return powers;
}

// Interpolates between scaled and unscaled by wavelength: long ones are scaled, short ones kept.
void ApplyLlama3(const RopeParameters& rope, std::vector<float>& inv_freq) {
  const double original = static_cast<double>(rope.original_max_position_embeddings);
  const auto low_wavelength = static_cast<float>(original / rope.low_freq_factor);
  const auto high_wavelength = static_cast<float>(original / rope.high_freq_factor);
  const auto factor = static_cast<float>(rope.factor);
  const auto low_freq_factor = static_cast<float>(rope.low_freq_factor);
  const auto span = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  for (float& value : inv_freq) {
    const float wavelength = (1.0f / value) * static_cast<float>(2 * kPi);
    if (wavelength > low_wavelength) {
      value = value / factor;
    } else if (!(wavelength < high_wavelength)) {
      const float smooth =
          ((1.0f / wavelength) * static_cast<float>(original) - low_freq_factor) / span;
      value = (1.0f - smooth) * value / factor + smooth * value;
    }
  }
}

double YarnMagnitude(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

float YarnAttentionFactor(const RopeParameters& rope) {
  if (rope.attention_factor.has_value()) return static_cast<float>(*rope.attention_factor);
  const double mscale = rope.mscale.value_or(0.0);
  const double mscale_all_dim = rope.mscale_all_dim.value_or(0.0);
  if (mscale != 0.0 && mscale_all_dim != 0.0) {
    return static_cast<float>(YarnMagnitude(rope.factor, mscale) /
                              YarnMagnitude(rope.factor, mscale_all_dim));
  }
  return static_cast<float>(YarnMagnitude(rope.factor, 1.0));
}

// Dimensions that turn often within the original context are kept, those that turn seldom are
// scaled, with a ramp between.
std::vector<float> YarnFrequencies(const RopeParameters& rope, int64_t dim) {
  const double original = static_cast<double>(rope.original_max_position_embeddings);
  const auto correction_dim = [&](double rotations) {
    return (static_cast<double>(dim) * std::log(original / (rotations * 2 * kPi))) /
           (2 * std::log(rope.theta));
  };
  double low = correction_dim(rope.beta_fast);
  double high = correction_dim(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;

  const std::vector<float> powers = PositionFrequencies(rope.theta, dim);
  const auto factor = static_cast<float>(rope.factor);
  std::vector<float> inv_freq(powers.size());
  for (size_t i = 0; i < powers.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float extrapolation_share = 1.0f - ramp;
    const float extrapolation = 1.0f / powers[i];
    const float interpolation = 1.0f / (factor * powers[i]);
    inv_freq[i] =
        interpolation * (1.0f - extrapolation_share) + extrapolation * extrapolation_share;
  }
  return inv_freq;
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const RopeParameters& rope, int64_t rotary_dim) {
  RopeFrequencies result;
  if (rope.type == RopeType::kYarn) {
    result.inv_freq = YarnFrequencies(rope, rotary_dim);
    result.attention_factor = YarnAttentionFactor(rope);
    return result;
  }
  result.inv_freq = PositionFrequencies(rope.theta, rotary_dim);
  for (float& value : result.inv_freq) value = 1.0f / value;
  if (rope.type == RopeType::kLinear) {
    for (float& value : result.inv_freq) value /= static_cast<float>(rope.factor);
  } else if (rope.type == RopeType::kLlama3) {
    ApplyLlama3(rope, result.inv_freq);
  }
  return result;
}

}  // namespace phalanx::checkpoint
