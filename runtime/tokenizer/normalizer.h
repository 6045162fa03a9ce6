#ifndef PHALANX_RUNTIME_TOKENIZER_NORMALIZER_H_
#define PHALANX_RUNTIME_TOKENIZER_NORMALIZER_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/regex.h"

namespace phalanx::tokenizer {

// A stretch of the input on its way through normalizers and pre-tokenizers. Always valid UTF-8.
struct Segment {
  std::string text;
  // Leading bytes of `text` that come from the input's very first character; 0 where the segment
  // doesn't begin there. Metaspace's prepend_scheme "first" asks for it.
  size_t first_bytes = 0;
};

// One normalizer of tokenizer.json, a Sequence included. Immutable and thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual absl::Status Apply(Segment* segment, RegexScratch* scratch) const = 0;

  // `json` is an object with a "type", `where` its place in the file. INVALID_ARGUMENT, naming the
  // type or the setting, for what is malformed or not supported.
  static absl::StatusOr<std::unique_ptr<const Normalizer>> FromJson(const Json& json,
                                                                    const std::string& where);
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_NORMALIZER_H_
