// The pool against a naive model, over random lives of sequences.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/cache/block_pool.h"

namespace phalanx::cache {
namespace {

constexpr int32_t kBlockTokens = 3;

// Whole texts instead of hashes, searches instead of lists.
struct NaivePool {
  using Text = std::pair<std::string, std::vector<int32_t>>;  // salt, all tokens from the first
  NaivePool(int32_t partitions, int32_t each)
      : each(each),
        references(partitions * each, 0),
        text(partitions * each),
        released(partitions * each, 0),
        free(partitions) {
    for (int32_t b = 0; b < partitions * each; ++b) free[b / each].insert(b);
  }
  int32_t Oldest(int32_t partition) const {
    int32_t best = -1;
    for (const auto& [t, b] : published) {
      if (references[b] == 0 && b / each == partition && (best < 0 || released[b] < released[best]))
        best = b;
    }
    return best;
  }
  std::vector<int32_t> Match(const std::string& salt, const std::vector<int32_t>& tokens,
                             size_t limit) const {
    std::vector<int32_t> out;
    for (size_t end = kBlockTokens; end <= std::min(limit, tokens.size()); end += kBlockTokens) {
      const auto it = published.find({salt, {tokens.begin(), tokens.begin() + end}});
      if (it == published.end()) break;
      out.push_back(it->second);
    }
    return out;
  }
  void Drop(int32_t block) {
    if (--references[block] > 0) return;
    if (text[block].second.empty()) {
      free[block / each].insert(block);
    } else {
      released[block] = ++clock;
    }
  }
  // Takes the content of `block` away; whatever went on from it is free.
  void Evict(int32_t block) {
    const Text gone = std::exchange(text[block], {});
    published.erase(gone);
    for (auto it = published.begin(); it != published.end();) {
      const auto& [salt, tokens] = it->first;
      if (salt == gone.first && tokens.size() > gone.second.size() &&
          std::equal(gone.second.begin(), gone.second.end(), tokens.begin())) {
        EXPECT_EQ(references[it->second], 0);
        free[it->second / each].insert(it->second);
        text[it->second] = {};
        ++orphans;
        it = published.erase(it);
      } else {
        ++it;
      }
    }
  }

  const int32_t each;
  std::vector<int32_t> references;
  std::vector<Text> text;  // published blocks only
  std::vector<uint64_t> released;
  std::vector<std::set<int32_t>> free;  // by partition
  int orphans = 0;
  std::map<Text, int32_t> published;
  uint64_t clock = 0;
};

struct Life {
  std::string salt;
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;
  size_t published = 0;
};

class Fuzzer {
 public:
  Fuzzer(uint32_t seed, int32_t partitions, int32_t each)
      : rng_(seed), pool_({each, kBlockTokens, nullptr, partitions}), naive_(partitions, each) {}

  void Step() {
    switch (Random(6)) {
      case 0:
      case 1:
        return Begin();
      case 2:
        return Fork();
      case 3:
        return End();
      default:
        return Extend();
    }
  }

  void Check() {
    ASSERT_TRUE(pool_.CheckInvariants().ok()) << pool_.CheckInvariants();
    int64_t cached = 0;
    for (int32_t b = 0; b < pool_.num_blocks(); ++b) {
      ASSERT_EQ(pool_.references(b), naive_.references[b]) << "block " << b;
      ASSERT_EQ(pool_.published(b), !naive_.text[b].second.empty()) << "block " << b;
      cached += pool_.published(b) && naive_.references[b] == 0;
    }
    ASSERT_EQ(pool_.stats().cached, cached);
    int64_t free = 0;
    for (const std::set<int32_t>& partition : naive_.free) {
      free += static_cast<int64_t>(partition.size());
    }
    ASSERT_EQ(pool_.stats().free, free);
  }

  void Finish() {
    while (!lives_.empty()) End();
    Check();
    EXPECT_EQ(pool_.stats().in_use, 0);
    EXPECT_GT(pool_.stats().evictions, 0);
    EXPECT_GT(hits_, 0);
    EXPECT_GT(copies_, 0);
  }
  int orphans() const { return naive_.orphans; }

 private:
  uint32_t Random(uint32_t n) { return std::uniform_int_distribution<uint32_t>(0, n - 1)(rng_); }

