// Checkpoints of random weights, for measurements and tests that need a shape and no sense.
#ifndef PHALANX_LAUNCHER_RANDOM_CHECKPOINT_H_
#define PHALANX_LAUNCHER_RANDOM_CHECKPOINT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace phalanx::launcher {

// Writes config.json with the text `config` and model.safetensors with every tensor that it asks
// for, in BF16: linear weights and embedding of both signs around 0 with magnitudes up to 2^-5,
// norms 1, biases 0. The same seed gives the same bytes. `directory` is made if it isn't there; no
// tokenizer is written. Errors: those of ParseModelConfig; UNAVAILABLE names a file that can't be
// written.
absl::Status WriteRandomCheckpoint(const std::string& directory, const std::string& config,
                                   uint32_t seed);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_RANDOM_CHECKPOINT_H_
