#include "runtime/tokenizer/regex_parser.h"

#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr int kMaxNesting = 100;
constexpr uint32_t kMaxRepeat = 65535;  // PCRE2's limit

struct Flags {
  bool ignore_case = false;
  bool dot_all = false;   // Ruby's (?m)
  bool extended = false;  // (?x)
};

// The strings of several characters that are the full case folding of one character ("ss" of
// U+00DF). Oniguruma lets (?i) match across that difference; this translation can't.
const std::set<std::u32string>& MultiCharacterFolds() {
  static const auto* const folds = [] {
    auto* out = new std::set<std::u32string>;
    for (UChar32 c = 0; c <= static_cast<UChar32>(kMaxCodePoint); ++c) {
      if (!u_hasBinaryProperty(c, UCHAR_CHANGES_WHEN_CASEFOLDED)) continue;
      icu::UnicodeString folded(c);
      folded.foldCase(U_FOLD_CASE_DEFAULT);
      if (folded.countChar32() < 2) continue;
      std::u32string key;
      for (int32_t i = 0; i < folded.length(); i = folded.moveIndex32(i, 1)) {
        key.push_back(static_cast<char32_t>(folded.char32At(i)));
      }
      out->insert(std::move(key));
    }
    return out;
  }();
  return *folds;
}

