// What sharding and planning need to know of a model.
#ifndef PHALANX_RUNTIME_MODEL_SHAPE_H_
#define PHALANX_RUNTIME_MODEL_SHAPE_H_

#include "parallel/shard.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::model {

parallel::DecoderShape ShapeOf(const checkpoint::ModelConfig& config);

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_SHAPE_H_
