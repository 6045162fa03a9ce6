#ifndef PHALANX_RUNTIME_TOKENIZER_UNICODE_H_
#define PHALANX_RUNTIME_TOKENIZER_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/tokenizer/code_point_set.h"

namespace phalanx::tokenizer {

// Character properties exactly as Hugging Face `tokenizers` sees them. That library mixes Unicode
// versions, so the tables are measured from it (tests/goldens/tokenizer_unicode_tables.py) rather
// than taken from the ICU or PCRE2 that happens to be installed.
namespace unicode_tables {

struct LowercasePair {
  uint32_t from;
  uint32_t to;
};
struct ScriptRange {
  uint32_t first;
  uint32_t last;
  const char* script;
};

extern const uint32_t kGeneralCategory[];
extern const size_t kGeneralCategorySize;
extern const CodePointRange kRegexWordExtra[];
extern const size_t kRegexWordExtraSize;
extern const CodePointRange kRegexAlphaExtra[];
extern const size_t kRegexAlphaExtraSize;
extern const CodePointRange kRegexUpperExtra[];
extern const size_t kRegexUpperExtraSize;
extern const CodePointRange kRegexLowerExtra[];
extern const size_t kRegexLowerExtraSize;
extern const CodePointRange kRustWordExtra[];
extern const size_t kRustWordExtraSize;
extern const CodePointRange kRustWordMissing[];
extern const size_t kRustWordMissingSize;
extern const CodePointRange kNumericExtra[];
extern const size_t kNumericExtraSize;
extern const CodePointRange kPunctuationExtra[];
extern const size_t kPunctuationExtraSize;
extern const CodePointRange kPunctuationMissing[];
extern const size_t kPunctuationMissingSize;
extern const CodePointRange kCombiningExtra[];
extern const size_t kCombiningExtraSize;
extern const CodePointRange kCombiningMissing[];
extern const size_t kCombiningMissingSize;
extern const LowercasePair kLowercaseNew[];
extern const size_t kLowercaseNewSize;
extern const ScriptRange kScriptNew[];
extern const size_t kScriptNewSize;

}  // namespace unicode_tables

// The code points of \p{name}, [[:name:]] in Oniguruma's reading: general categories and their
// groups, POSIX brackets, Alphabetic, White_Space, and scripts. Case, '_', '-' and ' ' in the name
// are ignored. Nothing where the name is not known. The one POSIX bracket that differs from the
// property of its name is asked for as "[[:punct:]]".
std::optional<CodePointSet> RegexProperty(std::string_view name);
const CodePointSet& RegexSpace();  // \s
const CodePointSet& RegexWord();   // \w outside brackets; inside it is RegexProperty("word")
const CodePointSet& RegexDigit();  // \d

// Rust's char::is_whitespace; char::is_numeric; the punctuation and combining marks of the
// pre-tokenizers and normalizers; the Rust regex crate's \w.
bool IsWhitespace(uint32_t code_point);
bool IsNumeric(uint32_t code_point);
bool IsPunctuation(uint32_t code_point);
bool IsCombiningMark(uint32_t code_point);
bool IsRustWord(uint32_t code_point);

// Rust's char::to_lowercase: unconditional, context-free, up to three code points.
void AppendLowercase(uint32_t code_point, std::string* out);

// Every code point equal to `code_point` under simple case folding, itself included.
CodePointSet CaseClosure(uint32_t code_point);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_UNICODE_H_
