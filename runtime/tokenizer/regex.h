#ifndef PHALANX_RUNTIME_TOKENIZER_REGEX_H_
#define PHALANX_RUNTIME_TOKENIZER_REGEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx::tokenizer {

// Byte offsets [begin, end) into the text.
struct Match {
  size_t begin;
  size_t end;
};

// Buffers that one thread reuses over many searches.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// An Oniguruma (Ruby syntax) pattern, matched by PCRE2 with Oniguruma's meaning.
//
// The pattern's character sets cut Unicode into a few classes of characters that it can't tell
// apart. The text is turned into one byte a character, its class, and PCRE2 runs over those bytes.
// So the tables of Unicode are ours alone, whatever PCRE2's version, and its fast 8-bit paths serve
// every script. What is not part of the pattern language understood here (back-references, calls,
// \X, \K, conditionals, ...) is refused by Compile.
//
// Immutable and thread-safe; every thread needs its own scratch.
class Regex {
 public:
  // INVALID_ARGUMENT, naming the construct, where the pattern is malformed or not supported.
  static absl::StatusOr<std::unique_ptr<const Regex>> Compile(std::string_view pattern);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Replaces `*matches` with all successive non-overlapping matches in valid UTF-8 `text`, left to
  // right; no empty match touches the end of the one before. RESOURCE_EXHAUSTED where the engine
  // gives up on this text (backtracking limits): never a wrong answer instead.
  absl::Status FindAll(std::string_view text, RegexScratch* scratch,
                       std::vector<Match>* matches) const;

  const std::string& pattern() const { return pattern_; }

 private:
  Regex();
  uint8_t ClassOf(uint32_t code_point) const {
    return classes_[static_cast<size_t>(blocks_[code_point >> 8]) << 8 | (code_point & 0xFF)];
  }
  absl::StatusOr<int> MatchAt(std::string_view subject, size_t start, RegexScratch* scratch) const;

  struct Program;
  std::string pattern_;
  std::vector<uint16_t> blocks_;  // [0x1100] code point >> 8 -> block
  std::vector<uint8_t> classes_;  // [blocks, 256]
  std::unique_ptr<Program> program_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_REGEX_H_
