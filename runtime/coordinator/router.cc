#include "runtime/coordinator/router.h"

#include <algorithm>
#include <string>
#include <tuple>

namespace phalanx::coordinator {
namespace {

// Any key will do: a collision only sends a request to a replica that must compute its prefix.
cache::Hash128 Hash(absl::string_view data) {
  return cache::SipHash128(data, 0x526f7574696e6721, 0x5068616c616e7821);
}

}  // namespace

PrefixHasher::PrefixHasher(absl::string_view salt, int32_t block_tokens)
    : block_tokens_(block_tokens), parent_(Hash(salt)) {
  open_.reserve(block_tokens);
}

void PrefixHasher::Push(int32_t token_id) {
  open_.push_back(token_id);
  if (static_cast<int32_t>(open_.size()) < block_tokens_) return;
  std::string data(reinterpret_cast<const char*>(&parent_), sizeof(parent_));
  data.append(reinterpret_cast<const char*>(open_.data()), open_.size() * sizeof(int32_t));
  parent_ = Hash(data);
  hashes_.push_back(parent_);
  open_.clear();
}

void PrefixHasher::Push(absl::Span<const int32_t> token_ids) {
  for (const int32_t id : token_ids) Push(id);
}

void PrefixIndex::SetCapacity(int64_t blocks) {
  std::lock_guard<std::mutex> lock(mutex_);
  capacity_ = blocks;
}

int64_t PrefixIndex::Match(absl::Span<const cache::Hash128> hashes) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto missing = std::find_if(hashes.begin(), hashes.end(),
                                    [this](const auto& hash) { return !blocks_.contains(hash); });
  return missing - hashes.begin();
}

void PrefixIndex::Add(absl::Span<const cache::Hash128> hashes) {
  std::lock_guard<std::mutex> lock(mutex_);
  // From the end to the beginning, which so becomes the newest.
  for (auto hash = hashes.rbegin(); hash != hashes.rend(); ++hash) {
    const auto it = blocks_.find(*hash);
    if (it != blocks_.end()) {
      by_age_.splice(by_age_.begin(), by_age_, it->second);
    } else {
      by_age_.push_front(*hash);
      blocks_.emplace(*hash, by_age_.begin());
    }
  }
  while (static_cast<int64_t>(blocks_.size()) > capacity_) {
    blocks_.erase(by_age_.back());
    by_age_.pop_back();
  }
}

void PrefixIndex::Clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_.clear();
  by_age_.clear();
}

int ChooseReplica(absl::Span<const ReplicaLoad> replicas, int64_t request_tokens) {
  const auto busy = [&](const ReplicaLoad& r) {
    const int64_t needed = r.held_tokens + request_tokens - r.cached_tokens;
    return r.work_tokens + std::max<int64_t>(0, needed - r.kv_tokens);
  };
  const auto cost = [&](const ReplicaLoad& r) { return busy(r) - r.cached_tokens; };
  int longest = 0;
  int cheapest = 0;
  for (int i = 1; i < static_cast<int>(replicas.size()); ++i) {
    const ReplicaLoad& r = replicas[i];
    const ReplicaLoad& l = replicas[longest];
    const ReplicaLoad& c = replicas[cheapest];
    if (std::tuple(-r.cached_tokens, busy(r)) < std::tuple(-l.cached_tokens, busy(l))) longest = i;
    if (std::tuple(cost(r), busy(r)) < std::tuple(cost(c), busy(c))) cheapest = i;
  }
  const int64_t excess = cost(replicas[longest]) - cost(replicas[cheapest]);
  return excess > kRoutingSlackTokens ? cheapest : longest;
}

}  // namespace phalanx::coordinator
