#include "launcher/fp8_matrices.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/checkpoint/families.h"

namespace phalanx::launcher {
namespace {

using checkpoint::Role;

// `coded`: whether the tensor is FP8. The first of the tensors that make a matrix stands for all.
std::vector<parallel::LayerMatrices> Matrices(const checkpoint::ModelConfig& config,
                                              const std::function<bool(Role, int64_t)>& coded) {
  if (!config.fp8.has_value()) return {};
  constexpr std::pair<Role, parallel::LayerMatrix> kFirst[] = {
      {Role::kQ, parallel::kQkv},
      {Role::kO, parallel::kO},
      {Role::kGate, parallel::kGateUp},
      {Role::kExpertGate, parallel::kGateUp},
      {Role::kDown, parallel::kDown},
      {Role::kExpertDown, parallel::kDown},
      {Role::kSharedGate, parallel::kSharedGateUp},
      {Role::kSharedDown, parallel::kSharedDown}};
  std::vector<parallel::LayerMatrices> out(config.num_layers);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const auto& [role, matrix] : kFirst) {
      if (checkpoint::HasRole(config, role, layer) && coded(role, layer)) out[layer] |= 1 << matrix;
    }
  }
  return out;
}

}  // namespace

LeftOutModules::LeftOutModules(const std::vector<std::string>& modules) {
  for (absl::string_view module : modules) {
    if (absl::ConsumePrefix(&module, "re:")) {
      auto pattern = tokenizer::Regex::Compile({module.data(), module.size()});
      if (pattern.ok()) patterns_.push_back(*std::move(pattern));
    } else if (!module.empty()) {
      parts_.push_back(absl::StrCat(".", module, "."));
    }
  }
}

bool LeftOutModules::Has(absl::string_view weight) const {
  const std::string module(absl::StripSuffix(weight, ".weight"));
  const std::string name = absl::StrCat(".", module, ".");
  const auto is_part = [&](const std::string& part) { return absl::StrContains(name, part); };
  const auto matches = [&](const auto& pattern) {
    tokenizer::RegexScratch scratch;
    std::vector<tokenizer::Match> found;
    return pattern->FindAll(module, &scratch, &found).ok() && !found.empty() && found[0].begin == 0;
  };
  return std::any_of(parts_.begin(), parts_.end(), is_part) ||
         std::any_of(patterns_.begin(), patterns_.end(), matches);
}

std::vector<parallel::LayerMatrices> Fp8Matrices(const checkpoint::Checkpoint& checkpoint) {
  return Matrices(checkpoint.config(), [&](Role role, int64_t layer) {
    const auto tensor = checkpoint.Find(role, layer);
    return tensor.ok() && tensor->dtype == kernels::DType::kF8E4M3;
  });
}

std::vector<parallel::LayerMatrices> Fp8Matrices(const checkpoint::ModelConfig& config) {
  const LeftOutModules left_out(config.fp8_left_out);
  return Matrices(config, [&](Role role, int64_t layer) {
    return !left_out.Has(checkpoint::TensorName(config, role, layer));
  });
}

}  // namespace phalanx::launcher
