#ifndef PHALANX_RUNTIME_TOKENIZER_TEXT_PATTERN_H_
#define PHALANX_RUNTIME_TOKENIZER_TEXT_PATTERN_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/regex.h"

namespace phalanx::tokenizer {

// What `Split` and `Replace` look for: {"String": "..."} or {"Regex": "..."}. Thread-safe.
class TextPattern {
 public:
  // `json` is the "pattern" field, `where` its owner's place.
  static absl::StatusOr<TextPattern> FromJson(const Json& json, const std::string& where);

  // As Regex::FindAll.
  absl::Status FindAll(std::string_view text, RegexScratch* scratch,
                       std::vector<Match>* matches) const;

  bool is_literal() const { return regex_ == nullptr; }
  const std::string& literal() const { return literal_; }

 private:
  std::string literal_;  // not empty where there is no regex
  std::shared_ptr<const Regex> regex_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_TEXT_PATTERN_H_
