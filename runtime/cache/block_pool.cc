#include "runtime/cache/block_pool.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::cache {

void BlockPoolStats::Add(const BlockPoolStats& other) {
  total += other.total;
  free += other.free;
  cached += other.cached;
  in_use += other.in_use;
  queried_blocks += other.queried_blocks;
  hit_blocks += other.hit_blocks;
  evictions += other.evictions;
}

BlockPool::BlockPool(BlockPoolOptions options) : options_(std::move(options)) {
  PHALANX_CHECK(options_.num_blocks >= 0 && options_.block_tokens >= 1 &&
                options_.partitions >= 1 &&
                options_.num_blocks <= std::numeric_limits<int32_t>::max() / options_.partitions)
      << options_.partitions << " times " << options_.num_blocks << " blocks of "
      << options_.block_tokens << " tokens";
  if (!options_.hash) {
    // Any key will do: hits are verified, so a forged collision only costs its author a miss.
    options_.hash = [](absl::string_view data) {
      return SipHash128(data, 0x5068616c616e7821, 0x426c6f636b506f6f);
    };
  }
  blocks_.resize(static_cast<size_t>(options_.partitions) * options_.num_blocks);
  partitions_.resize(options_.partitions);
  for (Partition& partition : partitions_) partition.free.reserve(options_.num_blocks);
  for (int32_t b = num_blocks() - 1; b >= 0; --b) PartitionWith(b).free.push_back(b);
}

