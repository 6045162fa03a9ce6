// Accounting of the physical KV blocks: who refers to which block, which full blocks may be reused
// as a prefix, and which is given up first. One pool per worker group, on the coordinator; the
// storage itself lies on the ranks.
//
// Partitions are the memories of the sequence-parallel ranks: each holds N = num_blocks blocks, and
// block id g in [0, partitions * N) is local block g % N of rank g / N. Every rank of a partition
// uses the same ids. A free list and an eviction order belong to a partition; a text's chain runs
// through all of them. Which partition a block is taken from is the caller's choice, made from the
// block's index in its sequence alone (block_striping.h): chains match from index 0 on, so a hit at
// index b always lies where a sequence needs its block b, and reuse needs no rule for partitions.
//
// A block is free (content worthless), in use (reference count > 0) or cached (published, reference
// count 0). A full block is published under its chain: a 128-bit SipHash of its parent's hash and
// its own token ids, the first block's parent being the salt. A hit is believed only when the
// stored parent, salt and token ids are equal too, so no collision can hand out wrong content. (The
// scheme: Kwon et al., arXiv:2309.06180.)
//
// Cached blocks are evicted least recently released first and only when their partition has no free
// one left. Whoever refers to a block refers to all its parents too (Publish sees to that by
// handing back the canonical block), and Release goes from the tail to the head, so in a partition
// a child always leaves before its parent and chains stay useful. Descendants that an evicted block
// has in other partitions can't be reached any more: they become free at once.
//
// Not thread-safe. No block is ever in two states; CheckInvariants() says so in tests.
#ifndef PHALANX_RUNTIME_CACHE_BLOCK_POOL_H_
#define PHALANX_RUNTIME_CACHE_BLOCK_POOL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace phalanx::cache {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, INDOCRYPT 2012).
Hash128 SipHash128(absl::string_view data, uint64_t key0, uint64_t key1);

struct BlockPoolOptions {
  int32_t num_blocks = 0;     // physical blocks of each partition; >= 0
  int32_t block_tokens = 32;  // >= 1
  // Null: SipHash128. Tests put a bad one here.
  std::function<Hash128(absl::string_view)> hash;
  // Sequence-parallel ranks, >= 1. Precondition: partitions * num_blocks fits 31 bits.
  int32_t partitions = 1;
};

// Over all partitions.
struct BlockPoolStats {
  int64_t total = 0;
  int64_t free = 0;
  int64_t cached = 0;  // published, not in use: free when needed
  int64_t in_use = 0;
  int64_t queried_blocks = 0;  // full blocks that Acquire's callers could have used
  int64_t hit_blocks = 0;
  int64_t evictions = 0;  // cached blocks given up, for their own room or with a parent

  // What has been counted alone, without what is held.
  BlockPoolStats Counted() const {
    BlockPoolStats out;
    out.queried_blocks = queried_blocks;
    out.hit_blocks = hit_blocks;
    out.evictions = evictions;
    return out;
  }
  void Add(const BlockPoolStats& other);
};