bool FoldsToSeveral(uint32_t c) {
  icu::UnicodeString folded(static_cast<UChar32>(c));
  folded.foldCase(U_FOLD_CASE_DEFAULT);
  return folded.countChar32() > 1;
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<ParsedRegex> Run() {
    if (FindInvalidUtf8(pattern_) != std::string_view::npos) return Error("is not valid UTF-8");
    if (absl::Status s = Alternation(Flags{}, 0); !s.ok()) return s;
    if (!AtEnd()) return Error("has an unmatched \")\"");
    return std::move(out_);
  }

 private:
  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(
        Concat("regex \"", pattern_, "\" ", what, " (at byte ", position_, ")"));
  }
  absl::Status Unsupported(std::string_view what) const {
    return Error(Concat("uses ", what, ", which is not supported"));
  }

  bool AtEnd() const { return position_ >= pattern_.size(); }
  bool Accept(std::string_view text) {
    if (pattern_.substr(position_, text.size()) != text) return false;
    position_ += text.size();
    return true;
  }
  char Peek() const { return AtEnd() ? '\0' : pattern_[position_]; }

  void Emit(std::string text) { out_.items.push_back({-1, std::move(text)}); }
  void EmitSet(CodePointSet set) {
    out_.items.push_back({static_cast<int>(out_.sets.size()), ""});
    out_.sets.push_back(std::move(set));
  }

  // Up to an unconsumed ")" or the end.
  absl::Status Alternation(Flags flags, int depth) {
    if (depth > kMaxNesting) return Error("nests its groups too deep");
    literal_run_.clear();
    while (!AtEnd() && Peek() != ')') {
      if (Accept("|")) {
        Emit("|");
        literal_run_.clear();
        continue;
      }
      if (flags.extended && SkipExtended()) continue;
      const size_t start = out_.items.size();
      bool rest_of_group = false;
      if (absl::Status s = Atom(flags, depth, &rest_of_group); !s.ok()) return s;
      if (rest_of_group) return absl::OkStatus();
      if (absl::Status s = Quantifiers(start, flags); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  bool SkipExtended() {
    const char c = Peek();
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      ++position_;
      return true;
    }
    if (c != '#') return false;
    while (!AtEnd() && Peek() != '\n') ++position_;
    return true;
  }

  absl::Status Atom(Flags flags, int depth, bool* rest_of_group) {
    const char c = Peek();
    switch (c) {
      case '(':
        return Group(flags, depth, rest_of_group);
      case '[': {
        ++position_;
        literal_run_.clear();
        CodePointSet set;
        if (absl::Status s = Bracket(flags, depth, &set); !s.ok()) return s;
        EmitSet(std::move(set));
        return absl::OkStatus();
      }
      case '.':
        ++position_;
        literal_run_.clear();
        EmitSet(flags.dot_all ? CodePointSet(0, kMaxCodePoint) : NotNewline());
        return absl::OkStatus();
      case '^':
        ++position_;
        Emit("(?:\\A|(?<=");
        EmitSet(CodePointSet('\n', '\n'));
        Emit(")(?!\\z))");
        return absl::OkStatus();
      case '$':
        ++position_;
        Emit("(?:(?=");
        EmitSet(CodePointSet('\n', '\n'));
        Emit(")|\\z)");
        return absl::OkStatus();
      case '*':
      case '+':
      case '?':
        return Error("has a quantifier with nothing before it");
      case '\\':
        return Escape(flags);
      default: {
        const uint32_t code_point = NextCodePoint(pattern_, &position_);
        return Literal(code_point, flags);
      }
    }
  }

  static CodePointSet NotNewline() { return CodePointSet('\n', '\n').Negated(); }

  absl::Status Literal(uint32_t code_point, Flags flags) {
    if (!flags.ignore_case) {
      literal_run_.clear();
      EmitSet(CodePointSet(code_point, code_point));
      return absl::OkStatus();
    }
    if (FoldsToSeveral(code_point)) {
      return Unsupported("a case-insensitive character whose case folding has several characters");
    }
    literal_run_.push_back(
        static_cast<char32_t>(u_foldCase(static_cast<UChar32>(code_point), U_FOLD_CASE_DEFAULT)));
    for (size_t n = 2; n <= 3 && n <= literal_run_.size(); ++n) {
      if (MultiCharacterFolds().count(literal_run_.substr(literal_run_.size() - n)) > 0) {
        return Unsupported("a case-insensitive text that one character's case folding equals");
      }
    }
    EmitSet(CaseClosure(code_point));
    return absl::OkStatus();
  }

  absl::Status Group(Flags flags, int depth, bool* rest_of_group) {
    ++position_;  // "("
    std::string open = "(?:";
    Flags inner = flags;
    if (Accept("?")) {
      if (Accept(":")) {
      } else if (Accept("=")) {
        open = "(?=";
      } else if (Accept("!")) {
        open = "(?!";
      } else if (Accept(">")) {
        open = "(?>";
      } else if (Accept("<=")) {
        open = "(?<=";
      } else if (Accept("<!")) {
        open = "(?<!";
      } else if (Accept("#")) {
        while (!AtEnd() && Peek() != ')') ++position_;
        if (!Accept(")")) return Error("has an unfinished comment");
        return absl::OkStatus();
      } else if (Peek() == '<' || Peek() == '\'') {
        const char close = Peek() == '<' ? '>' : '\'';
        const size_t end = pattern_.find(close, position_ + 1);
        if (end == std::string_view::npos) return Error("has an unfinished group name");
        position_ = end + 1;
      } else {
        bool on = true;
        while (!AtEnd() && Peek() != ':' && Peek() != ')') {
          const char c = pattern_[position_++];
          if (c == '-') {
            on = false;
          } else if (c == 'i') {
            inner.ignore_case = on;
          } else if (c == 'm') {
            inner.dot_all = on;
          } else if (c == 'x') {
            inner.extended = on;
          } else {
            return Unsupported(Concat("the group \"(?", std::string(1, c), "\""));
          }
        }
        if (Accept(")")) {  // the options hold to the end of the enclosing group, over "|" too
          Emit("(?:");
          if (absl::Status s = Alternation(inner, depth + 1); !s.ok()) return s;
          Emit(")");
          *rest_of_group = true;
          return absl::OkStatus();
        }
        if (!Accept(":")) return Error("has an unfinished group");
      }
    }
    Emit(open);
    if (absl::Status s = Alternation(inner, depth + 1); !s.ok()) return s;
    if (!Accept(")")) return Error("has an unfinished group");
    Emit(")");
    literal_run_.clear();
    return absl::OkStatus();
  }

  // Wraps the items from `start` on, so that what follows applies to all of them.
  void Wrap(size_t start) {
    out_.items.insert(out_.items.begin() + static_cast<std::ptrdiff_t>(start), {-1, "(?:"});
    Emit(")");
  }

  std::optional<uint32_t> Number() {
    if (Peek() < '0' || Peek() > '9') return std::nullopt;
    uint64_t value = 0;
    while (Peek() >= '0' && Peek() <= '9') {
      value = value * 10 + static_cast<uint64_t>(pattern_[position_++] - '0');
      if (value > kMaxRepeat) value = kMaxRepeat + 1;
    }
    return static_cast<uint32_t>(value);
  }

  absl::Status Quantifiers(size_t start, Flags flags) {
    bool quantified = false;
    while (!AtEnd()) {
      if (flags.extended && SkipExtended()) continue;
      const char c = Peek();
      std::string quantifier;
      bool interval = false;
      bool exact = false;
      if (c == '*' || c == '+' || c == '?') {
        ++position_;
        quantifier = std::string(1, c);
      } else if (c == '{') {
        const size_t saved = position_++;
        const std::optional<uint32_t> low = Number();
        std::optional<uint32_t> high = low;
        exact = true;
        if (Accept(",")) {
          exact = false;
          high = Number();
        }
        if ((!low && !high) || !Accept("}")) {  // not an interval: a literal "{"
          position_ = saved;
          return absl::OkStatus();
        }
        if (low.value_or(0) > kMaxRepeat || high.value_or(0) > kMaxRepeat) {
          return Error(Concat("repeats more than ", kMaxRepeat, " times"));
        }
        if (high && low.value_or(0) > *high) return Unsupported("a repeat count {high,low}");
        interval = true;
        quantifier =
            exact ? Concat("{", *low, "}")
                  : Concat("{", low.value_or(0), ",", high ? Concat(*high) : std::string(), "}");
      } else {
        return absl::OkStatus();
      }
      literal_run_.clear();
      if (quantified) Wrap(start);
      quantified = true;
      // Ruby: {n}? is an optional {n}, and {n,m}+ a repeated {n,m}; the loop sees to both.
      if (!(interval && exact) && Accept("?")) {
        quantifier += "?";
      } else if (!interval && Accept("+")) {
        quantifier += "+";
      }
      Emit(std::move(quantifier));
    }
    return absl::OkStatus();
  }

  // A code point written as an escape, after the backslash; nothing if it is something else.
  absl::StatusOr<std::optional<uint32_t>> CodePointEscape() {
    const auto hex = [&](size_t max_digits) -> std::optional<uint32_t> {
      uint32_t value = 0;
      size_t digits = 0;
      while (digits < max_digits && !AtEnd()) {
        const char c = Peek();
        uint32_t digit;
        if (c >= '0' && c <= '9') {
          digit = static_cast<uint32_t>(c - '0');
        } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
          digit = static_cast<uint32_t>((c | 0x20) - 'a') + 10;
        } else {
          break;
        }
        value = value << 4 | digit;
        ++digits;
        ++position_;
      }
      if (digits == 0) return std::nullopt;
      return value;
    };
    const char c = Peek();
    static constexpr std::pair<char, uint32_t> kControls[] = {
        {'n', '\n'}, {'r', '\r'}, {'t', '\t'}, {'f', '\f'}, {'v', '\v'}, {'a', 7}, {'e', 27}};
    for (const auto& [letter, value] : kControls) {
      if (c == letter) {
        ++position_;
        return std::optional<uint32_t>(value);
      }
    }
    if (c == 'x' || c == 'u') {
      ++position_;
      std::optional<uint32_t> value;
      if (c == 'x' && Accept("{")) {
        value = hex(8);
        if (!Accept("}")) return Error("has a malformed \\x{...}");
      } else {
        value = hex(c == 'x' ? 2 : 4);
        if (c == 'x' && value && *value >= 0x80) return Unsupported("a raw byte \\xHH");
      }
      if (!value || *value > kMaxCodePoint) return Error("has a malformed code point escape");
      return value;
    }
    if (c == '0') {
      uint32_t value = 0;
      for (int i = 0; i < 3 && Peek() >= '0' && Peek() <= '7'; ++i) {
        value = value * 8 + static_cast<uint32_t>(pattern_[position_++] - '0');
      }
      return std::optional<uint32_t>(value);
    }
    if ((c >= '1' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || AtEnd()) {
      return std::optional<uint32_t>();
    }
    return std::optional<uint32_t>(NextCodePoint(pattern_, &position_));
  }

  // \d \s \w \h and \p{...}, after the backslash.
  absl::StatusOr<std::optional<CodePointSet>> SetEscape(bool in_bracket) {
    const char c = Peek();
    std::optional<CodePointSet> set;
    bool negate = false;
    switch (c) {
      case 'd':
      case 'D':
        set = RegexDigit();
        negate = c == 'D';
        break;
      case 's':
      case 'S':
        set = RegexSpace();
        negate = c == 'S';
        break;
      case 'w':
      case 'W':
        set = in_bracket ? *RegexProperty("word") : RegexWord();
        negate = c == 'W';
        break;
      case 'h':
      case 'H':
        set = *RegexProperty("xdigit");
        negate = c == 'H';
        break;
      case 'p':
      case 'P': {
        const size_t end = pattern_.find('}', position_);
        if (pattern_.substr(position_ + 1, 1) != "{" || end == std::string_view::npos) {
          return Unsupported(Concat("\\", std::string(1, c), " without {name}"));
        }
        std::string_view name = pattern_.substr(position_ + 2, end - position_ - 2);
        negate = c == 'P';
        if (!name.empty() && name[0] == '^') {
          negate = !negate;
          name.remove_prefix(1);
        }
        set = RegexProperty(name);
        if (!set) return Unsupported(Concat("the character property \"", name, "\""));
        position_ = end;
        break;
      }
      default:
        return std::optional<CodePointSet>();
    }
    ++position_;
    return negate ? set->Negated() : *set;
  }

  absl::Status Escape(Flags flags) {
    ++position_;  // the backslash
    if (AtEnd()) return Error("ends in a backslash");
    auto set = SetEscape(/*in_bracket=*/false);
    if (!set.ok()) return set.status();
    if (set->has_value()) {
      literal_run_.clear();
      EmitSet(std::move(**set));
      return absl::OkStatus();
    }
    const char c = Peek();
    const CodePointSet newline('\n', '\n');
    switch (c) {
      case 'b':
      case 'B':
        Emit("(?:(?<=");
        EmitSet(RegexWord());
        Emit(c == 'b' ? ")(?!" : ")(?=");
        EmitSet(RegexWord());
        Emit(")|(?<!");
        EmitSet(RegexWord());
        Emit(c == 'b' ? ")(?=" : ")(?!");
        EmitSet(RegexWord());
        Emit("))");
        break;
      case 'A':
        Emit("\\A");
        break;
      case 'z':
        Emit("\\z");
        break;
      case 'Z':
        Emit("(?=");
        EmitSet(newline);
        Emit("?\\z)");
        break;
      case 'N':
        EmitSet(NotNewline());
        break;
      case 'O':
        EmitSet(CodePointSet(0, kMaxCodePoint));
        break;
      case 'R': {
        CodePointSet breaks('\n', '\r');
        breaks.Add(0x85, 0x85);
        breaks.Add(0x2028, 0x2029);
        Emit("(?>");
        EmitSet(CodePointSet('\r', '\r'));
        EmitSet(newline);
        Emit("|");
        EmitSet(std::move(breaks));
        Emit(")");
        break;
      }
      default: {
        auto code_point = CodePointEscape();
        if (!code_point.ok()) return code_point.status();
        if (code_point->has_value()) return Literal(**code_point, flags);
        return Unsupported(Concat("\\", std::string(1, c)));
      }
    }
    ++position_;
    literal_run_.clear();
    return absl::OkStatus();
  }

  // After "[": up to and including its "]".
  absl::Status Bracket(Flags flags, int depth, CodePointSet* result) {
    if (depth > kMaxNesting) return Error("nests its brackets too deep");
    const bool negate = Accept("^");
    CodePointSet current;
    std::optional<CodePointSet> intersection;
    bool first = true;
    const auto fold = [&] {
      if (intersection) current.Intersect(*intersection);
    };
    while (true) {
      if (AtEnd()) return Error("has an unfinished \"[\"");
      if (Peek() == ']' && !first) {
        ++position_;
        break;
      }
      first = false;
      if (Accept("&&")) {
        fold();
        intersection = std::move(current);
        current = CodePointSet();
        continue;
      }
      if (Accept("[:")) {
        const bool invert = Accept("^");
        const size_t end = pattern_.find(":]", position_);
        if (end == std::string_view::npos) return Error("has an unfinished \"[:\"");
        const std::string name(pattern_.substr(position_, end - position_));
        std::optional<CodePointSet> set;
        if (name == "punct") {
          set = RegexProperty("[[:punct:]]");
        } else if (name == "graph" || name == "print") {
          return Unsupported(Concat("[:", name, ":]"));
        } else {
          set = RegexProperty(name);
        }
        if (!set) return Unsupported(Concat("[:", name, ":]"));
        position_ = end + 2;
        current.Add(invert ? set->Negated() : *set);
        continue;
      }
      if (Accept("[")) {
        CodePointSet nested;
        if (absl::Status s = Bracket(flags, depth + 1, &nested); !s.ok()) return s;
        current.Add(nested);
        continue;
      }
      uint32_t low = 0;
      bool is_set = false;
      if (absl::Status s = BracketAtom(&current, &low, &is_set); !s.ok()) return s;
      if (is_set) continue;
      uint32_t high = low;
      if (Peek() == '-' && position_ + 1 < pattern_.size() && pattern_[position_ + 1] != ']' &&
          pattern_[position_ + 1] != '[' && pattern_.substr(position_ + 1, 2) != "&&") {
        ++position_;
        CodePointSet ignored;
        if (absl::Status s = BracketAtom(&ignored, &high, &is_set); !s.ok()) return s;
        if (is_set) return Unsupported("a range that ends in a character class");
        if (high < low) return Error("has a range whose end is before its start");
      }
      if (flags.ignore_case) {
        if (high - low > 0x10000) return Unsupported("so wide a case-insensitive range");
        for (uint32_t c = low; c <= high; ++c) {
          if (FoldsToSeveral(c)) {
            return Unsupported(
                "a case-insensitive character whose case folding has several characters");
          }
          current.Add(CaseClosure(c));
        }
      } else {
        current.Add(low, high);
      }
    }
    fold();
    *result = negate ? current.Negated() : std::move(current);
    return absl::OkStatus();
  }

  // One member of a bracket: a code point, or (*is_set) a class that was added to `*into`.
  absl::Status BracketAtom(CodePointSet* into, uint32_t* code_point, bool* is_set) {
    *is_set = false;
    if (Peek() != '\\') {
      *code_point = NextCodePoint(pattern_, &position_);
      return absl::OkStatus();
    }
    ++position_;
    if (AtEnd()) return Error("ends in a backslash");
    auto set = SetEscape(/*in_bracket=*/true);
    if (!set.ok()) return set.status();
    if (set->has_value()) {
      into->Add(**set);
      *is_set = true;
      return absl::OkStatus();
    }
    if (Accept("b")) {
      *code_point = 8;
      return absl::OkStatus();
    }
    const char c = Peek();
    auto value = CodePointEscape();
    if (!value.ok()) return value.status();
    if (!value->has_value()) {
      return Unsupported(Concat("\\", std::string(1, c), " inside brackets"));
    }
    *code_point = **value;
    return absl::OkStatus();
  }

  std::string_view pattern_;
  size_t position_ = 0;
  ParsedRegex out_;
  std::u32string literal_run_;  // folded literals directly before the position, under (?i)
};

}  // namespace

absl::StatusOr<ParsedRegex> ParseRegex(std::string_view pattern) { return Parser(pattern).Run(); }

}  // namespace phalanx::tokenizer
