// The numerics profile (R6 of the design): all that may differ between two runs whose bits are
// compared. One checkpoint and one profile give one answer, whatever the layout; but for numerics
// `fast`, which name an order of sums that isn't fixed.
#ifndef PHALANX_RUNTIME_MODEL_PROFILE_H_
#define PHALANX_RUNTIME_MODEL_PROFILE_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::model {

struct Profile {
  // A GPU's bits are a profile of their own.
  kernels::DeviceKind device = kernels::DeviceKind::kCpu;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::DType weights = kernels::DType::kBF16;
  // Of the layers' products (attention, MLP, experts); embedding, head, routers and vectors stay in
  // the checkpoint's type.
  kernels::WeightFormat weight_format = kernels::WeightFormat::kPlain;
  kernels::KvFormat kv = kernels::KvFormat::kPlain;  // plain: in the weights' type
  int reduction_leaves = 8;                          // L of R2
  int sequence_stripes = 8;                          // V of R3
  int64_t block_tokens = kernels::kBlockTokens;

  kernels::DType activations() const { return kernels::ActivationType(weights); }
  // Of the layers' products: the checkpoint's type, or "F8_E4M3".
  std::string_view weight_name() const {
    return weight_format == kernels::WeightFormat::kPlain ? kernels::Name(weights) : "F8_E4M3";
  }
  // Of the cache's storage: the checkpoint's type, or "F8_E4M3".
  std::string_view kv_name() const {
    return kv == kernels::KvFormat::kPlain ? kernels::Name(weights) : "F8_E4M3";
  }
  // Takes device and numerics from what a rank computes on.
  void ComputeOn(const kernels::DeviceOptions& options);
  // "cpu-exact weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32";
  // likewise "cuda-exact ...", "cuda-fast ...", "weights=F8_E4M3" and "kv=F8_E4M3".
  std::string ToString() const;
  // Takes the type of a checkpoint's weights, and FP8 where they have it. INVALID_ARGUMENT where
  // FP8 was asked for and is not made of weights of that type.
  absl::Status HoldWeightsOf(const checkpoint::ModelConfig& config);
  friend bool operator==(const Profile&, const Profile&) = default;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_PROFILE_H_