class BlockPool {
 public:
  explicit BlockPool(BlockPoolOptions options);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }  // of all partitions
  int32_t block_tokens() const { return options_.block_tokens; }
  int32_t partitions() const { return options_.partitions; }
  int32_t PartitionOf(int32_t block) const { return block / options_.num_blocks; }
  // Blocks that can be allocated now: free and cached.
  int64_t available(int32_t partition = 0) const {
    return static_cast<int64_t>(partitions_[partition].free.size()) + partitions_[partition].cached;
  }

  // A block of `partition` (0 .. partitions() - 1) with reference count 1 and worthless content;
  // nullopt when every block of the partition is in use.
  std::optional<int32_t> Allocate(int32_t partition = 0);

  // The longest chain of published blocks that holds tokens[0 .. k * block_tokens) with
  // k * block_tokens <= max_tokens. Changes nothing.
  std::vector<int32_t> MatchPrefix(absl::string_view salt, absl::Span<const int32_t> tokens,
                                   int64_t max_tokens) const;

  // Adds a reference to each block. Precondition: each is in use, or `blocks` came from MatchPrefix
  // and nothing was allocated since.
  void Acquire(absl::Span<const int32_t> blocks);
  // How many of `blocks` Acquire would take from the cached ones of `partition`, and so from
  // available(partition).
  int64_t CachedAmong(absl::Span<const int32_t> blocks, int32_t partition = 0) const;
  // Counts one look-up for the statistics: `queried` full blocks asked for, `hits` found.
  void CountLookup(int64_t queried, int64_t hits);

  // Drops a reference of each, from the last to the first. At zero a published block is cached, any
  // other is free. Precondition: `blocks` is a block table (or a tail of one), each in use.
  void Release(absl::Span<const int32_t> blocks);

  // True when more than one holds the block: who wants to write to it must copy it first.
  bool IsShared(int32_t block) const { return blocks_[block].references > 1; }

  // Publishes a full block whose content is `tokens` [block_tokens], following `parent` (-1: it is
  // block 0 of a text; then `salt` counts). Returns the block that the caller must have in its
  // table from now on: `block`, or another that already holds the same text, to which the caller's
  // reference has moved. Preconditions: the caller refers to `block` and `parent`; `parent` is what
  // Publish returned for the block before, or came from MatchPrefix; `block`, if not published yet,
  // is the caller's alone. A block whose hash is taken by other content, or whose parent couldn't
  // be published, stays unpublished.
  int32_t Publish(int32_t block, int32_t parent, absl::string_view salt,
                  absl::Span<const int32_t> tokens);

  BlockPoolStats stats() const;
  int32_t references(int32_t block) const { return blocks_[block].references; }
  bool published(int32_t block) const { return blocks_[block].published; }

  // Walks everything; INTERNAL names the first broken invariant. For tests.
  absl::Status CheckInvariants() const;

 private:
  struct HashOf {
    size_t operator()(const Hash128& h) const { return static_cast<size_t>(h.low); }
  };
  struct Block {
    int32_t references = 0;
    bool published = false;
    Hash128 hash;                // published: of the chain up to and with this block
    uint64_t serial = 0;         // published: unique over the pool's life
    uint64_t parent_serial = 0;  // 0: first block
    std::string salt;            // first block only
    std::vector<int32_t> tokens;
    int32_t parent = -1;  // published: the published block before it
    int32_t first_child = -1;
    int32_t next_sibling = -1;  // among the parent's children
    int32_t previous_sibling = -1;
    int32_t older = -1;  // LRU list of its partition's cached blocks
    int32_t newer = -1;
  };
  struct Partition {
    std::vector<int32_t> free;  // the last is handed out first
    int32_t oldest = -1;
    int32_t newest = -1;
    int64_t cached = 0;
  };

  Hash128 ChainHash(const Block* parent, absl::string_view salt,
                    absl::Span<const int32_t> tokens) const;
  // The published block with this chain, verified; -1: none.
  int32_t Find(const Hash128& hash, const Block* parent, absl::string_view salt,
               absl::Span<const int32_t> tokens) const;
  bool SameText(const Block& block, const Block* parent, absl::string_view salt,
                absl::Span<const int32_t> tokens) const;
  Partition& PartitionWith(int32_t block) { return partitions_[PartitionOf(block)]; }
  void Unlink(int32_t block);
  void PushNewest(int32_t block);
  void Unpublish(int32_t block);
  void FreeDescendants(int32_t block);

  BlockPoolOptions options_;
  std::vector<Block> blocks_;
  std::vector<Partition> partitions_;
  std::unordered_map<Hash128, int32_t, HashOf> by_hash_;
  uint64_t next_serial_ = 1;
  int64_t queried_blocks_ = 0;
  int64_t hit_blocks_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace phalanx::cache

#endif  // PHALANX_RUNTIME_CACHE_BLOCK_POOL_H_
