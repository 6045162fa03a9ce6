#include "launcher/statistics.h"

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

TEST(Median, IsTheMiddleOrTheMeanOfBoth) {
  EXPECT_EQ(Median({}), 0);
  EXPECT_EQ(Median({4}), 4);
  EXPECT_EQ(Median({9, 1}), 5);
  EXPECT_EQ(Median({7, 1, 3}), 3);
  EXPECT_EQ(Median({8, 100, 2, 4}), 6);
}

TEST(TrimmedMean, LeavesOutATenthAtEachEnd) {
  EXPECT_EQ(TrimmedMean({}), 0);
  EXPECT_EQ(TrimmedMean({4}), 4);
  EXPECT_EQ(TrimmedMean({3, 5}), 4);
  EXPECT_EQ(TrimmedMean({1000, 5, 1}), 5);
  // Of eleven, two at each end.
  EXPECT_EQ(TrimmedMean({-90, 1, 2, 3, 4, 5, 6, 7, 8, 90, 900}), 5);
}

}  // namespace
}  // namespace phalanx::launcher
