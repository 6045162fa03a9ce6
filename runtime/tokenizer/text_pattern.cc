#include "runtime/tokenizer/text_pattern.h"

#include <utility>

#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {

absl::StatusOr<TextPattern> TextPattern::FromJson(const Json& json, const std::string& where) {
  ObjectReader reader(json, Concat(where, ".pattern"));
  TextPattern pattern;
  bool literal = false;
  if (reader.Has("String")) {
    pattern.literal_ = reader.String("String");
    literal = true;
  }
  std::string source;
  if (!literal) source = reader.String("Regex");
  if (absl::Status s = reader.Finish(); !s.ok()) return s;
  if (literal && !pattern.literal_.empty()) return pattern;
  auto regex = Regex::Compile(source);  // an empty string matches as the empty regex does
  if (!regex.ok()) {
    return absl::Status(regex.status().code(), Concat(where, ": ", regex.status().message()));
  }
  pattern.regex_ = *std::move(regex);
  return pattern;
}

absl::Status TextPattern::FindAll(std::string_view text, RegexScratch* scratch,
                                  std::vector<Match>* matches) const {
  if (regex_ != nullptr) return regex_->FindAll(text, scratch, matches);
  matches->clear();
  for (size_t at = text.find(literal_); at != std::string_view::npos;
       at = text.find(literal_, at + literal_.size())) {
    matches->push_back({at, at + literal_.size()});
  }
  return absl::OkStatus();
}

}  // namespace phalanx::tokenizer
