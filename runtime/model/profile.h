// The numerics profile (R6 of the design): all that may differ between two runs whose bits are
// compared. One checkpoint and one profile give one answer, whatever the layout.
#ifndef PHALANX_RUNTIME_MODEL_PROFILE_H_
#define PHALANX_RUNTIME_MODEL_PROFILE_H_

#include <string>

#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::model {

struct Profile {
  kernels::DType weights = kernels::DType::kBF16;
  int reduction_leaves = 8;  // L of R2
  int sequence_stripes = 8;  // V of R3
  int64_t block_tokens = kernels::kBlockTokens;

  kernels::DType activations() const { return kernels::ActivationType(weights); }
  kernels::DType kv() const { return weights; }
  // "cpu-exact weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32".
  std::string ToString() const;
  friend bool operator==(const Profile&, const Profile&) = default;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_PROFILE_H_
