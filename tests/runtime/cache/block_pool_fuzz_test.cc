// The pool against a naive model, over random lives of sequences.
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
  explicit NaivePool(int32_t n) : references(n, 0), text(n), released(n, 0) {
    for (int32_t b = 0; b < n; ++b) free.insert(b);
  }
  int32_t Oldest() const {
    int32_t best = -1;
    for (const auto& [t, b] : published) {
      if (references[b] == 0 && (best < 0 || released[b] < released[best])) best = b;
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
      free.insert(block);
    } else {
      released[block] = ++clock;
    }
  }

  std::vector<int32_t> references;
  std::vector<Text> text;  // published blocks only
  std::vector<uint64_t> released;
  std::set<int32_t> free;
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
  Fuzzer(uint32_t seed, int32_t blocks)
      : rng_(seed), pool_({blocks, kBlockTokens, nullptr}), naive_(blocks) {}

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
    ASSERT_EQ(pool_.stats().free, static_cast<int64_t>(naive_.free.size()));
  }

  void Finish() {
    while (!lives_.empty()) End();
    Check();
    EXPECT_EQ(pool_.stats().in_use, 0);
    EXPECT_GT(pool_.stats().evictions, 0);
    EXPECT_GT(hits_, 0);
    EXPECT_GT(copies_, 0);
  }

 private:
  uint32_t Random(uint32_t n) { return std::uniform_int_distribution<uint32_t>(0, n - 1)(rng_); }

  bool Allocate(int32_t* block) {
    const int32_t oldest = naive_.Oldest();
    const std::optional<int32_t> got = pool_.Allocate();
    if (naive_.free.empty() && oldest < 0) {
      EXPECT_FALSE(got.has_value());
      return false;
    }
    if (!got.has_value()) {
      ADD_FAILURE() << "no block though some are available";
      return false;
    }
    *block = *got;
    if (naive_.free.empty()) {
      EXPECT_EQ(*got, oldest);
      naive_.published.erase(naive_.text[*got]);
      naive_.text[*got] = {};
    } else {
      EXPECT_EQ(naive_.free.erase(*got), 1u) << "a cached block was evicted too early";
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
      if (!Allocate(&block)) return Release(life.table);
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
      if (!Allocate(&block)) return End();
      life.table.push_back(block);
    } else if (pool_.IsShared(life.table[index])) {
      int32_t block;
      if (!Allocate(&block)) return End();
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
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Fuzzer fuzzer(seed, 8 + static_cast<int32_t>(seed) * 3);
    for (int i = 0; i < 2000 && !::testing::Test::HasFailure(); ++i) {
      fuzzer.Step();
      fuzzer.Check();
    }
    fuzzer.Finish();
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace phalanx::cache
