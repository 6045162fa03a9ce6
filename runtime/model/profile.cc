#include "runtime/model/profile.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace phalanx::model {

void Profile::ComputeOn(const kernels::DeviceOptions& options) {
  device = options.kind;
  // A CPU has one.
  numerics = options.kind == kernels::DeviceKind::kCuda ? options.cuda.numerics
                                                        : kernels::Numerics::kExact;
}

std::string Profile::ToString() const {
  const auto view = [](std::string_view text) {
    return absl::string_view(text.data(), text.size());
  };
  const auto name = [&](auto value) { return view(kernels::Name(value)); };
  return absl::StrCat(name(device), "-", name(numerics), " weights=", view(weight_name()),
                      " activations=", name(activations()), " kv=", view(kv_name()),
                      " leaves=", reduction_leaves, " stripes=", sequence_stripes,
                      " block=", block_tokens);
}

absl::Status Profile::HoldWeightsOf(const checkpoint::ModelConfig& config) {
  weights = config.weight_dtype;
  if (config.fp8.has_value()) {
    weight_format =
        config.fine_scales ? kernels::WeightFormat::kF8E4M3Fine : kernels::WeightFormat::kF8E4M3;
  }
  if (weight_format == kernels::WeightFormat::kPlain || weights == kernels::DType::kBF16) {
    return absl::OkStatus();
  }
  const std::string_view found = kernels::Name(weights);
  return absl::InvalidArgumentError(
      absl::StrCat("--weight-dtype fp8_e4m3: the checkpoint's weights are ",
                   absl::string_view(found.data(), found.size()),
                   ", and FP8 is made of BF16 alone; leave --weight-dtype auto, or convert the "
                   "checkpoint to BF16"));
}

}  // namespace phalanx::model
