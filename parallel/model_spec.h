// What planning needs to know of a model and of the layout in memory that a device's kernels use.
// Values; filled by whoever has read the checkpoint's configuration.
#ifndef PHALANX_PARALLEL_MODEL_SPEC_H_
#define PHALANX_PARALLEL_MODEL_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/shard.h"

namespace phalanx::parallel {

// Matrices of a layer, as a rank holds them. Of experts kGateUp and kDown stand for those of all.
enum LayerMatrix { kQkv, kO, kGateUp, kDown, kSharedGateUp, kSharedDown, kNumLayerMatrices };
// Some of a layer's: bit 1 << LayerMatrix.
using LayerMatrices = uint8_t;
inline constexpr LayerMatrices kAllLayerMatrices = (1 << kNumLayerMatrices) - 1;

struct ModelSpec {
  std::string name;
  DecoderShape shape;
  int64_t element_bytes = 2;     // of weights, embedding and, without fp8_kv, KV cache
  int64_t activation_bytes = 2;  // of a matmul's left operand
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  bool shared_expert_gate = false;
  // What of each layer is kept as codes of one byte, [num_layers]; empty: nothing is.
  std::vector<LayerMatrices> fp8_matrices = {};
  bool fine_scales = false;   // codes have scales of F32
  bool fp8_kv = false;        // keys and values are
  bool tied_head = false;     // the head is the embedding's matrix: counts once as parameters
  int64_t max_positions = 0;  // context length in tokens
  // Attention window of each layer in tokens, 0: none. [num_layers]; empty: no layer has one.
  std::vector<int64_t> windows = {};

  LayerMatrices fp8(int64_t layer) const { return fp8_matrices.empty() ? 0 : fp8_matrices[layer]; }
  // Bytes of 32 values of a matrix, of one of a layer that has `fp8`: there as many codes, and a
  // scale.
  int64_t group_bytes(LayerMatrix matrix, LayerMatrices fp8) const {
    return (fp8 >> matrix & 1) == 0 ? 32 * element_bytes : fine_scales ? 36 : 34;
  }
  // Bytes of a key's or a value's element, and of the two scales of a token and KV head.
  int64_t kv_element_bytes() const { return fp8_kv ? 1 : element_bytes; }
  int64_t kv_scale_bytes() const { return fp8_kv ? 2 : 0; }
  int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows[layer]; }
  // Weights of the model, norms and biases left out; and their bytes.
  int64_t Parameters() const;
  int64_t ParameterBytes() const;
};

// Granules of the kernels' own layouts (CPU: kernels/cpu/matmul_job.h, kv_layout.h; CUDA:
// kernels/cuda/pack.h, kv_layout.h), in elements.
struct DeviceTraits {
  int64_t panel_columns = 16;  // a packed weight's output columns are padded to this
  int64_t leaf_granule = 32;   // and each leaf of its summed dimension to this
  int64_t key_granule = 32;    // a head's keys
  int64_t value_granule = 16;  // and values
  int64_t block_tokens = 32;   // tokens of a KV block
  int64_t kv_head_bytes = 64;  // a KV head's part of a block is padded to this, in bytes
  int64_t logit_rows = 32;     // rows whose logits are made at once
  int64_t shard_rows = 32;     // steps of this many rows cut the residual stream by rows
  int64_t partial_rows = 64;   // rows whose stripes are attended before they are merged (sp > 1)
  int64_t small_weight_bytes = int64_t{2} << 20;  // packed weights below this are on small pages
  int64_t matmul_rows = 512;  // rows whose left operand a matmul holds in its own layout
  int64_t scratch_bytes = 0;  // that the device's runtime and kernels hold, whatever the model
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_MODEL_SPEC_H_