std::optional<int32_t> BlockPool::Allocate(int32_t partition) {
  PHALANX_CHECK(partition >= 0 && partition < partitions()) << "partition " << partition;
  Partition& from = partitions_[partition];
  int32_t block = -1;
  if (!from.free.empty()) {
    block = from.free.back();
    from.free.pop_back();
  } else if (from.oldest >= 0) {
    block = from.oldest;
    FreeDescendants(block);
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

int64_t BlockPool::CachedAmong(absl::Span<const int32_t> blocks, int32_t partition) const {
  return std::count_if(blocks.begin(), blocks.end(), [&](int32_t b) {
    return blocks_[b].references == 0 && PartitionOf(b) == partition;
  });
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
      PartitionWith(*it).free.push_back(*it);
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
  if (above != nullptr) {
    b.parent = parent;
    b.next_sibling = above->first_child;
    if (b.next_sibling >= 0) blocks_[b.next_sibling].previous_sibling = block;
    blocks_[parent].first_child = block;
  }
  b.salt = above == nullptr ? std::string(salt) : std::string();
  b.tokens.assign(tokens.begin(), tokens.end());
  return block;
}

void BlockPool::Unpublish(int32_t block) {
  Block& b = blocks_[block];
  by_hash_.erase(b.hash);
  if (b.parent >= 0) {
    (b.previous_sibling >= 0 ? blocks_[b.previous_sibling].next_sibling
                             : blocks_[b.parent].first_child) = b.next_sibling;
    if (b.next_sibling >= 0) blocks_[b.next_sibling].previous_sibling = b.previous_sibling;
  }
  b.parent = b.next_sibling = b.previous_sibling = -1;
  b.published = false;
  b.serial = 0;
  b.parent_serial = 0;
  b.salt.clear();
  b.tokens.clear();
}

// Nobody refers to `block`, so nobody refers to what follows it either: all of that is cached.
void BlockPool::FreeDescendants(int32_t block) {
  for (int32_t at = block; at != block || blocks_[block].first_child >= 0;) {
    if (blocks_[at].first_child >= 0) {
      at = blocks_[at].first_child;
      continue;
    }
    const int32_t parent = blocks_[at].parent;
    Unlink(at);
    Unpublish(at);
    PartitionWith(at).free.push_back(at);
    ++evictions_;
    at = parent;
  }
}

void BlockPool::Unlink(int32_t block) {
  Block& b = blocks_[block];
  Partition& list = PartitionWith(block);
  (b.older >= 0 ? blocks_[b.older].newer : list.oldest) = b.newer;
  (b.newer >= 0 ? blocks_[b.newer].older : list.newest) = b.older;
  b.older = b.newer = -1;
  --list.cached;
}

void BlockPool::PushNewest(int32_t block) {
  Block& b = blocks_[block];
  Partition& list = PartitionWith(block);
  b.older = list.newest;
  b.newer = -1;
  (list.newest >= 0 ? blocks_[list.newest].newer : list.oldest) = block;
  list.newest = block;
  ++list.cached;
}

BlockPoolStats BlockPool::stats() const {
  BlockPoolStats s;
  s.total = num_blocks();
  for (const Partition& partition : partitions_) {
    s.free += static_cast<int64_t>(partition.free.size());
    s.cached += partition.cached;
  }
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
  for (int32_t p = 0; p < partitions(); ++p) {
    for (const int32_t b : partitions_[p].free) {
      if (state[b]++ != 0) return broken("block ", b, " is twice in a free list");
      if (PartitionOf(b) != p) return broken("block ", b, " is in partition ", p, "'s free list");
      if (blocks_[b].references != 0 || blocks_[b].published) {
        return broken("free block ", b, " is in use or published");
      }
    }
  }
  // In a partition a child must be older than its parent, so that it is evicted first.
  std::unordered_map<uint64_t, int32_t> by_serial;
  for (int32_t b = 0; b < num_blocks(); ++b) {
    if (blocks_[b].published) by_serial[blocks_[b].serial] = b;
  }
  std::vector<int64_t> age(blocks_.size(), -1);
  for (int32_t p = 0; p < partitions(); ++p) {
    const Partition& list = partitions_[p];
    int64_t count = 0;
    int32_t before = -1;
    for (int32_t b = list.oldest; b >= 0; b = blocks_[b].newer) {
      if (state[b] != 0) return broken("block ", b, " is in two lists or twice in one");
      state[b] = 2;
      if (blocks_[b].references != 0 || !blocks_[b].published || blocks_[b].older != before ||
          PartitionOf(b) != p) {
        return broken("cached block ", b, " is in use, unpublished or linked wrongly");
      }
      age[b] = count++;
      before = b;
    }
    if (count != list.cached || before != list.newest) {
      return broken("LRU list of partition ", p, " holds ", count, " blocks");
    }
  }
  int64_t children = 0;
  int64_t published = 0;
  for (int32_t b = 0; b < num_blocks(); ++b) {
    const Block& block = blocks_[b];
    for (int32_t child = block.first_child; child >= 0; child = blocks_[child].next_sibling) {
      if (blocks_[child].parent != b || ++children > num_blocks()) {
        return broken("the children of block ", b, " are linked wrongly");
      }
    }
    if ((block.references > 0) != (state[b] == 0)) {
      return broken("block ", b, " with ", block.references, " references is in list ", state[b]);
    }
    if (!block.published) continue;
    ++published;
    const auto it = by_hash_.find(block.hash);
    if (it == by_hash_.end() || it->second != b) return broken("block ", b, " is not indexed");
    if (block.parent_serial == 0) continue;
    --children;
    const auto parent = by_serial.find(block.parent_serial);
    if (parent == by_serial.end() || parent->second != block.parent) {
      return broken("block ", b, " has lost its parent");
    }
    const Block& above = blocks_[parent->second];
    if (above.references < block.references) {
      return broken("block ", b, " has more references than its parent");
    }
    const bool same_list = PartitionOf(b) == PartitionOf(parent->second);
    if (state[parent->second] == 2 &&
        (state[b] != 2 || (same_list && age[b] > age[parent->second]))) {
      return broken("parent ", parent->second, " would be evicted before block ", b);
    }
  }
  if (children != 0) return broken("lists of children and parents differ by ", children);
  if (published != static_cast<int64_t>(by_hash_.size())) return broken("stale index entries");
  return absl::OkStatus();
}

}  // namespace phalanx::cache
