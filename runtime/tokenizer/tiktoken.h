#ifndef PHALANX_RUNTIME_TOKENIZER_TIKTOKEN_H_
#define PHALANX_RUNTIME_TOKENIZER_TIKTOKEN_H_

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::tokenizer {

// Whether `content` starts like a file of tiktoken ranks: a line "base64 number".
bool LooksLikeTiktoken(std::string_view content);

// Llama 3's tokenizer.model: 128,000 ranks, the split regex and the 256 special tokens of
// https://github.com/meta-llama/llama-models/blob/main/models/llama3/tokenizer.py, BOS in front.
// Ranks of any other number are refused: the file alone doesn't say how its text is split.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadLlama3Ranks(std::string_view content);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_TIKTOKEN_H_
