#ifndef PHALANX_RUNTIME_TOKENIZER_POST_PROCESSOR_H_
#define PHALANX_RUNTIME_TOKENIZER_POST_PROCESSOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"

namespace phalanx::tokenizer {

// What the post-processor of tokenizer.json makes of one sequence: fixed ids around it. Offsets,
// type ids and pairs of sequences are not reported, so what concerns only them has no effect.
struct PostProcessor {
  // Ids, with kSequence standing for the sequence's own. Without special tokens only those remain.
  static constexpr int32_t kSequence = -1;
  std::vector<int32_t> pieces = {kSequence};

  // INVALID_ARGUMENT, naming the type or the setting, for what is malformed or not supported.
  static absl::StatusOr<PostProcessor> FromJson(const Json& json, const std::string& where);
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_POST_PROCESSOR_H_
