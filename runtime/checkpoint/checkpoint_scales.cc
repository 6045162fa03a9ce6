// The scales of FP8 matrices: quantization.h.
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/fp8_weights.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/elements.h"
#include "runtime/checkpoint/quantization.h"

namespace phalanx::checkpoint {

std::string Checkpoint::ScaleName(const std::string& weight) const {
  for (const absl::string_view suffix : kScaleSuffixes) {
    std::string name = absl::StrCat(weight, suffix);
    if (tensors_.contains(name)) return name;
  }
  return "";
}

absl::StatusOr<ScaleRef> Checkpoint::FindScales(const std::string& weight,
                                                const Shape& shape) const {
  ScaleRef out;
  out.name = ScaleName(weight);
  if (out.name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        directory_, ": tensor ", weight, " has dtype ", kFp8, ", but neither ", weight,
        kScaleSuffixes[0], " nor ", weight, kScaleSuffixes[1], " is there; expected its scales"));
  }
  const Location& at = tensors_.at(out.name);
  const SafetensorsFile& file = *files_[at.file];
  const auto dtype = SupportedDType(at.info->dtype);
  const auto block =
      ScaleBlock(config_.fp8.value_or(Fp8Scheme{}), shape[0], shape[1], at.info->shape);
  if (!dtype.has_value() || !block.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": tensor ", out.name, " of ", at.info->dtype, " has shape ",
        ShapeString(at.info->shape), "; expected F32, BF16 or F16, one scale for ", weight, " ",
        ShapeString(shape), ", for each of its rows, or for each block that config.json names"));
  }
  out.dtype = *dtype;
  out.data = file.data(*at.info);
  out.block = *block;
  out.rows = (shape[0] + block->block_rows - 1) / block->block_rows;
  out.columns = (shape[1] + block->block_columns - 1) / block->block_columns;
  if (out.columns > 1 && block->block_columns % kernels::kFp8GroupValues != 0) {
    return absl::UnimplementedError(absl::StrCat(directory_, ": config.json asks for blocks of ",
                                                 block->block_columns, " columns; multiples of ",
                                                 kernels::kFp8GroupValues, " are read"));
  }
  return out;
}

int64_t Checkpoint::NumParameters() const {
  absl::flat_hash_set<std::string> scales;
  for (const auto& [name, location] : tensors_) {
    if (location.info->dtype == kFp8) scales.insert(ScaleName(name));
  }
  int64_t total = 0;
  for (const auto& [name, location] : tensors_) {
    if (scales.contains(name) || (config_.fp8.has_value() && IsActivationScale(name))) continue;
    total += NumElements(location.info->shape);
  }
  return total;
}

absl::StatusOr<std::vector<float>> Checkpoint::ReadScales(const TensorRef& tensor) const {
  const ScaleRef& scales = tensor.scales;
  std::vector<float> out(scales.rows * scales.columns);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = ElementAt(scales.data, scales.dtype, static_cast<int64_t>(i));
    if (out[i] == 0 || (out[i] >= kernels::kLeastFp8Scale && out[i] <= kernels::kMostFp8Scale)) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(directory_, ": tensor ", scales.name, " has ",
                                                   out[i], " at element ", i,
                                                   "; expected scales of 0 or from 2^-90 to 128"));
  }
  return out;
}

}  // namespace phalanx::checkpoint