  // The next block of a table that has `index`.
  bool Allocate(size_t index, int32_t* block) {
    const int32_t partition = static_cast<int32_t>(index % pool_.partitions());
    std::set<int32_t>& free = naive_.free[partition];
    const int32_t oldest = naive_.Oldest(partition);
    const int64_t available = pool_.available(partition);
    const std::optional<int32_t> got = pool_.Allocate(partition);
    EXPECT_EQ(available > 0, got.has_value());
    if (free.empty() && oldest < 0) {
      EXPECT_FALSE(got.has_value());
      return false;
    }
    if (!got.has_value()) {
      ADD_FAILURE() << "no block though some are available";
      return false;
    }
    *block = *got;
    EXPECT_EQ(pool_.available(partition), available - 1);
    if (free.empty()) {
      EXPECT_EQ(*got, oldest);
      naive_.Evict(*got);
    } else {
      EXPECT_EQ(free.erase(*got), 1u) << "a cached block was evicted too early";
    }
    naive_.references[*got] = 1;
    return true;
  }

  void Release(const std::vector<int32_t>& table) {
    pool_.Release(table);
    for (auto it = table.rbegin(); it != table.rend(); ++it) naive_.Drop(*it);
  }

  void Publish(Life& life) {
    while ((life.published + 1) * kBlockTokens <= life.tokens.size()) {
      const size_t i = life.published++;
      const NaivePool::Text text = {
          life.salt, {life.tokens.begin(), life.tokens.begin() + (i + 1) * kBlockTokens}};
      const int32_t block = life.table[i];
      const int32_t got =
          pool_.Publish(block, i > 0 ? life.table[i - 1] : -1, life.salt,
                        absl::MakeSpan(life.tokens).subspan(i * kBlockTokens, kBlockTokens));
      const auto [it, inserted] = naive_.published.try_emplace(text, block);
      EXPECT_EQ(got, it->second);
      if (inserted) {
        naive_.text[block] = text;
      } else if (it->second != block) {
        ++naive_.references[it->second];
        naive_.Drop(block);
      }
      life.table[i] = got;
    }
  }

  void Begin() {
    Life life;
    life.salt = Random(4) == 0 ? "salt" : "";
    const size_t size = 1 + Random(14);
    // Few different tokens, so that prefixes repeat.
    for (size_t i = 0; i < size; ++i) life.tokens.push_back(Random(5) == 0);
    const size_t limit = size - 1;
    life.table = pool_.MatchPrefix(life.salt, life.tokens, limit);
    ASSERT_EQ(life.table, naive_.Match(life.salt, life.tokens, limit));
    hits_ += life.table.size();
    pool_.Acquire(life.table);
    for (const int32_t b : life.table) ++naive_.references[b];
    life.published = life.table.size();
    while (life.table.size() * kBlockTokens < size) {
      int32_t block;
      if (!Allocate(life.table.size(), &block)) return Release(life.table);
      life.table.push_back(block);
    }
    Publish(life);
    lives_.push_back(std::move(life));
  }

  void Fork() {
    if (lives_.empty()) return;
    Life copy = lives_[Random(lives_.size())];
    pool_.Acquire(copy.table);
    for (const int32_t b : copy.table) ++naive_.references[b];
    lives_.push_back(std::move(copy));
  }

  void Extend() {
    if (lives_.empty()) return;
    Life& life = lives_[Random(lives_.size())];
    const size_t index = life.tokens.size() / kBlockTokens;
    if (index == life.table.size()) {
      int32_t block;
      if (!Allocate(index, &block)) return End();
      life.table.push_back(block);
    } else if (pool_.IsShared(life.table[index])) {
      int32_t block;
      if (!Allocate(index, &block)) return End();
      Release({life.table[index]});
      life.table[index] = block;
      ++copies_;
    }
    life.tokens.push_back(Random(5) == 0);
    Publish(life);
  }

  void End() {
    if (lives_.empty()) return;
    const size_t i = Random(lives_.size());
    Release(lives_[i].table);
    lives_.erase(lives_.begin() + i);
  }

  std::mt19937 rng_;
  BlockPool pool_;
  NaivePool naive_;
  std::vector<Life> lives_;
  size_t hits_ = 0;
  int copies_ = 0;
};

TEST(BlockPoolFuzz, BehavesLikeTheNaiveModel) {
  for (const int32_t partitions : {1, 2, 3, 4, 8}) {
    int orphans = 0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(::testing::Message() << partitions << " partitions, seed " << seed);
      const int32_t blocks = 8 + static_cast<int32_t>(seed) * 3;
      // One block alone in its partition could never be copied.
      Fuzzer fuzzer(seed, partitions, std::max(2, blocks / partitions));
      for (int i = 0; i < 2000 && !::testing::Test::HasFailure(); ++i) {
        fuzzer.Step();
        fuzzer.Check();
      }
      fuzzer.Finish();
      if (::testing::Test::HasFailure()) return;
      orphans += fuzzer.orphans();
    }
    if (partitions == 1) {
      EXPECT_EQ(orphans, 0) << "a parent left before its child";
    } else {
      EXPECT_GT(orphans, 0);
    }
  }
}

}  // namespace
}  // namespace phalanx::cache
