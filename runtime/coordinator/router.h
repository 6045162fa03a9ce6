// Which replica a request goes to. Routing decides when an answer comes, never what it is: a
// replica that is thought to hold a prefix and doesn't computes it.
#ifndef PHALANX_RUNTIME_COORDINATOR_ROUTER_H_
#define PHALANX_RUNTIME_COORDINATOR_ROUTER_H_

#include <cstdint>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/cache/block_pool.h"

namespace phalanx::coordinator {

// The hashes of a text's full blocks, each over all text up to its end and the salt; fed token by
// token. A value.
class PrefixHasher {
 public:
  // `block_tokens` as in the block pool, >= 1.
  PrefixHasher(absl::string_view salt, int32_t block_tokens);
  void Push(int32_t token_id);
  void Push(absl::Span<const int32_t> token_ids);
  const std::vector<cache::Hash128>& hashes() const { return hashes_; }

 private:
  int32_t block_tokens_;
  cache::Hash128 parent_;
  std::vector<int32_t> open_;  // tokens of the block that isn't full yet
  std::vector<cache::Hash128> hashes_;
};

// What one replica's prefix cache is thought to hold: the blocks of the texts that it was given, at
// most as many as its KV memory has, those used longest ago given up first. An approximation: the
// block pool belongs to the replica's loop thread, and asking it would hold up both. Thread-safe.
class PrefixIndex {
 public:
  // Blocks to remember.
  void SetCapacity(int64_t blocks);
  // Blocks from the start of the text that are there, one after the other.
  int64_t Match(absl::Span<const cache::Hash128> hashes) const;
  // The text's blocks are there and were just used; its beginning is kept longest.
  void Add(absl::Span<const cache::Hash128> hashes);
  void Clear();

 private:
  struct HashOf {
    size_t operator()(const cache::Hash128& h) const { return static_cast<size_t>(h.low); }
  };
  mutable std::mutex mutex_;
  int64_t capacity_ = 0;
  std::list<cache::Hash128> by_age_;  // the newest first
  std::unordered_map<cache::Hash128, std::list<cache::Hash128>::iterator, HashOf> blocks_;
};

// How busy a replica is, in tokens (rows to compute), as its coordinator reckons: an answer whose
// length nobody knows counts as kReckonedAnswerTokens at most.
struct ReplicaLoad {
  // Still to compute for its unfinished requests: prompt tokens not thought cached until the first
  // token comes, then the tokens to come.
  int64_t work_tokens = 0;
  int64_t held_tokens = 0;    // KV slots that its unfinished requests come to need
  int64_t kv_tokens = 0;      // KV slots that it has
  int64_t cached_tokens = 0;  // of the prompt to be routed, thought to be in its prefix cache
};

// What a sample is reckoned to generate where it may generate more. max_tokens says little (most
// clients leave it at the context's end), and a reckoning of thousands per request would drown what
// a prefix saves; 256 is the order of a chat's answer.
inline constexpr int64_t kReckonedAnswerTokens = 256;
// How much more than it saves the replica with the longest prefix may cost before the request goes
// elsewhere: one ordinary answer. Without it a conversation would leave its replica, and be
// computed anew, whenever a single request ran there beside it.
inline constexpr int64_t kRoutingSlackTokens = 256;

// The replica with the longest cached prefix, unless it is much busier. With
//   busy = work_tokens + the KV slots that would be lacking with this request,
//   cost = busy - cached_tokens,
// it is taken unless its cost is more than kRoutingSlackTokens above the lowest; then that of
// lowest cost is. Among equals: the least busy, then the lowest index. `request_tokens`: rows that
// the request needs where nothing is cached, answers included. Precondition: `replicas` is not
// empty.
int ChooseReplica(absl::Span<const ReplicaLoad> replicas, int64_t request_tokens);

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_ROUTER_H_
