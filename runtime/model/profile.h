// The numerics profile (R6 of the design): all that may differ between two runs whose bits are
// compared. One checkpoint and one profile give one answer, whatever the layout; but for numerics
// `fast`, which name an order of sums that isn't fixed.
#ifndef PHALANX_RUNTIME_MODEL_PROFILE_H_
#define PHALANX_RUNTIME_MODEL_PROFILE_H_

#include <string>
#include <string_view>

#include "kernels/device.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::model {

struct Profile {
  // A GPU's bits are a profile of their own.
  kernels::DeviceKind device = kernels::DeviceKind::kCpu;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::DType weights = kernels::DType::kBF16;
  kernels::KvFormat kv = kernels::KvFormat::kPlain;  // plain: in the weights' type
  int reduction_leaves = 8;                          // L of R2
  int sequence_stripes = 8;                          // V of R3
  int64_t block_tokens = kernels::kBlockTokens;

  kernels::DType activations() const { return kernels::ActivationType(weights); }
  // Of the cache's storage: weights' type, or "F8_E4M3".
  std::string_view kv_name() const {
    return kv == kernels::KvFormat::kPlain ? kernels::Name(weights) : "F8_E4M3";
  }
  // Takes device and numerics from what a rank computes on.
  void ComputeOn(const kernels::DeviceOptions& options);
  // "cpu-exact weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32";
  // likewise "cuda-exact ...", "cuda-fast ...", and "kv=F8_E4M3".
  std::string ToString() const;
  friend bool operator==(const Profile&, const Profile&) = default;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_PROFILE_H_
