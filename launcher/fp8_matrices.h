// Which matrices of a checkpoint's layers are FP8, for the planner.
#ifndef PHALANX_LAUNCHER_FP8_MATRICES_H_
#define PHALANX_LAUNCHER_FP8_MATRICES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "parallel/model_spec.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/tokenizer/regex.h"

namespace phalanx::launcher {

// Modules that a `quantization_config` leaves out: each a run of whole parts of their name
// ("self_attn", "model.layers.3"), or "re:" and a regular expression that matches the name from its
// beginning. One that can't be compiled, or takes too long to match, leaves nothing out.
class LeftOutModules {
 public:
  explicit LeftOutModules(const std::vector<std::string>& modules);
  // `weight`: "model.layers.3.mlp.up_proj.weight".
  bool Has(absl::string_view weight) const;

 private:
  std::vector<std::string> parts_;  // ".self_attn."
  std::vector<std::unique_ptr<const tokenizer::Regex>> patterns_;
};

// Of each layer, [num_layers]; empty where none is. By the tensors, or where they aren't at hand by
// what the configuration says.
std::vector<parallel::LayerMatrices> Fp8Matrices(const checkpoint::Checkpoint& checkpoint);
std::vector<parallel::LayerMatrices> Fp8Matrices(const checkpoint::ModelConfig& config);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_FP8_MATRICES_H_
