// Which kernel, tile and split products get, and with how much scratch.
#include <algorithm>
#include <cstdint>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/tiling.h"

namespace phalanx::kernels::cuda {
namespace {

// Of a product with 4096 columns, whose 8 leaves have 32 chunks.
MatMulShape ShapeOfO(int64_t rows) {
  MatMulShape shape;
  shape.rows = shape.most_rows = rows;
  shape.n = 4096;
  shape.num_leaves = 8;
  shape.num_chunks = 32;
  shape.depth = 4;
  return shape;
}

TEST(PlanMatMul, TakesTheKernelThatTheRowsAskForAndFillsTheDevice) {
  MatMulShape decode = ShapeOfO(1);
  MatMulPlan plan = PlanMatMul(decode, 132, 227 << 10);
  EXPECT_EQ(plan.kernel, MatMulKernel::kFew);
  EXPECT_EQ(plan.tile_rows, 1);
  EXPECT_EQ(plan.warps, 8);
  // Four blocks share a multiprocessor of 228 KiB.
  EXPECT_LE(4 * (plan.shared_bytes + 1024), 228 << 10);
  decode.rows = decode.most_rows = 16;
  EXPECT_EQ(PlanMatMul(decode, 132, 227 << 10).tile_rows, 16);

  MatMulShape batch = decode;
  batch.rows = batch.most_rows = 64;
  plan = PlanMatMul(batch, 132, 227 << 10);
  EXPECT_EQ(plan.kernel, MatMulKernel::kMany);
  EXPECT_EQ(plan.tile_rows, 64);
  EXPECT_EQ(plan.split, MatMulSplit::kLeaves);
  EXPECT_EQ(plan.units, 8);
  EXPECT_EQ(plan.scratch_bytes, int64_t{8} * 64 * 4096 * 4);
  batch.num_leaves = 1;
  batch.depth = 1;
  EXPECT_EQ(PlanMatMul(batch, 132, 227 << 10).split, MatMulSplit::kChunks);

  MatMulShape prefill = decode;
  prefill.rows = prefill.most_rows = 8192;
  plan = PlanMatMul(prefill, 132, 227 << 10);
  EXPECT_EQ(plan.split, MatMulSplit::kNone);
  EXPECT_EQ(plan.tile_rows, 128);
  EXPECT_EQ(plan.grid, 132);
  EXPECT_EQ(plan.scratch_bytes, int64_t{132} * 3 * 128 * 128 * 4);
}

// What the memory of an H200 needs to be kept at work: some 32 KiB on their way to each
// multiprocessor.
TEST(PlanGatedMatMul, HasHalfTheBlocksOfTwiceTheChunks) {
  MatMulShape shape = ShapeOfO(1);
  shape.num_chunks = 2;
  shape.num_leaves = 2;
  shape.depth = 2;
  EXPECT_EQ(PlanMatMul(shape, 132, 227 << 10).warps, 2);
  // Four rows, so that chunks' sums and not slots are what grows.
  const auto plan = PlanGatedMatMul(shape, 128, 227 << 10);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->kernel, MatMulKernel::kFew);
  EXPECT_EQ(plan->warps, 4);
  // Slots of four warps, sums of four chunks, and a level of a stack.
  EXPECT_EQ(plan->shared_bytes, 4 * plan->slots * FewSlotBytes(1024, 1) + (4 * 17 + 16) * 4);
  // 128 blocks leave four of 132 multiprocessors without work; and of 17 rows it isn't kFew's.
  EXPECT_FALSE(PlanGatedMatMul(shape, 132, 227 << 10).has_value());
  shape.most_rows = shape.rows = 17;
  EXPECT_FALSE(PlanGatedMatMul(shape, 128, 227 << 10).has_value());
}

// Gates and ups of models of 1 to 32 billion weights, of BF16 and FP8.
TEST(PlanGatedMatMul, KeepsMemoryAtWork) {
  constexpr int64_t kEnough = 48 << 10;
  int gated = 0;
  for (const int64_t group_bytes : {1024, 544}) {
    for (const int64_t k : {2048, 2880, 3584, 4096, 5120, 8192}) {
      for (int64_t rows = 1; rows <= 16; ++rows) {
        SCOPED_TRACE(testing::Message() << k << " values of k, " << rows << " rows");
        MatMulShape shape = ShapeOfO(rows);
        shape.n = 28672;
        shape.num_leaves = 1;
        shape.depth = 1;
        shape.num_chunks = (k + 511) / 512;
        shape.group_bytes = group_bytes;
        const auto plan = PlanGatedMatMul(shape, 132, 227 << 10);
        if (!plan.has_value()) {
          EXPECT_GT(rows, 8);  // few rows always are
          continue;
        }
        ++gated;
        EXPECT_GE(plan->in_flight, std::min(kEnough, PlanMatMul(shape, 132, 227 << 10).in_flight));
      }
    }
  }
  EXPECT_GE(gated, 120);
}

TEST(PlanMatMul, OfFewRowsReadsFarEnoughAhead) {
  for (const auto& [n, leaves, chunks] : {std::tuple{6144, 1, 8},
                                          {4096, 8, 8},
                                          {28672, 1, 8},
                                          {4096, 8, 32},
                                          {128256, 1, 8},
                                          {3072, 1, 4},
                                          {2048, 8, 8},
                                          {16384, 1, 4},
                                          {2048, 8, 16}}) {
    for (const int rows : {1, 2, 3, 4, 7, 8, 9, 16}) {
      SCOPED_TRACE(testing::Message() << n << " columns, " << rows << " rows");
      MatMulShape shape;
      shape.rows = shape.most_rows = rows;
      shape.n = n;
      shape.num_leaves = leaves;
      shape.num_chunks = chunks;
      shape.depth = leaves == 1 ? 1 : 4;
      const MatMulPlan plan = PlanMatMul(shape, 132, 227 << 10);
      ASSERT_EQ(plan.kernel, MatMulKernel::kFew);
      EXPECT_GE(plan.tile_rows, rows);
      EXPECT_LT(plan.tile_rows, 2 * rows);
      EXPECT_LE(plan.shared_bytes, 227 << 10);
      const int64_t of_sm =
          std::min<int64_t>((n / 16 + 131) / 132, (228 << 10) / (plan.shared_bytes + 1024));
      const int64_t warps = of_sm * plan.warps;
      EXPECT_GE(warps * (plan.slots - 1) * 1024, 40 << 10);
      EXPECT_LE(warps * plan.ahead_groups * 1024, kFewAheadBytes);
      EXPECT_GE(plan.ahead_groups, 3);
      // One of the next kernel fits beside a block that is alone.
      if (of_sm == 1 && plan.warps == kFewWarps && plan.slots == kFewManySlots) {
        EXPECT_LE(2 * (plan.shared_bytes + 1024), 228 << 10);
      }
    }
  }
}

// A run of an expert's that is taller than expected takes more tiles, and reads its weights more
// often.
TEST(PlanMatMul, TilesOfRunsAreNoLowerThanEight) {
  MatMulShape shape;
  shape.rows = 32;
  shape.most_rows = 2;
  shape.num_runs = 32;
  shape.n = 1408;
  EXPECT_EQ(PlanMatMul(shape, 132, 227 << 10).tile_rows, 8);
  // No run has more than its one.
  shape.most_rows = 1;
  EXPECT_EQ(PlanMatMul(shape, 132, 227 << 10).tile_rows, 1);
}

TEST(PlanMatMul, SplitsWhereTilesLeaveMultiprocessorsIdle) {
  MatMulShape shape;
  shape.num_chunks = 8;
  for (const auto& [rows, n, split] : {std::tuple{64, 6144, MatMulSplit::kChunks},
                                       {64, 16384, MatMulSplit::kNone},
                                       {64, 28672, MatMulSplit::kNone},
                                       {256, 6144, MatMulSplit::kNone},
                                       {256, 4096, MatMulSplit::kChunks}}) {
    shape.rows = shape.most_rows = rows;
    shape.n = n;
    EXPECT_EQ(PlanMatMul(shape, 132, 227 << 10).split, split) << rows << " rows, " << n;
  }
}

TEST(PlanChain, TakesWarpsForLeavesAndRowsForTheCall) {
  for (const int element_bytes : {2, 4}) {
    MatMulShape shape;
    shape.group_bytes = ChainGroupBytes(WeightLayout::kTiles, element_bytes);
    shape.num_leaves = 8;
    shape.depth = 4;
    for (const auto& [rows, tile_rows] :
         {std::pair<int64_t, int>{1, 1}, {2, 4}, {4, 4}, {5, 16}, {2000, 16}}) {
      shape.rows = shape.most_rows = rows;
      const MatMulPlan plan = PlanChain(shape, 227 << 10);
      EXPECT_EQ(plan.kernel, MatMulKernel::kChain);
      EXPECT_EQ(plan.tile_rows, tile_rows) << rows << " rows";
      EXPECT_EQ(plan.warps, 8);
    }
    // Nothing to share out: one warp, which reads some groups ahead, and many of them on a
    // multiprocessor.
    shape.num_leaves = shape.depth = 1;
    const MatMulPlan one = PlanChain(shape, 227 << 10);
    EXPECT_EQ(one.warps, 1);
    EXPECT_LE(8 * (one.shared_bytes + 1024), 227 << 10);
    EXPECT_GE(ChainSlots(shape.group_bytes, one.tile_rows), 3);
  }
}

// Four warps fit; five leaves need two turns of three.
TEST(PlanChain, FewerWarpsForEqualTurnsAreNoReasonForFewerRows) {
  MatMulShape shape;
  shape.rows = shape.most_rows = 100;
  shape.depth = 3;
  shape.group_bytes = ChainGroupBytes(WeightLayout::kTiles, 4);
  shape.num_leaves = 5;
  const MatMulPlan plan = PlanChain(shape, 99 << 10);
  EXPECT_EQ(plan.warps, 3);
  EXPECT_EQ(plan.tile_rows, kChainManyRows);
}

TEST(PlanChain, FitsEveryDeviceAndNumberOfLeaves) {
  for (const auto layout : {WeightLayout::kTiles, WeightLayout::kRows}) {
    for (const int element_bytes : {2, 4}) {
      for (const int64_t shared : {99 << 10, 163 << 10, 227 << 10}) {
        for (int leaves = 1; leaves <= kMaxLeaves; ++leaves) {
          for (const int64_t rows : {1, 3, 100}) {
            MatMulShape shape;
            shape.rows = shape.most_rows = rows;
            shape.num_leaves = leaves;
            shape.depth = leaves % 2 == 0 ? 7 : 40;  // of a tree; of a program that is none
            shape.group_bytes = ChainGroupBytes(layout, element_bytes);
            const MatMulPlan plan = PlanChain(shape, shared);
            SCOPED_TRACE(testing::Message() << leaves << " leaves, " << rows << " rows, " << shared
                                            << " bytes of shared memory");
            EXPECT_LE(plan.shared_bytes, shared);
            EXPECT_GE(plan.tile_rows, std::min<int64_t>(rows, kChainFewRows));
            EXPECT_GE(plan.warps, std::min(leaves, 3));
            EXPECT_LE(plan.warps, std::min(leaves, kChainWarps));
            // The slots, then the leaves' sums; the stack has the slots' place.
            const int64_t slots =
                plan.shared_bytes - ChainSumBytes(shape.num_leaves, plan.tile_rows);
            EXPECT_GE(slots, plan.warps * ChainSlots(shape.group_bytes, plan.tile_rows) *
                                 ChainSlotBytes(shape.group_bytes, plan.tile_rows));
            EXPECT_GE(slots, ChainSumBytes(shape.depth, plan.tile_rows));
            // No more warps than take as many turns at the leaves.
            const int turns = (leaves + plan.warps - 1) / plan.warps;
            if (plan.warps > 1) {
              EXPECT_GT((leaves + plan.warps - 2) / (plan.warps - 1), turns);
            }
          }
        }
      }
    }
  }
}

TEST(PlanMatMul, MakesDoWithTheScratchThatThereIs) {
  MatMulShape batch = ShapeOfO(64);
  const MatMulPlan whole = PlanMatMul(batch, 132, 227 << 10);
  ASSERT_EQ(whole.split, MatMulSplit::kLeaves);
  EXPECT_EQ(PlanMatMul(batch, 132, 227 << 10, whole.scratch_bytes).split, MatMulSplit::kLeaves);
  const MatMulPlan less = PlanMatMul(batch, 132, 227 << 10, whole.scratch_bytes - 1);
  EXPECT_EQ(less.split, MatMulSplit::kNone);
  EXPECT_LE(less.scratch_bytes, whole.scratch_bytes - 1);
  batch.rows = batch.most_rows = 8192;
  const MatMulPlan narrow = PlanMatMul(batch, 132, 227 << 10, int64_t{10} * 3 * 128 * 128 * 4);
  EXPECT_EQ(narrow.grid, 10);
  EXPECT_EQ(narrow.scratch_bytes, int64_t{10} * 3 * 128 * 128 * 4);
  // One block runs in any case, and a program that holds nothing back needs no scratch.
  EXPECT_EQ(PlanMatMul(batch, 132, 227 << 10, 0).grid, 1);
  batch.depth = 1;
  EXPECT_EQ(PlanMatMul(batch, 132, 227 << 10, 0).grid, 132);
}

TEST(MostScratchBytes, IsEnoughForFewerRowsInAnyRuns) {
  constexpr int64_t kShared = 227 << 10;
  for (const int num_sms : {3, 132}) {
    for (const int64_t n : {1, 128, 1000, 4096, 128256}) {
      for (const auto& [leaves, chunks, depth] :
           {std::tuple{1, 1, 1}, {1, 64, 1}, {2, 8, 2}, {8, 32, 4}, {24, 24, 5}}) {
        MatMulShape shape;
        shape.n = n;
        shape.num_leaves = leaves;
        shape.num_chunks = chunks;
        shape.depth = depth;
        int64_t before = 0;
        for (const int64_t rows : {1, 8, 16, 17, 32, 33, 64, 65, 127, 128, 500, 1056, 2048, 9000}) {
          shape.rows = rows;
          const int64_t most = MostScratchBytes(shape, num_sms, kShared);
          EXPECT_GE(most, before);
          before = most;
          MatMulShape smaller = shape;
          for (int64_t r = 1; r <= rows; r += 1 + r / 16) {
            smaller.rows = r;
            for (const int64_t runs : {1, 2, 64}) {
              smaller.num_runs = runs;
              for (int64_t tallest = std::max<int64_t>(1, r / runs); tallest <= r;
                   tallest += 1 + r / 3) {
                smaller.most_rows = tallest;
                ASSERT_LE(PlanMatMul(smaller, num_sms, kShared).scratch_bytes, most)
                    << r << " of " << rows << " rows, " << runs << " runs, tallest " << tallest
                    << ", n " << n << ", " << leaves << " leaves";
              }
            }
          }
        }
      }
    }
  }
}

TEST(MostTiles, IsEnoughHoweverRowsAreDealtOut) {
  std::mt19937 rng(5);
  for (int i = 0; i < 3000; ++i) {
    const auto runs = static_cast<int64_t>(1 + rng() % 9);
    const auto tile = static_cast<int64_t>(1 + rng() % 16);
    std::vector<int64_t> counts(runs);
    // Ones beyond a whole tile take the most.
    for (int64_t& count : counts) {
      count = static_cast<int64_t>(rng() % 4) * tile + (rng() % 3 == 0 ? rng() % tile : 1);
    }
    int64_t rows = 0;
    int64_t tiles = 0;
    for (const int64_t count : counts) {
      rows += count;
      tiles += (count + tile - 1) / tile;
    }
    ASSERT_LE(tiles, MostTiles(rows, runs, tile)) << rows << " rows, " << runs << " runs";
    ASSERT_LE(MostTiles(rows, runs, tile), rows);
  }
  // Of decode: a tile for each slot.
  EXPECT_EQ(MostTiles(8, 8, 8), 8);
  EXPECT_EQ(MostTiles(512, 128, 8), 192);
}

TEST(ExpectedTallestRun, IsTwiceTheMeanAndNoMoreThanTheTokens) {
  EXPECT_EQ(ExpectedTallestRun(8, 1, 128), 1);
  EXPECT_EQ(ExpectedTallestRun(64 * 8, 64, 128), 8);
  EXPECT_EQ(ExpectedTallestRun(1024 * 8, 1024, 128), 128);
  // Every token goes to every expert.
  EXPECT_EQ(ExpectedTallestRun(10 * 4, 10, 4), 10);
}

TEST(PlanMatMul, GoesToTheTiledKernelWhereChunkSumsDoNotFit) {
  MatMulShape wide;
  wide.rows = wide.most_rows = 1;
  wide.n = 64;
  wide.num_chunks = 1000;
  EXPECT_EQ(PlanMatMul(wide, 80, 99 << 10).kernel, MatMulKernel::kMany);
  wide.num_chunks = 20;
  EXPECT_EQ(PlanMatMul(wide, 80, 99 << 10).kernel, MatMulKernel::kFew);
}

TEST(AttentionRows, KeepsPartialsInsideTheScratch) {
  EXPECT_EQ(AttentionRows(32, 8, 126, int64_t{32} * 8 * 128 * 4 * 10), 10);
  EXPECT_EQ(AttentionRows(1000, 64, 256, 1), 1);
}

}  // namespace
}  // namespace phalanx::kernels::cuda
