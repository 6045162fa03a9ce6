#include "runtime/model/shape.h"

namespace phalanx::model {

parallel::DecoderShape ShapeOf(const checkpoint::ModelConfig& config) {
  parallel::DecoderShape shape;
  shape.num_layers = config.num_layers;
  shape.hidden_size = config.hidden_size;
  shape.intermediate_size = config.intermediate_size;
  shape.num_heads = config.num_heads;
  shape.num_kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.vocab_size = config.vocab_size;
  shape.num_experts = config.num_experts;
  shape.experts_per_token = config.experts_per_token;
  shape.expert_intermediate_size = config.expert_intermediate_size;
  shape.shared_intermediate_size = config.shared_intermediate_size;
  shape.moe_layers = config.moe_layers;
  return shape;
}

}  // namespace phalanx::model
