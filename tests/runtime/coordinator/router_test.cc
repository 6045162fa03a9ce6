#include "runtime/coordinator/router.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx::coordinator {
namespace {

using cache::Hash128;

std::vector<Hash128> Hashes(const std::string& salt, const std::vector<int32_t>& tokens,
                            int32_t block_tokens = 4) {
  PrefixHasher hasher(salt, block_tokens);
  hasher.Push(tokens);
  return hasher.hashes();
}

std::vector<int32_t> Text(int32_t first, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(first + i);
  return tokens;
}

PrefixIndex& Fill(PrefixIndex& index, int64_t capacity) {
  index.SetCapacity(capacity);
  return index;
}

// No memory is short.
ReplicaLoad Load(int64_t work, int64_t cached) { return {work, work, 1'000'000, cached}; }

TEST(PrefixHasher, HashesFullBlocksOverAllThatComesBefore) {
  const std::vector<Hash128> whole = Hashes("", Text(0, 11));
  ASSERT_EQ(whole.size(), 2u);
  EXPECT_EQ(Hashes("", Text(0, 7)), std::vector<Hash128>(whole.begin(), whole.begin() + 1));
  std::vector<int32_t> other = Text(0, 11);
  other[0] = 99;
  EXPECT_NE(Hashes("", other)[0], whole[0]);
  EXPECT_NE(Hashes("", other)[1], whole[1]);
  other = Text(0, 11);
  other[5] = 99;
  EXPECT_EQ(Hashes("", other)[0], whole[0]);
  EXPECT_NE(Hashes("", other)[1], whole[1]);
}

TEST(PrefixHasher, AnotherSaltIsAnotherText) {
  EXPECT_NE(Hashes("a", Text(0, 4))[0], Hashes("b", Text(0, 4))[0]);
  EXPECT_EQ(Hashes("a", Text(0, 4)), Hashes("a", Text(0, 4)));
}

TEST(PrefixHasher, ACopyGoesOnByItself) {
  PrefixHasher prompt("", 4);
  prompt.Push(Text(0, 6));
  PrefixHasher sample = prompt;
  sample.Push(Text(6, 2));
  EXPECT_EQ(sample.hashes(), Hashes("", Text(0, 8)));
  EXPECT_EQ(prompt.hashes().size(), 1u);
}

TEST(PrefixIndex, MatchesTheLongestRunFromTheStart) {
  PrefixIndex index;
  Fill(index, 10).Add(Hashes("", Text(0, 12)));
  EXPECT_EQ(index.Match(Hashes("", Text(0, 20))), 3);
  EXPECT_EQ(index.Match(Hashes("", Text(0, 9))), 2);
  EXPECT_EQ(index.Match(Hashes("x", Text(0, 20))), 0);
  EXPECT_EQ(index.Match({}), 0);
  index.Clear();
  EXPECT_EQ(index.Match(Hashes("", Text(0, 20))), 0);
}

TEST(PrefixIndex, GivesUpTheEndOfTheTextUsedLongestAgo) {
  PrefixIndex index;
  const std::vector<Hash128> a = Hashes("", Text(0, 12));
  const std::vector<Hash128> b = Hashes("", Text(100, 8));
  const std::vector<Hash128> c = Hashes("", Text(200, 8));
  Fill(index, 5).Add(a);
  index.Add(b);
  index.Add(a);  // b is the older one now
  index.Add(c);
  EXPECT_EQ(index.Match(a), 3);
  EXPECT_EQ(index.Match(b), 0);
  EXPECT_EQ(index.Match(c), 2);
  index.Add(b);
  EXPECT_EQ(index.Match(a), 1);
  EXPECT_EQ(index.Match(c), 2);
}

TEST(ChooseReplica, TakesTheLongestPrefix) {
  EXPECT_EQ(ChooseReplica({Load(0, 0), Load(0, 64), Load(0, 32)}, 200), 1);
}

TEST(ChooseReplica, WithoutAPrefixTheLeastBusyThenTheFirst) {
  EXPECT_EQ(ChooseReplica({Load(9, 0), Load(5, 0), Load(7, 0)}, 200), 1);
  EXPECT_EQ(ChooseReplica({Load(5, 0), Load(5, 0)}, 200), 0);
  EXPECT_EQ(ChooseReplica({Load(9, 64), Load(5, 64)}, 200), 1);
}

TEST(ChooseReplica, AMuchBusierReplicaLosesItsPrefix) {
  const int64_t most = 1000 + kRoutingSlackTokens;
  EXPECT_EQ(ChooseReplica({Load(most, 1000), Load(0, 0)}, 2000), 0);
  EXPECT_EQ(ChooseReplica({Load(most + 1, 1000), Load(0, 0)}, 2000), 1);
}

TEST(ChooseReplica, ABusyLongestPrefixGivesWayToTheCheapestNotToTheIdlest) {
  EXPECT_EQ(ChooseReplica({Load(5000, 1024), Load(100, 960), Load(0, 0)}, 2000), 1);
}

TEST(ChooseReplica, LackingKvMemoryCountsAsBusy) {
  ReplicaLoad full = Load(0, 320);
  full.kv_tokens = 1000;
  full.held_tokens = 900;
  // 900 + 500 - 320 slots where there are 1000: 80 lack, less than the prefix saves.
  EXPECT_EQ(ChooseReplica({full, Load(0, 0)}, 500), 0);
  full.held_tokens = 2000;
  EXPECT_EQ(ChooseReplica({full, Load(0, 0)}, 500), 1);
}

}  // namespace
}  // namespace phalanx::coordinator
