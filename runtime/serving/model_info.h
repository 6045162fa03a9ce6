// What the service says and needs to know about the model that it serves.
#ifndef PHALANX_RUNTIME_SERVING_MODEL_INFO_H_
#define PHALANX_RUNTIME_SERVING_MODEL_INFO_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/model_config.h"

namespace phalanx::serving {

struct ModelInfo {
  std::string name;            // what clients call it
  std::string family;          // config.json's model_type
  int64_t context_length = 0;  // tokens of prompt and answer together
  int64_t vocab_size = 0;      // of the model, not of the tokenizer
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::string weight_type;  // "bf16", "f16", "f32"
  int64_t num_parameters = 0;
  std::string profile;         // of the numerics, for people
  std::string profile_digest;  // servers with equal digests give equal bits
  std::string checkpoint_digest;
  // For sampling parameters that a request leaves out.
  checkpoint::GenerationDefaults defaults;
  // Prompts of more bytes are refused before they are tokenized: they cannot fit the context.
  // MaxPromptBytes() computes it; 0: no such limit.
  int64_t max_prompt_bytes = 0;
};

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_MODEL_INFO_H_
