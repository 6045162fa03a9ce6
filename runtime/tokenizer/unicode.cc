#include "runtime/tokenizer/unicode.h"

#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/uscript.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

using namespace unicode_tables;  // NOLINT(google-build-using-namespace): our own tables

constexpr std::array<std::string_view, 30> kCategoryNames = {
    "cn", "lu", "ll", "lt", "lm", "lo", "mn", "mc", "me", "nd", "nl", "no", "pc", "pd", "ps",
    "pe", "pi", "pf", "po", "sm", "sc", "sk", "so", "zs", "zl", "zp", "cc", "cf", "co", "cs"};

const std::array<CodePointSet, kCategoryNames.size()>& CategorySets() {
  static const auto* const sets = [] {
    auto* out = new std::array<CodePointSet, kCategoryNames.size()>;
    for (size_t i = 0; i < kGeneralCategorySize; ++i) {
      const uint32_t first = kGeneralCategory[i] >> 8;
      const uint32_t last =
          i + 1 < kGeneralCategorySize ? (kGeneralCategory[i + 1] >> 8) - 1 : kMaxCodePoint;
      (*out)[kGeneralCategory[i] & 0xFF].Add(first, last);
    }
    for (const CodePointSet& set : *out) set.ranges();
    return out;
  }();
  return *sets;
}

// `prefix` is one letter ("l": every letter) or a whole category name.
CodePointSet Category(std::string_view prefix) {
  CodePointSet out;
  for (size_t i = 0; i < kCategoryNames.size(); ++i) {
    if (kCategoryNames[i].substr(0, prefix.size()) == prefix) out.Add(CategorySets()[i]);
  }
  return out;
}

template <typename... Names>
CodePointSet Categories(Names... names) {
  CodePointSet out;
  (out.Add(Category(names)), ...);
  return out;
}

CodePointSet WithExtra(CodePointSet set, const CodePointRange* extra, size_t size) {
  set.Add(extra, size);
  return set;
}

CodePointSet Without(CodePointSet set, const CodePointRange* missing, size_t size) {
  CodePointSet remove;
  remove.Add(missing, size);
  set.Remove(remove);
  return set;
}

CodePointSet Alphabetic() {
  return WithExtra(Categories("l", "nl"), kRegexAlphaExtra, kRegexAlphaExtraSize);
}

std::string Canonical(std::string_view name) {
  std::string out;
  for (char c : name) {
    if (c == '_' || c == '-' || c == ' ') continue;
    out.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  }
  return out;
}

std::optional<CodePointSet> Script(const std::string& canonical) {
  for (int code = 0; code < u_getIntPropertyMaxValue(UCHAR_SCRIPT) + 1; ++code) {
    const char* long_name = uscript_getName(static_cast<UScriptCode>(code));
    const char* short_name = uscript_getShortName(static_cast<UScriptCode>(code));
    const bool is_long = long_name != nullptr && Canonical(long_name) == canonical;
    const bool is_short = short_name != nullptr && Canonical(short_name) == canonical;
    if (!is_long && !is_short) continue;
    if (code == USCRIPT_UNKNOWN) return std::nullopt;
    UErrorCode error = U_ZERO_ERROR;
    icu::UnicodeSet icu_set;
    icu_set.applyIntPropertyValue(UCHAR_SCRIPT, code, error);
    if (U_FAILURE(error)) return std::nullopt;
    CodePointSet out;
    for (int32_t i = 0; i < icu_set.getRangeCount(); ++i) {
      out.Add(static_cast<uint32_t>(icu_set.getRangeStart(i)),
              static_cast<uint32_t>(icu_set.getRangeEnd(i)));
    }
    // What a newer ICU knows is not in the library's tables; what an older one lacks is in ours.
    out.Remove(Category("cn"));
    for (size_t i = 0; i < kScriptNewSize; ++i) {
      if (long_name != nullptr && Canonical(kScriptNew[i].script) == Canonical(long_name)) {
        out.Add(kScriptNew[i].first, kScriptNew[i].last);
      }
    }
    return out;
  }
  return std::nullopt;
}

}  // namespace

const CodePointSet& RegexSpace() {
  static const auto* const set = [] {
    auto* out = new CodePointSet(Category("z"));
    out->Add(0x09, 0x0D);
    out->Add(0x85, 0x85);
    out->ranges();
    return out;
  }();
  return *set;
}

const CodePointSet& RegexWord() {
  static const auto* const set = [] {
    auto* out = new CodePointSet(
        WithExtra(Categories("l", "m", "nd", "nl", "pc"), kRegexWordExtra, kRegexWordExtraSize));
    out->ranges();
    return out;
  }();
  return *set;
}

const CodePointSet& RegexDigit() {
  static const auto* const set = [] {
    auto* out = new CodePointSet(Category("nd"));
    out->ranges();
    return out;
  }();
  return *set;
}

