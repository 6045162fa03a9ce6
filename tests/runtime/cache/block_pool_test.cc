#include "runtime/cache/block_pool.h"

#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

BlockPool MakePool(int32_t blocks, int32_t tokens = 4) {
  return BlockPool({blocks, tokens, nullptr});
}

// Publishes `text` as a chain in new blocks and returns its table.
std::vector<int32_t> Store(BlockPool& pool, absl::string_view salt,
                           const std::vector<int32_t>& text) {
  std::vector<int32_t> table;
  const int32_t size = pool.block_tokens();
  for (size_t i = 0; (i + 1) * size <= text.size(); ++i) {
    const int32_t block = *pool.Allocate();
    table.push_back(pool.Publish(block, i > 0 ? table.back() : -1, salt,
                                 absl::MakeSpan(text).subspan(i * size, size)));
  }
  return table;
}

std::vector<int32_t> Text(int32_t size, int32_t first = 0) {
  std::vector<int32_t> text(size);
  std::iota(text.begin(), text.end(), first);
  return text;
}

TEST(SipHash128, EqualsThePublishedVectors) {
  // Key 00 01 ... 0f, input 00 01 ... (vectors_sip128 of the reference implementation).
  const uint64_t key0 = 0x0706050403020100, key1 = 0x0f0e0d0c0b0a0908;
  const Hash128 empty = SipHash128("", key0, key1);
  EXPECT_EQ(empty.low, 0xe6a825ba047f81a3);
  EXPECT_EQ(empty.high, 0x930255c71472f66d);
  const Hash128 one = SipHash128(absl::string_view("\0", 1), key0, key1);
  EXPECT_EQ(one.low, 0x44af996bd8c187da);
  EXPECT_EQ(one.high, 0x45fc229b11597634);
}

TEST(BlockPool, MatchesTheLongestPublishedPrefixAndNeverMoreThanAskedFor) {
  BlockPool pool = MakePool(8);
  const std::vector<int32_t> text = Text(12);
  const std::vector<int32_t> table = Store(pool, "", text);
  EXPECT_EQ(pool.MatchPrefix("", text, 12), table);
  EXPECT_THAT(pool.MatchPrefix("", text, 11), ElementsAre(table[0], table[1]));
  std::vector<int32_t> other = text;
  other[5] = 99;
  EXPECT_THAT(pool.MatchPrefix("", other, 12), ElementsAre(table[0]));
  EXPECT_THAT(pool.MatchPrefix("", Text(8, 4), 8), IsEmpty());
}

TEST(BlockPool, SaltsShareNothing) {
  BlockPool pool = MakePool(8);
  const std::vector<int32_t> text = Text(8);
  const std::vector<int32_t> mine = Store(pool, "tenant a", text);
  EXPECT_THAT(pool.MatchPrefix("tenant b", text, 8), IsEmpty());
  EXPECT_THAT(pool.MatchPrefix("", text, 8), IsEmpty());
  EXPECT_NE(Store(pool, "tenant b", text), mine);
}

