// Reading the rotary embedding's parameters from config.json.
#ifndef PHALANX_RUNTIME_CHECKPOINT_ROPE_CONFIG_H_
#define PHALANX_RUNTIME_CHECKPOINT_ROPE_CONFIG_H_

#include <cstdint>

#include "runtime/checkpoint/config_reader.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::checkpoint {

// Positions and context lengths beyond this are refused.
inline constexpr int64_t kMaxPositions = int64_t{1} << 30;

// Fills config->rope from rope_theta and rope_parameters or rope_scaling. Precondition:
// config->max_position_embeddings has been read. Faults go to `reader`.
void ReadRope(ConfigReader& reader, ModelConfig* config);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_ROPE_CONFIG_H_