std::optional<CodePointSet> RegexProperty(std::string_view raw_name) {
  const std::string name = Canonical(raw_name);
  static constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
      {"letter", "l"},
      {"uppercaseletter", "lu"},
      {"lowercaseletter", "ll"},
      {"titlecaseletter", "lt"},
      {"modifierletter", "lm"},
      {"otherletter", "lo"},
      {"mark", "m"},
      {"nonspacingmark", "mn"},
      {"spacingmark", "mc"},
      {"enclosingmark", "me"},
      {"number", "n"},
      {"decimalnumber", "nd"},
      {"letternumber", "nl"},
      {"othernumber", "no"},
      {"punctuation", "p"},
      {"connectorpunctuation", "pc"},
      {"dashpunctuation", "pd"},
      {"openpunctuation", "ps"},
      {"closepunctuation", "pe"},
      {"initialpunctuation", "pi"},
      {"finalpunctuation", "pf"},
      {"otherpunctuation", "po"},
      {"symbol", "s"},
      {"mathsymbol", "sm"},
      {"currencysymbol", "sc"},
      {"modifiersymbol", "sk"},
      {"othersymbol", "so"},
      {"separator", "z"},
      {"spaceseparator", "zs"},
      {"lineseparator", "zl"},
      {"paragraphseparator", "zp"},
      {"other", "c"},
      {"control", "cc"},
      {"format", "cf"},
      {"privateuse", "co"},
      {"unassigned", "cn"},
  };
  std::string_view category = name;
  for (const auto& [long_name, short_name] : kLongNames) {
    if (name == long_name) category = short_name;
  }
  if (category.size() == 1 &&
      std::string_view("lmnpszc").find(category) != std::string_view::npos) {
    return Category(category);
  }
  if (category != "cs" &&
      std::find(kCategoryNames.begin(), kCategoryNames.end(), category) != kCategoryNames.end()) {
    return Category(category);
  }
  if (name == "any") return CodePointSet(0, kMaxCodePoint);
  if (name == "assigned") return Category("cn").Negated();
  if (name == "ascii") return CodePointSet(0, 0x7F);
  if (name == "alpha" || name == "alphabetic") return Alphabetic();
  if (name == "alnum") {
    CodePointSet out = Alphabetic();
    out.Add(Category("nd"));
    return out;
  }
  if (name == "upper" || name == "uppercase") {
    return WithExtra(Category("lu"), kRegexUpperExtra, kRegexUpperExtraSize);
  }
  if (name == "lower" || name == "lowercase") {
    return WithExtra(Category("ll"), kRegexLowerExtra, kRegexLowerExtraSize);
  }
  if (name == "space" || name == "whitespace") return RegexSpace();
  if (name == "digit") return RegexDigit();
  if (name == "word") {  // Oniguruma's \w has superscripts and fractions that [[:word:]] lacks
    CodePointSet out = RegexWord();
    out.Remove(Category("no"));
    return out;
  }
  if (name == "cntrl") return Category("cc");
  if (name == "blank") {
    CodePointSet out = Category("zs");
    out.Add('\t', '\t');
    return out;
  }
  if (name == "punct") return Category("p");
  if (name == "[[:punct:]]") return Categories("p", "s");
  if (name == "xdigit") {
    CodePointSet out('0', '9');
    out.Add('A', 'F');
    out.Add('a', 'f');
    return out;
  }
  return Script(name);
}

bool IsWhitespace(uint32_t c) {
  static const CodePointBitmap bitmap(RegexSpace());
  return bitmap.Contains(c);
}

bool IsNumeric(uint32_t c) {
  static const CodePointBitmap bitmap(WithExtra(Category("n"), kNumericExtra, kNumericExtraSize));
  return bitmap.Contains(c);
}

bool IsPunctuation(uint32_t c) {
  static const CodePointBitmap bitmap(
      WithExtra(Without(Category("p"), kPunctuationMissing, kPunctuationMissingSize),
                kPunctuationExtra, kPunctuationExtraSize));
  return bitmap.Contains(c);
}

bool IsCombiningMark(uint32_t c) {
  static const CodePointBitmap bitmap(
      WithExtra(Without(Category("m"), kCombiningMissing, kCombiningMissingSize), kCombiningExtra,
                kCombiningExtraSize));
  return bitmap.Contains(c);
}

bool IsRustWord(uint32_t c) {
  static const CodePointBitmap bitmap(
      WithExtra(Without(RegexWord(), kRustWordMissing, kRustWordMissingSize), kRustWordExtra,
                kRustWordExtraSize));
  return bitmap.Contains(c);
}

void AppendLowercase(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    return;
  }
  if (c == 0x130) {  // the only character whose unconditional lowercase is not one character
    out->append("i\xCC\x87");
    return;
  }
  const LowercasePair* end = kLowercaseNew + kLowercaseNewSize;
  const LowercasePair* it =
      std::lower_bound(kLowercaseNew, end, c,
                       [](const LowercasePair& pair, uint32_t value) { return pair.from < value; });
  if (it != end && it->from == c) {
    AppendUtf8(it->to, out);
  } else {
    AppendUtf8(static_cast<uint32_t>(u_tolower(static_cast<UChar32>(c))), out);
  }
}

CodePointSet CaseClosure(uint32_t code_point) {
  icu::UnicodeSet set(static_cast<UChar32>(code_point), static_cast<UChar32>(code_point));
  set.closeOver(USET_CASE_INSENSITIVE);
  set.removeAllStrings();
  CodePointSet out(code_point, code_point);
  for (int32_t i = 0; i < set.getRangeCount(); ++i) {
    for (UChar32 c = set.getRangeStart(i); c <= set.getRangeEnd(i); ++c) {
      // Closing over full case folding may add characters that only fold through a string.
      if (u_foldCase(c, U_FOLD_CASE_DEFAULT) ==
          u_foldCase(static_cast<UChar32>(code_point), U_FOLD_CASE_DEFAULT)) {
        out.Add(static_cast<uint32_t>(c), static_cast<uint32_t>(c));
      }
    }
  }
  return out;
}

}  // namespace phalanx::tokenizer
