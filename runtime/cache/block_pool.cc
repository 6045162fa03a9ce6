#include "runtime/cache/block_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::cache {

BlockPool::BlockPool(BlockPoolOptions options)
    : options_(std::move(options)), blocks_(std::max(options_.num_blocks, 0)) {
  PHALANX_CHECK(options_.num_blocks >= 0 && options_.block_tokens >= 1)
      << options_.num_blocks << " blocks of " << options_.block_tokens << " tokens";
  if (!options_.hash) {
    // Any key will do: hits are verified, so a forged collision only costs its author a miss.
    options_.hash = [](absl::string_view data) {
      return SipHash128(data, 0x5068616c616e7821, 0x426c6f636b506f6f);
    };
  }
  free_.reserve(blocks_.size());
  for (int32_t b = options_.num_blocks - 1; b >= 0; --b) free_.push_back(b);
}

std::optional<int32_t> BlockPool::Allocate() {
  int32_t block = -1;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    block = oldest_;
    Unlink(block);
    Unpublish(block);
    ++evictions_;
  } else {
    return std::nullopt;
  }
  blocks_[block].references = 1;
  return block;
}

Hash128 BlockPool::ChainHash(const Block* parent, absl::string_view salt,
                             absl::Span<const int32_t> tokens) const {
  // A first byte keeps the two kinds of parent apart.
  std::string data;
  data.reserve(32 + salt.size() + tokens.size() * sizeof(int32_t));
  if (parent != nullptr) {
    data.push_back('p');
    data.append(reinterpret_cast<const char*>(&parent->hash.low), sizeof(uint64_t));
    data.append(reinterpret_cast<const char*>(&parent->hash.high), sizeof(uint64_t));
  } else {
    data.push_back('s');
    const uint64_t size = salt.size();
    data.append(reinterpret_cast<const char*>(&size), sizeof(size));
    data.append(salt.data(), salt.size());
  }
  data.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t));
  return options_.hash(data);
}

bool BlockPool::SameText(const Block& block, const Block* parent, absl::string_view salt,
                         absl::Span<const int32_t> tokens) const {
  if (block.parent_serial != (parent != nullptr ? parent->serial : 0)) return false;
  if (parent == nullptr && block.salt != salt) return false;
  return std::equal(block.tokens.begin(), block.tokens.end(), tokens.begin(), tokens.end());
}

int32_t BlockPool::Find(const Hash128& hash, const Block* parent, absl::string_view salt,
                        absl::Span<const int32_t> tokens) const {
  const auto it = by_hash_.find(hash);
  if (it == by_hash_.end() || !SameText(blocks_[it->second], parent, salt, tokens)) return -1;
  return it->second;
}

std::vector<int32_t> BlockPool::MatchPrefix(absl::string_view salt,
                                            absl::Span<const int32_t> tokens,
                                            int64_t max_tokens) const {
  std::vector<int32_t> found;
  const int64_t size = options_.block_tokens;
  const int64_t limit = std::min<int64_t>(max_tokens, static_cast<int64_t>(tokens.size()));
  const Block* parent = nullptr;
  for (int64_t begin = 0; begin + size <= limit; begin += size) {
    const absl::Span<const int32_t> text = tokens.subspan(begin, size);
    const int32_t block = Find(ChainHash(parent, salt, text), parent, salt, text);
    if (block < 0) break;
    found.push_back(block);
    parent = &blocks_[block];
  }
  return found;
}

void BlockPool::Acquire(absl::Span<const int32_t> blocks) {
  for (const int32_t block : blocks) {
    Block& b = blocks_[block];
    PHALANX_CHECK(b.references > 0 || b.published) << "block " << block << " is free";
    if (b.references++ == 0) Unlink(block);
  }
}

int64_t BlockPool::CachedAmong(absl::Span<const int32_t> blocks) const {
  return std::count_if(blocks.begin(), blocks.end(),
                       [this](int32_t b) { return blocks_[b].references == 0; });
}

void BlockPool::CountLookup(int64_t queried, int64_t hits) {
  queried_blocks_ += queried;
  hit_blocks_ += hits;
}

void BlockPool::Release(absl::Span<const int32_t> blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    Block& b = blocks_[*it];
    PHALANX_CHECK(b.references > 0) << "block " << *it << " is not in use";
    if (--b.references > 0) continue;
    if (b.published) {
      PushNewest(*it);
    } else {
      free_.push_back(*it);
    }
  }
}

