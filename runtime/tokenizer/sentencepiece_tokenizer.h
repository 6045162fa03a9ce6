#ifndef PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
#define PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_

#include <filesystem>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::tokenizer {

// A SentencePiece model (https://github.com/google/sentencepiece), `content` being its file's.
// `model_dir` may hold a tokenizer_config.json with add_bos_token, add_eos_token and tokens beyond
// the model's (added_tokens_decoder), or an added_tokens.json. Texts are limited to 16 MiB, because
// the library needs about a hundred bytes of memory for one of text.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(
    std::string_view content, const std::filesystem::path& model_dir);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
