#include <bit>
#include <cstring>

#include "runtime/cache/block_pool.h"

namespace phalanx::cache {
namespace {

struct State {
  uint64_t v0, v1, v2, v3;

  void Rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v1 = std::rotl(v1, 13) ^ v0;
      v0 = std::rotl(v0, 32);
      v2 += v3;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1;
      v1 = std::rotl(v1, 17) ^ v2;
      v2 = std::rotl(v2, 32);
    }
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }
};

}  // namespace

Hash128 SipHash128(absl::string_view data, uint64_t key0, uint64_t key1) {
  State s{key0 ^ 0x736f6d6570736575, key1 ^ 0x646f72616e646f6d ^ 0xee, key0 ^ 0x6c7967656e657261,
          key1 ^ 0x7465646279746573};
  size_t at = 0;
  for (; at + 8 <= data.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, data.data() + at, 8);  // little-endian machines only, as all of Phalanx
    s.Absorb(word);
  }
  uint64_t tail = static_cast<uint64_t>(data.size()) << 56;
  for (size_t i = 0; at + i < data.size(); ++i) {
    tail |= static_cast<uint64_t>(static_cast<uint8_t>(data[at + i])) << (8 * i);
  }
  s.Absorb(tail);
  Hash128 out;
  s.v2 ^= 0xee;
  s.Rounds(4);
  out.low = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
  s.v1 ^= 0xdd;
  s.Rounds(4);
  out.high = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
  return out;
}

}  // namespace phalanx::cache
