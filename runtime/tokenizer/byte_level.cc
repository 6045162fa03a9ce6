#include "runtime/tokenizer/byte_level.h"

#include <array>

#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr uint32_t kLimit = 256 + 68;  // 68 bytes are not printable in Latin-1

struct Tables {
  std::array<std::string, 256> character;
  std::array<int16_t, kLimit> byte;
};

const Tables& GetTables() {
  static const auto* const tables = [] {
    auto* out = new Tables;
    out->byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable =
          (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      const uint32_t c = printable ? b : next++;
      AppendUtf8(c, &out->character[b]);
      out->byte[c] = static_cast<int16_t>(b);
    }
    return out;
  }();
  return *tables;
}

}  // namespace

void AppendByteLevel(std::string_view bytes, std::string* out) {
  const Tables& tables = GetTables();
  for (char c : bytes) out->append(tables.character[static_cast<uint8_t>(c)]);
}

int ByteOfByteLevel(uint32_t code_point) {
  return code_point < kLimit ? GetTables().byte[code_point] : -1;
}

bool AppendBytesOfByteLevel(std::string_view text, std::string* out) {
  const size_t size = out->size();
  for (size_t i = 0; i < text.size();) {
    const int byte = ByteOfByteLevel(NextCodePoint(text, &i));
    if (byte < 0) {
      out->resize(size);
      return false;
    }
    out->push_back(static_cast<char>(byte));
  }
  return true;
}

}  // namespace phalanx::tokenizer