TEST(BlockPool, ACollidingHashNeverHandsOutOtherContent) {
  BlockPool pool({8, 4, [](absl::string_view) { return Hash128{1, 1}; }});
  const std::vector<int32_t> first = Store(pool, "", Text(4));
  EXPECT_THAT(pool.MatchPrefix("", Text(4), 4), ElementsAre(first[0]));
  EXPECT_THAT(pool.MatchPrefix("", Text(4, 50), 4), IsEmpty());
  EXPECT_THAT(pool.MatchPrefix("salt", Text(4), 4), IsEmpty());
  const std::vector<int32_t> second = Store(pool, "", Text(8, 50));
  EXPECT_FALSE(pool.published(second[0]));
  EXPECT_FALSE(pool.published(second[1]));
  // Its own child collides with itself too.
  EXPECT_THAT(pool.MatchPrefix("", Text(8), 8), ElementsAre(first[0]));
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(BlockPool, PublishingTheSameTextTwiceGivesTheFirstBlock) {
  BlockPool pool = MakePool(8);
  const std::vector<int32_t> first = Store(pool, "", Text(8));
  const std::vector<int32_t> second = Store(pool, "", Text(8));
  EXPECT_EQ(first, second);
  EXPECT_EQ(pool.references(first[0]), 2);
  EXPECT_EQ(pool.stats().in_use, 2);
  EXPECT_EQ(pool.stats().free, 6);
}

TEST(BlockPool, EvictsOnlyWhenNothingIsFreeAndTheLeastRecentlyReleasedTailFirst) {
  BlockPool pool = MakePool(4);
  const std::vector<int32_t> a = Store(pool, "", Text(8));
  const std::vector<int32_t> b = Store(pool, "", Text(4, 100));
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.stats().cached, 3);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_TRUE(pool.Allocate().has_value());
  EXPECT_EQ(pool.stats().evictions, 0);
  EXPECT_EQ(pool.Allocate(), a[1]);
  EXPECT_THAT(pool.MatchPrefix("", Text(8), 8), ElementsAre(a[0]));
  EXPECT_EQ(pool.Allocate(), a[0]);
  EXPECT_EQ(pool.Allocate(), b[0]);
  EXPECT_EQ(pool.Allocate(), std::nullopt);
  EXPECT_EQ(pool.stats().evictions, 3);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(BlockPool, AHitProtectsFromEviction) {
  BlockPool pool = MakePool(2);
  const std::vector<int32_t> a = Store(pool, "", Text(4));
  pool.Release(a);
  EXPECT_EQ(pool.CachedAmong(a), 1);
  pool.Acquire(pool.MatchPrefix("", Text(4), 4));
  EXPECT_EQ(pool.CachedAmong(a), 0);
  EXPECT_TRUE(pool.Allocate().has_value());
  EXPECT_EQ(pool.Allocate(), std::nullopt);
}

TEST(BlockPool, PartitionsHandOutTheirOwnBlocksAndEvictTheirOwn) {
  BlockPool pool({2, 4, nullptr, 2});
  EXPECT_EQ(pool.num_blocks(), 4);
  const int32_t a = *pool.Allocate(0);
  const int32_t b = *pool.Allocate(1);
  EXPECT_EQ(pool.PartitionOf(a), 0);
  EXPECT_EQ(pool.PartitionOf(b), 1);
  pool.Publish(a, -1, "", Text(4));
  EXPECT_TRUE(pool.Allocate(1).has_value());
  EXPECT_EQ(pool.Allocate(1), std::nullopt);
  EXPECT_EQ(pool.available(1), 0);
  EXPECT_EQ(pool.available(0), 1);
  pool.Release({&a, 1});
  EXPECT_EQ(pool.Allocate(1), std::nullopt) << "evicted another rank's block";
  EXPECT_EQ(pool.stats().cached, 1);
  EXPECT_EQ(pool.stats().total, 4);
}

TEST(BlockPool, WhatAnEvictedParentLeavesInOtherPartitionsIsFreeAndItsTextCanComeBack) {
  BlockPool pool({2, 4, nullptr, 2});
  const std::vector<int32_t> text = Text(8);
  const auto store = [&] {
    std::vector<int32_t> table = {*pool.Allocate(0), *pool.Allocate(1)};
    table[0] = pool.Publish(table[0], -1, "", absl::MakeSpan(text).subspan(0, 4));
    table[1] = pool.Publish(table[1], table[0], "", absl::MakeSpan(text).subspan(4, 4));
    return table;
  };
  pool.Release(store());
  EXPECT_EQ(pool.CachedAmong(pool.MatchPrefix("", text, 8), 1), 1);
  const std::vector<int32_t> other = {*pool.Allocate(0), *pool.Allocate(0)};
  EXPECT_EQ(pool.stats().evictions, 2);
  EXPECT_EQ(pool.stats().cached, 0);
  EXPECT_EQ(pool.available(1), 2);
  pool.Release(other);
  const std::vector<int32_t> again = store();
  EXPECT_EQ(pool.MatchPrefix("", text, 8), again);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(BlockPool, ASharedBlockStaysUntilItsLastHolderLeaves) {
  BlockPool pool = MakePool(2);
  const int32_t block = *pool.Allocate();
  EXPECT_FALSE(pool.IsShared(block));
  pool.Acquire({&block, 1});
  EXPECT_TRUE(pool.IsShared(block));
  pool.Release({&block, 1});
  EXPECT_EQ(pool.stats().free, 1);
  pool.Release({&block, 1});
  EXPECT_EQ(pool.stats().free, 2);
}

}  // namespace
}  // namespace phalanx::cache
