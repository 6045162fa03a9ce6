#ifndef PHALANX_RUNTIME_TOKENIZER_REGEX_PARSER_H_
#define PHALANX_RUNTIME_TOKENIZER_REGEX_PARSER_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/code_point_set.h"

namespace phalanx::tokenizer {

// A piece of a translated pattern: PCRE2 syntax, or one character out of a set.
struct RegexItem {
  int set = -1;      // index into ParsedRegex::sets, or -1
  std::string text;  // PCRE2 syntax where set < 0
};

struct ParsedRegex {
  std::vector<RegexItem> items;
  std::vector<CodePointSet> sets;
};

// Parses Oniguruma's Ruby syntax (https://github.com/kkos/oniguruma/blob/master/doc/RE). Groups do
// not capture. INVALID_ARGUMENT, naming the construct, for what is malformed or not supported.
absl::StatusOr<ParsedRegex> ParseRegex(std::string_view pattern);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_REGEX_PARSER_H_
