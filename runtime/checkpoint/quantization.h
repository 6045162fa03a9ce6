// Weights in FP8 as checkpoints hold them: matrices of F8_E4M3 codes, each with a tensor of scales
// by which the codes are multiplied. Ways to say so in config.json's `quantization_config`:
//   quant_method "fp8"                 Transformers' fine-grained FP8 (DeepSeek-V3, Qwen3-FP8):
//                                      scales in X.weight_scale_inv, one for each block of
//                                      weight_block_size = [rows, columns]; without that key one
//                                      for the matrix, in that or (AutoFP8) X.weight_scale
//   quant_method "fbgemm_fp8"          Llama-3.1-405B-FP8: X.weight_scale, one for each row
//   quant_method "compressed-tensors"  format "float-quantized" (llm-compressor): scales in
//                                      X.weight_scale, one for the matrix, a row or a block
// Only weights are read so: activations stay as they are, and scales that a file brings for them,
// or for keys and values, are left alone.
#ifndef PHALANX_RUNTIME_CHECKPOINT_QUANTIZATION_H_
#define PHALANX_RUNTIME_CHECKPOINT_QUANTIZATION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "runtime/checkpoint/config_reader.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/safetensors.h"

namespace phalanx::checkpoint {

struct Quantization {
  Fp8Scheme scheme;
  std::vector<std::string> left_out;  // modules, as the configuration writes them
};
// Nothing where the checkpoint isn't quantised. Any other quantisation, and a key that isn't known,
// is a fault: UNIMPLEMENTED names it.
std::optional<Quantization> ReadQuantization(ConfigReader& reader);

// What one scale of a tensor of shape `scales` is for, in a matrix of rows x columns. Nothing where
// the shape fits no such matrix.
std::optional<Fp8Scheme> ScaleBlock(const Fp8Scheme& scheme, int64_t rows, int64_t columns,
                                    const Shape& scales);

// The names that the scales of the matrix `weight` ("X.weight") may have.
inline constexpr absl::string_view kScaleSuffixes[] = {"_scale_inv", "_scale"};
// Whether a tensor holds scales of activations, or of keys and values.
bool IsActivationScale(absl::string_view name);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_QUANTIZATION_H_