int32_t BlockPool::Publish(int32_t block, int32_t parent, absl::string_view salt,
                           absl::Span<const int32_t> tokens) {
  PHALANX_CHECK(static_cast<int64_t>(tokens.size()) == options_.block_tokens)
      << tokens.size() << " tokens";
  Block& b = blocks_[block];
  PHALANX_CHECK(b.references > 0) << "block " << block << " is not in use";
  if (b.published) return block;
  const Block* above = nullptr;
  if (parent >= 0) {
    above = &blocks_[parent];
    PHALANX_CHECK(above->references > 0) << "parent " << parent << " is not in use";
    if (!above->published) return block;
  }
  const Hash128 hash = ChainHash(above, salt, tokens);
  const auto [it, inserted] = by_hash_.try_emplace(hash, block);
  if (!inserted) {
    const int32_t holder = it->second;
    if (!SameText(blocks_[holder], above, salt, tokens)) return block;
    Acquire({&holder, 1});
    Release({&block, 1});
    return holder;
  }
  b.published = true;
  b.hash = hash;
  b.serial = next_serial_++;
  b.parent_serial = above != nullptr ? above->serial : 0;
  b.salt = above == nullptr ? std::string(salt) : std::string();
  b.tokens.assign(tokens.begin(), tokens.end());
  return block;
}

void BlockPool::Unpublish(int32_t block) {
  Block& b = blocks_[block];
  by_hash_.erase(b.hash);
  b.published = false;
  b.serial = 0;
  b.parent_serial = 0;
  b.salt.clear();
  b.tokens.clear();
}

void BlockPool::Unlink(int32_t block) {
  Block& b = blocks_[block];
  (b.older >= 0 ? blocks_[b.older].newer : oldest_) = b.newer;
  (b.newer >= 0 ? blocks_[b.newer].older : newest_) = b.older;
  b.older = b.newer = -1;
  --lru_size_;
}

void BlockPool::PushNewest(int32_t block) {
  Block& b = blocks_[block];
  b.older = newest_;
  b.newer = -1;
  (newest_ >= 0 ? blocks_[newest_].newer : oldest_) = block;
  newest_ = block;
  ++lru_size_;
}

BlockPoolStats BlockPool::stats() const {
  BlockPoolStats s;
  s.total = options_.num_blocks;
  s.free = static_cast<int64_t>(free_.size());
  s.cached = lru_size_;
  s.in_use = s.total - s.free - s.cached;
  s.queried_blocks = queried_blocks_;
  s.hit_blocks = hit_blocks_;
  s.evictions = evictions_;
  return s;
}

absl::Status BlockPool::CheckInvariants() const {
  const auto broken = [](const auto&... parts) {
    return absl::InternalError(absl::StrCat("block pool: ", parts...));
  };
  std::vector<int> state(blocks_.size(), 0);  // 1: in the free list, 2: in the LRU list
  for (const int32_t b : free_) {
    if (state[b]++ != 0) return broken("block ", b, " is twice in the free list");
    if (blocks_[b].references != 0 || blocks_[b].published) {
      return broken("free block ", b, " is in use or published");
    }
  }
  // A child must be older than its parent in the LRU list, so that it is evicted first.
  std::unordered_map<uint64_t, int32_t> by_serial;
  for (int32_t b = 0; b < options_.num_blocks; ++b) {
    if (blocks_[b].published) by_serial[blocks_[b].serial] = b;
  }
  std::vector<int64_t> age(blocks_.size(), -1);
  int64_t count = 0;
  int32_t before = -1;
  for (int32_t b = oldest_; b >= 0; b = blocks_[b].newer) {
    if (state[b] != 0) return broken("block ", b, " is in two lists or twice in one");
    state[b] = 2;
    if (blocks_[b].references != 0 || !blocks_[b].published || blocks_[b].older != before) {
      return broken("cached block ", b, " is in use, unpublished or linked wrongly");
    }
    age[b] = count++;
    before = b;
  }
  if (count != lru_size_ || before != newest_) return broken("LRU list holds ", count, " blocks");
  int64_t published = 0;
  for (int32_t b = 0; b < options_.num_blocks; ++b) {
    const Block& block = blocks_[b];
    if ((block.references > 0) != (state[b] == 0)) {
      return broken("block ", b, " with ", block.references, " references is in list ", state[b]);
    }
    if (!block.published) continue;
    ++published;
    const auto it = by_hash_.find(block.hash);
    if (it == by_hash_.end() || it->second != b) return broken("block ", b, " is not indexed");
    if (block.parent_serial == 0) continue;
    const auto parent = by_serial.find(block.parent_serial);
    if (parent == by_serial.end()) return broken("block ", b, " has lost its parent");
    const Block& above = blocks_[parent->second];
    if (above.references < block.references) {
      return broken("block ", b, " has more references than its parent");
    }
    if (state[parent->second] == 2 && (state[b] != 2 || age[b] > age[parent->second])) {
      return broken("parent ", parent->second, " would be evicted before block ", b);
    }
  }
  if (published != static_cast<int64_t>(by_hash_.size())) return broken("stale index entries");
  return absl::OkStatus();
}

}  // namespace phalanx::cache
