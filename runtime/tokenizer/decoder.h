#ifndef PHALANX_RUNTIME_TOKENIZER_DECODER_H_
#define PHALANX_RUNTIME_TOKENIZER_DECODER_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"

namespace phalanx::tokenizer {

// One step of a decoder, fed with tokens as they come. A token is a run of fragments, each valid
// UTF-8, the last one marked; after Fuse and ByteLevel the one token that is left is never ended
// before Finish. The text passed on never depends on where the input paused, and what a step holds
// back is only what a later token could still change. Stateful: one per stream.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void Fragment(std::string_view text, bool ends_token) = 0;
  // The end of all tokens.
  virtual void Finish() = 0;
};

// The decoder of tokenizer.json; immutable, thread-safe. Each token of a text goes through a chain
// of stages; the text is all that leaves it.
class Decoder {
 public:
  // The decoder of a file that has none: tokens joined by spaces.
  Decoder();
  // As Normalizer::FromJson.
  static absl::StatusOr<Decoder> FromJson(const Json& json, const std::string& where);

  // Stages that append what they decode to `*out`, which must outlive them. The first is for the
  // caller; it owns the others.
  std::unique_ptr<DecodeStage> NewStages(std::string* out) const;

 private:
  using Factory = std::function<std::unique_ptr<DecodeStage>(std::unique_ptr<DecodeStage> next)>;
  static absl::Status Parse(const Json& json, const std::string& where,
                            std::vector<Factory>* factories);

  std::vector<Factory> factories_;  // in the order of decoding
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_DECODER_H_
