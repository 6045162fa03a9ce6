#ifndef PHALANX_RUNTIME_TOKENIZER_CODE_POINT_SET_H_
#define PHALANX_RUNTIME_TOKENIZER_CODE_POINT_SET_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace phalanx::tokenizer {

// Both ends belong to the range.
struct CodePointRange {
  uint32_t first;
  uint32_t last;
};

inline constexpr uint32_t kMaxCodePoint = 0x10FFFF;

// A set of Unicode code points: sorted, disjoint, non-adjacent ranges.
class CodePointSet {
 public:
  CodePointSet() = default;
  CodePointSet(uint32_t first, uint32_t last) { Add(first, last); }

  // Adds every code point in [first, last]; nothing if first > last.
  void Add(uint32_t first, uint32_t last);
  void Add(const CodePointSet& other);
  void Add(const CodePointRange* ranges, size_t size);
  void Remove(const CodePointSet& other);
  void Intersect(const CodePointSet& other);
  // The complement within [0, 0x10FFFF].
  CodePointSet Negated() const;

  bool Contains(uint32_t code_point) const;
  bool empty() const { return ranges().empty(); }
  const std::vector<CodePointRange>& ranges() const;

 private:
  void Normalize() const;

  // Normalized lazily, because sets are built by many small additions. Not thread-safe until then;
  // sets are only used while something is built.
  mutable std::vector<CodePointRange> ranges_;
  mutable bool dirty_ = false;
};

// Constant-time membership: one bit per code point (136 KiB).
class CodePointBitmap {
 public:
  explicit CodePointBitmap(const CodePointSet& set);
  bool Contains(uint32_t code_point) const {
    return (words_[code_point >> 6] >> (code_point & 63)) & 1;
  }

 private:
  std::vector<uint64_t> words_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_CODE_POINT_SET_H_
