#include "runtime/tokenizer/tokenizer.h"

#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/pipeline_tokenizer.h"
#include "runtime/tokenizer/sentencepiece_tokenizer.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/tiktoken.h"

namespace phalanx::tokenizer {

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& model_dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(model_dir, error)) {
    return absl::NotFoundError(Concat(model_dir.string(), ": no such model directory"));
  }
  const absl::StatusOr<std::string> json = ReadFile(model_dir / "tokenizer.json");
  if (json.ok()) return LoadTokenizerJson(*json);
  if (!absl::IsNotFound(json.status())) return json.status();
  const absl::StatusOr<std::string> model = ReadFile(model_dir / "tokenizer.model");
  if (absl::IsNotFound(model.status())) {
    return absl::NotFoundError(Concat(
        model_dir.string(),
        ": neither tokenizer.json nor tokenizer.model is there; a model directory needs one"));
  }
  if (!model.ok()) return model.status();
  if (LooksLikeTiktoken(*model)) return LoadLlama3Ranks(*model);
  return LoadSentencePiece(*model, model_dir);
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  const std::unique_ptr<StreamDecoder> stream = NewStreamDecoder(skip_special_tokens);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      return absl::InvalidArgumentError(Concat("token id ", ids[i], " at position ", i,
                                               " is not in the vocabulary of ", vocab_size(),
                                               " ids"));
    }
    text += stream->Next(ids[i]);
  }
  text += stream->Flush();
  return text;
}

}  // namespace phalanx::tokenizer
