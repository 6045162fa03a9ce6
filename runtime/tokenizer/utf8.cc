#include "runtime/tokenizer/utf8.h"

#include <cstring>

namespace phalanx::tokenizer {
namespace {

// The length of the well-formed character at `p` (`n` bytes are there), else 0 with `*bad` set to
// the length of the maximal ill-formed subpart, or *incomplete where more bytes may complete it.
size_t CharacterAt(const uint8_t* p, size_t n, size_t* bad, bool* incomplete) {
  *incomplete = false;
  const uint8_t lead = p[0];
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    *bad = 1;
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == n) {
      *incomplete = true;
      *bad = n;
      return 0;
    }
    if (p[i] < low || p[i] > high) {
      *bad = i;
      return 0;
    }
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  size_t i = 0;
  while (i < text.size()) {
    while (i + 8 <= text.size()) {
      uint64_t word;
      std::memcpy(&word, p + i, 8);
      if (word & 0x8080808080808080u) break;
      i += 8;
    }
    if (i == text.size()) break;
    size_t bad = 0;
    bool incomplete = false;
    const size_t length = CharacterAt(p + i, text.size() - i, &bad, &incomplete);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

uint32_t PreviousCodePoint(std::string_view text, size_t end, size_t* start) {
  size_t p = end - 1;
  while (IsUtf8Continuation(text[p])) --p;
  *start = p;
  return NextCodePoint(text, &p);
}

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | c >> 18));
    out->push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

void LossyUtf8Decoder::Append(std::string_view bytes, std::string* out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_;
    joined.append(bytes);
    bytes = joined;
    pending_.clear();
  }
  const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
  size_t i = 0;
  while (i < bytes.size()) {
    size_t bad = 0;
    bool incomplete = false;
    const size_t length = CharacterAt(p + i, bytes.size() - i, &bad, &incomplete);
    if (length > 0) {
      out->append(bytes.substr(i, length));
      i += length;
    } else if (incomplete) {
      pending_.assign(bytes.substr(i));
      return;
    } else {
      out->append(kReplacementCharacter);
      i += unit_ == Unit::kByte ? 1 : bad;
    }
  }
}

void LossyUtf8Decoder::Finish(std::string* out) {
  const size_t count = unit_ == Unit::kByte ? pending_.size() : pending_.empty() ? 0 : 1;
  for (size_t i = 0; i < count; ++i) out->append(kReplacementCharacter);
  pending_.clear();
}

}  // namespace phalanx::tokenizer
