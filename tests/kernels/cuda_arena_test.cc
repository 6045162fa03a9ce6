// The arena of the CUDA backend: where pieces lie, what is free, what is said.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/arena.h"

namespace phalanx::kernels::cuda {
namespace {

using testing::HasSubstr;

TEST(Arena, GivesTheFirstFitFromTheFrontAndTheLastFromTheBack) {
  Arena arena(4096 + 100);
  EXPECT_EQ(arena.bytes(), 4096);
  EXPECT_EQ(*arena.Allocate(1), 0);
  EXPECT_EQ(*arena.Allocate(257), 256);
  EXPECT_EQ(*arena.Allocate(0), 768);
  EXPECT_EQ(*arena.Allocate(300, Arena::Side::kBack), 4096 - 512);
  EXPECT_EQ(*arena.Allocate(256, Arena::Side::kBack), 4096 - 768);
  EXPECT_EQ(arena.used_bytes(), 256 + 512 + 256 + 512 + 256);
  EXPECT_EQ(arena.free_bytes(), 4096 - arena.used_bytes());
  arena.Free(256);
  EXPECT_EQ(arena.num_free_pieces(), 2);
  EXPECT_EQ(*arena.Allocate(600), 1024);  // the hole is too small
  EXPECT_EQ(*arena.Allocate(500), 256);
}

TEST(Arena, JoinsFreePiecesWithBothNeighbours) {
  Arena arena(1024);
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(*arena.Allocate(256), i * 256);
  EXPECT_EQ(arena.largest_free(), 0);
  arena.Free(0);
  arena.Free(512);
  EXPECT_EQ(arena.num_free_pieces(), 2);
  EXPECT_EQ(arena.largest_free(), 256);
  arena.Free(256);
  EXPECT_EQ(arena.num_free_pieces(), 1);
  EXPECT_EQ(arena.largest_free(), 768);
  arena.Free(768);
  EXPECT_EQ(arena.largest_free(), 1024);
  EXPECT_EQ(arena.free_bytes(), 1024);
}

TEST(Arena, SaysWhatWasAskedAndWhatIsFree) {
  Arena arena(1024);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(arena.Allocate(1).ok());
  arena.Free(0);
  arena.Free(512);
  const absl::StatusOr<int64_t> none = arena.Allocate(300);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(none.status().message(),
            "cannot allocate 300 bytes: of 1024 bytes 512 are free, 256 of them in the largest "
            "piece");
  EXPECT_FALSE(arena.Allocate(INT64_MAX).ok());
  EXPECT_FALSE(arena.Allocate(INT64_MAX, Arena::Side::kBack).ok());
  EXPECT_FALSE(Arena(255).Allocate(0).ok());
  EXPECT_DEATH(arena.Free(256 + 1), "no piece of the arena begins at 257");
  EXPECT_DEATH(arena.Free(0), "no piece of the arena begins at 0");
}

// Against a map of every unit of the region.
TEST(Arena, KeepsItsBooksThroughRandomUse) {
  constexpr int64_t kUnits = 200;
  constexpr int64_t kUnit = Arena::kAlignment;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t n) {
      return std::uniform_int_distribution<int64_t>(0, n - 1)(random);
    };
    Arena arena(kUnits * kUnit);
    std::map<int64_t, int64_t> taken;  // first unit to units
    std::string map(kUnits, '.');
    for (int step = 0; step < 2000; ++step) {
      if (below(100) < 52) {
        const int64_t bytes = below(below(10) == 0 ? kUnits * kUnit : 12 * kUnit);
        const int64_t units = std::max<int64_t>(1, (bytes + kUnit - 1) / kUnit);
        const bool back = below(2) == 0;
        const size_t fits =
            back ? map.rfind(std::string(units, '.')) : map.find(std::string(units, '.'));
        const auto offset = arena.Allocate(bytes, back ? Arena::Side::kBack : Arena::Side::kFront);
        ASSERT_EQ(offset.ok(), fits != std::string::npos) << offset.status();
        if (!offset.ok()) continue;
        ASSERT_EQ(*offset, static_cast<int64_t>(fits) * kUnit);
        map.replace(fits, units, std::string(units, '#'));
        taken[static_cast<int64_t>(fits)] = units;
      } else if (!taken.empty()) {
        const auto piece = std::next(taken.begin(), below(static_cast<int64_t>(taken.size())));
        map.replace(piece->first, piece->second, std::string(piece->second, '.'));
        arena.Free(piece->first * kUnit);
        taken.erase(piece);
      }
      int64_t free = 0;
      int64_t run = 0;
      int64_t longest = 0;
      int64_t runs = 0;
      for (const char unit : map) {
        run = unit == '.' ? run + 1 : 0;
        free += unit == '.' ? 1 : 0;
        runs += run == 1 ? 1 : 0;
        longest = std::max(longest, run);
      }
      ASSERT_EQ(arena.free_bytes(), free * kUnit);
      ASSERT_EQ(arena.used_bytes(), (kUnits - free) * kUnit);
      ASSERT_EQ(arena.largest_free(), longest * kUnit);
      ASSERT_EQ(arena.num_free_pieces(), runs);
    }
  }
}

TEST(ArenaBytes, IsWhatWasAskedOrTheFractionLessWhatOthersHold) {
  EXPECT_EQ(*ArenaBytes({}, 0, 10, 100), 0);
  EXPECT_EQ(*ArenaBytes({.memory_bytes = 10}, 0, 10, 100), 10);
  EXPECT_EQ(*ArenaBytes({.memory_fraction = 0.5}, 0, 1000, 1000), 500);
  EXPECT_EQ(*ArenaBytes({.memory_fraction = 0.5}, 0, 700, 1000), 200);
  EXPECT_EQ(*ArenaBytes({.memory_fraction = 1}, 0, 700, 1000), 700);
  // Of two that share a device each gets its part, whichever comes first.
  EXPECT_EQ(*ArenaBytes({.memory_fraction = 0.45, .is_shared = true}, 0, 990, 1000), 450);
  EXPECT_EQ(*ArenaBytes({.memory_fraction = 0.45, .is_shared = true}, 0, 530, 1000), 450);
}

TEST(ArenaBytes, RefusesWhatIsNotFreeNamingTheFigures) {
  const auto more = ArenaBytes({.memory_bytes = 11}, 3, 10, 100);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(more.status().message(),
            "CUDA device 3: 11 bytes of memory are asked for, but of its 100 bytes only 10 are "
            "free; ask for less, or end what holds the others");
  const auto held = ArenaBytes({.memory_fraction = 0.25}, 3, 740, 1000);
  EXPECT_EQ(held.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(held.status().message()),
              HasSubstr("a memory fraction of 0.25 is 250 of its 1000 bytes, but 260 of them are "
                        "held already"));
  const auto shared = ArenaBytes({.memory_fraction = 0.5, .is_shared = true}, 3, 480, 1000);
  EXPECT_EQ(shared.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(shared.status().message()),
      HasSubstr("which ranks share: this rank's part of the memory fraction, 0.5, is 500 of "
                "its 1000 bytes, but only 480 are free"));
  for (const ArenaRequest& wrong :
       {ArenaRequest{-1, 0}, ArenaRequest{0, -0.1}, ArenaRequest{0, 1.5}, ArenaRequest{5, 0.5},
        ArenaRequest{0, std::numeric_limits<double>::quiet_NaN()}}) {
    EXPECT_EQ(ArenaBytes(wrong, 0, 100, 100).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
