#ifndef PHALANX_RUNTIME_TOKENIZER_TOKENIZER_H_
#define PHALANX_RUNTIME_TOKENIZER_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace phalanx::tokenizer {

// No text longer than this is tokenized: 1 GiB. A model's context ends long before; callers that
// know theirs cap earlier.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;

struct EncodeOptions {
  // Whether the ids that the tokenizer puts around a text (BOS, ...) are added.
  bool add_special_tokens = true;
  // Whether the spelling of a special token in the text ("<|eot_id|>") is that token. If not, it is
  // text like any other, so that a prompt's author can't forge control tokens. Added tokens that
  // are not special are recognised either way.
  bool parse_special = false;
};

// Turns ids into text as they come. The concatenation of everything returned equals
// Tokenizer::Decode of all ids, bit for bit; each returned string is valid UTF-8 and is held back
// only while a later id could still change it: half a character, a run of byte-fallback tokens (one
// bad byte spoils the run), spaces that the decoder strips from the end. Amortised O(1) per token.
// Not thread-safe; must not outlive its tokenizer.
class StreamDecoder {
 public:
  virtual ~StreamDecoder() = default;
  // The text that `id` completes, often empty. An id that the tokenizer doesn't have (a model's
  // vocabulary may be padded) is no text.
  virtual std::string Next(int32_t id) = 0;
  // The text held back, at the end of the ids; bytes of an unfinished character become U+FFFD.
  // No call may follow.
  virtual std::string Flush() = 0;
};

// Text to token ids and back. Immutable after Load; every method may be called from many threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Loads the tokenizer of a Hugging Face model directory:
  //   tokenizer.json   the format of https://github.com/huggingface/tokenizers, with a BPE model;
  //                    ids are those of that library. Its "truncation" and "padding" are not
  //                    applied, as Transformers doesn't apply them unless it is asked to.
  //   tokenizer.model  where there is no tokenizer.json: a SentencePiece model, with BOS and EOS as
  //                    tokenizer_config.json's add_bos_token (default true) and add_eos_token
  //                    (default false) say; or Llama 3's ranks in tiktoken's form.
  // NOT_FOUND where there is neither. INVALID_ARGUMENT, naming file, place and setting, for what is
  // malformed or not supported: nothing that could change an id is ignored.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& model_dir);

  // The ids of `text`. Linear (n log n) in the text's length, whatever it is.
  // INVALID_ARGUMENT, naming the byte offset, where `text` is not valid UTF-8, or where it is too
  // long; RESOURCE_EXHAUSTED where one of the tokenizer's regular expressions gives up on it.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;

  // The text of `ids`: valid UTF-8, U+FFFD for bytes that are not. With `skip_special_tokens`,
  // special tokens are left out. INVALID_ARGUMENT, naming id and position, for an id below 0 or at
  // least vocab_size().
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // The largest id + 1, added tokens included. Ids below it may be unused.
  virtual int32_t vocab_size() const = 0;
  // By a token's spelling in the file ("Ġthe", "▁the", "<|eot_id|>").
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  // INVALID_ARGUMENT where no token has `id`.
  virtual absl::StatusOr<std::string> IdToToken(int32_t id) const = 0;
  // Whether skip_special_tokens leaves `id` out.
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual std::unique_ptr<StreamDecoder> NewStreamDecoder(bool skip_special_tokens) const = 0;

 protected:
  Tokenizer() = default;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_TOKENIZER_H_
