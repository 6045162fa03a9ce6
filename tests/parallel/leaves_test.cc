#include "parallel/leaves.h"

#include <random>
#include <string>

#include "gtest/gtest.h"

namespace phalanx::parallel {
namespace {

// The tree over [a, b) written out, straight from rule R2.
std::string Spell(int64_t a, int64_t b) {
  if (b - a == 1) return std::to_string(a);
  int64_t power = 1;
  while (power * 2 < b - a) power *= 2;
  return "(" + Spell(a, a + power) + "+" + Spell(a + power, b) + ")";
}

TEST(LeafPartition, LeavesTileTheDimensionInWholeGranules) {
  for (int64_t extent : {0, 1, 31, 32, 33, 255, 307, 2048, 8192, 128256}) {
    for (int64_t granule : {1, 32, 128}) {
      for (int leaves : {1, 3, 8, 24}) {
        const LeafPartition cut(extent, granule, leaves);
        int64_t next = 0;
        for (int i = 0; i < leaves; ++i) {
          const Range leaf = cut.leaf(i);
          EXPECT_EQ(leaf.begin, next);
          EXPECT_TRUE(leaf.begin % granule == 0 || leaf.begin == extent);
          next = leaf.end;
        }
        EXPECT_EQ(next, extent);
      }
    }
  }
}

TEST(LeafPartition, FewerGranulesThanLeavesLeavesSomeEmpty) {
  const LeafPartition heads(4, 1, 8);
  int filled = 0;
  for (int i = 0; i < 8; ++i) filled += heads.leaf(i).empty() ? 0 : 1;
  EXPECT_EQ(filled, 4);
}

TEST(Tree, SplitsAtTheLargestPowerOfTwoBelowItsSize) {
  EXPECT_EQ(TreeSplit({0, 8}), 4);
  EXPECT_EQ(TreeSplit({0, 24}), 16);
  EXPECT_EQ(TreeSplit({16, 24}), 20);
  EXPECT_EQ(TreeSplit({0, 3}), 2);
  EXPECT_EQ(TreeSplit({5, 7}), 6);
}

TEST(Tree, EveryDivisionOfTheRunsFinishesTheSameTree) {
  for (int leaves = 1; leaves <= 24; ++leaves) {
    const std::string whole = Spell(0, leaves);
    for (int size = 1; size <= leaves; ++size) {
      std::vector<Range> all;
      std::vector<std::string> sums;
      for (int r = 0; r < size; ++r) {
        const Range run = LeafRun(r, size, leaves);
        int64_t next = run.begin;
        for (const Range& part : WholeSubtrees(run, leaves)) {
          EXPECT_EQ(part.begin, next);
          next = part.end;
          all.push_back(part);
          // What the rank adds up by itself.
          const int first = static_cast<int>(part.begin - run.begin);
          sums.push_back(RunTree<std::string>(
              LeafProgram(part, first), [&](int i) { return std::to_string(run.begin + i); },
              [](const std::string& a, const std::string& b) { return "(" + a + "+" + b + ")"; }));
        }
        EXPECT_EQ(next, run.end);
      }
      EXPECT_EQ(
          RunTree<std::string>(
              TreeProgram({0, leaves}, all), [&](int i) { return sums[i]; },
              [](const std::string& a, const std::string& b) { return "(" + a + "+" + b + ")"; }),
          whole)
          << leaves << " leaves over " << size;
    }
  }
}

TEST(Tree, FloatSumsHaveTheSameBitsForEveryDivision) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0.0f, 100.0f);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> leaf(8);
    for (float& x : leaf) x = normal(rng);
    const auto add = [](float a, float b) { return a + b; };
    const float whole = RunTree<float>(
        LeafProgram({0, 8}, 0), [&](int i) { return leaf[i]; }, add);
    for (int size = 2; size <= 8; ++size) {
      std::vector<Range> all;
      std::vector<float> sums;
      for (int r = 0; r < size; ++r) {
        for (const Range& part : WholeSubtrees(LeafRun(r, size, 8), 8)) {
          all.push_back(part);
          sums.push_back(RunTree<float>(
              LeafProgram(part, static_cast<int>(part.begin)), [&](int i) { return leaf[i]; },
              add));
        }
      }
      EXPECT_EQ(RunTree<float>(
                    TreeProgram({0, 8}, all), [&](int i) { return sums[i]; }, add),
                whole);
    }
  }
}

}  // namespace
}  // namespace phalanx::parallel
