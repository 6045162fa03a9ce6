#include "runtime/tokenizer/code_point_set.h"

#include <algorithm>

namespace phalanx::tokenizer {

void CodePointSet::Add(uint32_t first, uint32_t last) {
  if (first > last) return;
  ranges_.push_back({first, last});
  dirty_ = true;
}

void CodePointSet::Add(const CodePointSet& other) {
  if (&other == this) return;
  const std::vector<CodePointRange>& added = other.ranges();
  ranges_.insert(ranges_.end(), added.begin(), added.end());
  dirty_ = true;
}

void CodePointSet::Add(const CodePointRange* ranges, size_t size) {
  for (size_t i = 0; i < size; ++i) Add(ranges[i].first, ranges[i].last);
}

void CodePointSet::Remove(const CodePointSet& other) { Intersect(other.Negated()); }

void CodePointSet::Intersect(const CodePointSet& other) {
  const std::vector<CodePointRange>& a = ranges();
  const std::vector<CodePointRange>& b = other.ranges();
  std::vector<CodePointRange> out;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const uint32_t first = std::max(a[i].first, b[j].first);
    const uint32_t last = std::min(a[i].last, b[j].last);
    if (first <= last) out.push_back({first, last});
    if (a[i].last < b[j].last) {
      ++i;
    } else {
      ++j;
    }
  }
  ranges_ = std::move(out);
  dirty_ = true;
}

CodePointSet CodePointSet::Negated() const {
  CodePointSet out;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges()) {
    if (range.first > next) out.Add(next, range.first - 1);
    next = range.last + 1;
  }
  if (next <= kMaxCodePoint) out.Add(next, kMaxCodePoint);
  return out;
}

bool CodePointSet::Contains(uint32_t code_point) const {
  const std::vector<CodePointRange>& all = ranges();
  auto it =
      std::upper_bound(all.begin(), all.end(), code_point,
                       [](uint32_t value, const CodePointRange& r) { return value < r.first; });
  return it != all.begin() && code_point <= std::prev(it)->last;
}

const std::vector<CodePointRange>& CodePointSet::ranges() const {
  if (dirty_) Normalize();
  return ranges_;
}

void CodePointSet::Normalize() const {
  std::sort(ranges_.begin(), ranges_.end(),
            [](const CodePointRange& a, const CodePointRange& b) { return a.first < b.first; });
  std::vector<CodePointRange> out;
  for (const CodePointRange& range : ranges_) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  ranges_ = std::move(out);
  dirty_ = false;
}

CodePointBitmap::CodePointBitmap(const CodePointSet& set) : words_((kMaxCodePoint >> 6) + 1) {
  for (const CodePointRange& range : set.ranges()) {
    for (uint32_t c = range.first; c <= range.last; ++c) words_[c >> 6] |= uint64_t{1} << (c & 63);
  }
}

}  // namespace phalanx::tokenizer
