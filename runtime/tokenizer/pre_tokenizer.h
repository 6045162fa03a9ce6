#ifndef PHALANX_RUNTIME_TOKENIZER_PRE_TOKENIZER_H_
#define PHALANX_RUNTIME_TOKENIZER_PRE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/regex.h"

namespace phalanx::tokenizer {

// Bytes [begin, end) of a PreTokenizedText, never empty; `first_bytes` as in Segment.
struct Piece {
  uint32_t begin;
  uint32_t end;
  uint32_t first_bytes;
};

// A text and the pieces of it that go to the model, in order.
struct PreTokenizedText {
  std::string text;  // valid UTF-8, less than 4 GiB
  std::vector<Piece> pieces;

  std::string_view TextOf(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// One pre-tokenizer of tokenizer.json, a Sequence included. Immutable and thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // RESOURCE_EXHAUSTED where a regex gives up or the text outgrows 4 GiB.
  virtual absl::Status Apply(PreTokenizedText* text, RegexScratch* scratch) const = 0;

  // As Normalizer::FromJson.
  static absl::StatusOr<std::unique_ptr<const PreTokenizer>> FromJson(const Json& json,
                                                                      const std::string& where);
  // The pre-tokenizer of a byte-level BPE whose words are what `regex` matches, others isolated:
  // Split(regex) and ByteLevel without a regex of its own.
  static absl::StatusOr<std::unique_ptr<const PreTokenizer>> ByteLevelSplit(std::string_view regex);
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_PRE_TOKENIZER_H_
