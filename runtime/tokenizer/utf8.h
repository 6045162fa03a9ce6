#ifndef PHALANX_RUNTIME_TOKENIZER_UTF8_H_
#define PHALANX_RUNTIME_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx::tokenizer {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The byte offset of the first ill-formed sequence (RFC 3629), or npos where `text` is valid UTF-8.
size_t FindInvalidUtf8(std::string_view text);

// The code point at `*position`, which is moved behind it. `text` must be valid UTF-8 and
// *position < text.size() the first byte of a character.
inline uint32_t NextCodePoint(std::string_view text, size_t* position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const size_t p = *position;
  const uint32_t lead = byte(p);
  if (lead < 0x80) {
    *position = p + 1;
    return lead;
  }
  if (lead < 0xE0) {
    *position = p + 2;
    return (lead & 0x1F) << 6 | (byte(p + 1) & 0x3F);
  }
  if (lead < 0xF0) {
    *position = p + 3;
    return (lead & 0x0F) << 12 | (byte(p + 1) & 0x3F) << 6 | (byte(p + 2) & 0x3F);
  }
  *position = p + 4;
  return (lead & 0x07) << 18 | (byte(p + 1) & 0x3F) << 12 | (byte(p + 2) & 0x3F) << 6 |
         (byte(p + 3) & 0x3F);
}

// Bytes of the character that starts with `lead` in valid UTF-8.
inline size_t Utf8Length(char lead) {
  const auto b = static_cast<uint8_t>(lead);
  return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

inline bool IsUtf8Continuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

// The code point that ends at `end` (exclusive) in valid UTF-8; `*start` receives its first byte.
uint32_t PreviousCodePoint(std::string_view text, size_t end, size_t* start);

void AppendUtf8(uint32_t code_point, std::string* out);

// Decodes bytes that arrive in pieces, as Rust's String::from_utf8_lossy does on the whole: every
// maximal ill-formed subpart (Unicode 15, section 3.9, table 3-8) becomes one U+FFFD. What is
// appended to `out` is always valid UTF-8; at most three bytes wait for their continuation.
class LossyUtf8Decoder {
 public:
  // What one U+FFFD stands for: a maximal ill-formed subpart, or (as SentencePiece has it) a byte.
  enum class Unit { kSubpart, kByte };
  explicit LossyUtf8Decoder(Unit unit = Unit::kSubpart) : unit_(unit) {}

  void Append(std::string_view bytes, std::string* out);
  // The end of the input: an unfinished sequence becomes U+FFFD.
  void Finish(std::string* out);

 private:
  Unit unit_;
  std::string pending_;  // an incomplete but so far well-formed prefix of a character
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_UTF8_H_
