// The host side of the CUDA backend: packing, staging, attention plans, texts.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_errors.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/staging.h"
#include "tests/kernels/attention_testing.h"

namespace phalanx::kernels::cuda {
namespace {

using testing::HasSubstr;

TEST(Pack, F32AndF16AreColumnsOf32WithZeroPadding) {
  const auto check = [](DType type, auto element) {
    using Element = decltype(element);
    constexpr int64_t kN = 40, kK = 70;
    std::vector<Element> source(kN * kK);
    for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<Element>(i % 1000 + 1);
    WeightSpec spec;
    spec.dtype = type;
    spec.rows = {{source.data(), kN, kK}};
    spec.leaves = {{40, 70}, {0, 33}};
    spec.parts = {{0}, {1}};
    const WeightPlan plan = PlanWeight(spec);
    ASSERT_EQ(plan.k, 96);
    std::vector<Element> packed(NumUnits(plan) * UnitBytes(plan) / sizeof(Element), Element(77));
    for (int64_t unit = 0; unit < NumUnits(plan); ++unit) {
      EXPECT_FALSE(PackUnit(spec, plan, WeightLayout::kTiles, unit,
                            reinterpret_cast<char*>(packed.data()) + unit * UnitBytes(plan)));
    }
    for (int64_t row = 0; row < 64; ++row) {
      for (int64_t k = 0; k < 96; ++k) {
        const int64_t column = k < 30 ? 40 + k : k >= 32 && k < 65 ? k - 32 : -1;
        const Element expected = row < kN && column >= 0 ? source[row * kK + column] : Element(0);
        ASSERT_EQ(packed[ChainOffset(row, k, 96)], expected) << "row " << row << ", k " << k;
      }
    }
  };
  check(DType::kF32, 0.0f);
  check(DType::kF16, uint16_t{0});
}

TEST(Pack, RowMajorUnitsAreTheRowsWithZeroPadding) {
  std::vector<uint16_t> source(37 * 50);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(i + 1);
  WeightSpec spec;
  spec.dtype = DType::kBF16;
  spec.rows = {{source.data(), 20, 50}, {source.data() + 20 * 50, 17, 50}};
  spec.leaves = {{3, 40}, {40, 45}};
  spec.parts = {{0, 1, -1}};
  const WeightPlan plan = PlanWeight(spec);
  ASSERT_EQ(plan.k, 96);
  std::vector<uint16_t> packed(NumUnits(plan) * UnitBytes(plan) / 2, 77);
  for (int64_t unit = 0; unit < NumUnits(plan); ++unit) {
    EXPECT_FALSE(PackUnit(spec, plan, WeightLayout::kRows, unit,
                          reinterpret_cast<char*>(packed.data()) + unit * UnitBytes(plan)));
  }
  ASSERT_EQ(packed.size(), 48 * 96);
  for (int64_t row = 0; row < 48; ++row) {
    for (int64_t k = 0; k < 96; ++k) {
      const int64_t column = k < 37 ? 3 + k : k >= 64 && k < 69 ? 40 + k - 64 : -1;
      const uint16_t expected = row < 37 && column >= 0 ? source[row * 50 + column] : 0;
      ASSERT_EQ(packed[row * 96 + k], expected) << row << ", " << k;
    }
  }
  source[36 * 50 + 44] = 0x7f80;
  std::vector<char> unit(UnitBytes(plan));
  EXPECT_TRUE(PackUnit(spec, plan, WeightLayout::kRows, 2, unit.data()));
}

TEST(WeightPlan, APartsRunOfKHasNoOtherPartsLeavesInIt) {
  WeightSpec spec;
  spec.rows = {{nullptr, 8, 300}};
  spec.leaves = {{0, 32}, {32, 100}, {100, 100}, {100, 120}, {120, 300}};
  const auto runs = [&](std::vector<std::vector<int>> parts) {
    spec.parts = std::move(parts);
    const WeightPlan plan = PlanWeight(spec);
    std::vector<std::pair<int64_t, int64_t>> out;
    for (int part = 0; part < plan.num_parts(); ++part) {
      const auto run = RunOfPart(plan, part);
      out.emplace_back(run ? run->begin : -1, run ? run->end : -1);
    }
    return out;
  };
  using Runs = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(runs({{0, 1, -1, 2, 3, -1, -1, 4, -1}}), (Runs{{0, 352}}));
  EXPECT_EQ(runs({{1, 0, -1}, {2}, {4, 3, -1}}), (Runs{{0, 128}, {128, 128}, {128, 352}}));
  // The empty leaf fills no gap and makes none.
  EXPECT_EQ(runs({{0, 2, -1}, {1, 3, -1}, {4}}), (Runs{{-1, -1}, {32, 160}, {160, 352}}));
  EXPECT_EQ(runs({{0, 4, -1}, {1, 2, -1, 3, -1}}), (Runs{{-1, -1}, {32, 160}}));
}

TEST(Pack, FindsTheFirstBadValueOfAUnitByRowThenColumn) {
  std::vector<uint16_t> source(50 * 100, 0x3f80);
  source[37 * 100 + 90] = 0x7f80;
  source[33 * 100 + 80] = 0xffc0;
  source[33 * 100 + 41] = 0x7fc0;
  WeightSpec spec;
  spec.rows = {{source.data(), 50, 100}};
  spec.leaves = {{50, 100}, {0, 50}};
  spec.parts = {{0, 1, -1}};
  const WeightPlan plan = PlanWeight(spec);
  std::vector<char> unit(UnitBytes(plan));
  EXPECT_FALSE(PackUnit(spec, plan, WeightLayout::kTiles, 1, unit.data()));
  EXPECT_TRUE(PackUnit(spec, plan, WeightLayout::kTiles, 2, unit.data()));
  const BadValue bad = FindBadValue(spec, plan, 2);
  EXPECT_EQ(bad.row, 33);
  EXPECT_EQ(bad.column, 41);
  EXPECT_EQ(FindBadValue(spec, plan, 1).row, -1);
  EXPECT_THAT(std::string(UnfitWeight(spec, bad.row, bad.column).message()),
              HasSubstr("row 33, column 41;"));
}

TEST(Pack, RefusesMoreLeavesThanTheKernelsTake) {
  WeightSpec spec;
  spec.rows = {{nullptr, 16, 65 * 32}};
  spec.parts = {{}};
  for (int i = 0; i < 65; ++i) {
    spec.leaves.push_back({i * 32, (i + 1) * 32});
    spec.parts[0].push_back(i);
    if (i > 0) spec.parts[0].push_back(-1);
  }
  const absl::Status status = CheckPackable(PlanWeight(spec));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("65 leaves"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("64 at most"));
}

TEST(StagingRing, GivesRoomThatNobodyInTheSameHalfHasAndTurnsBetweenHalves) {
  StagingRing ring(4000);  // halves of 4096
  EXPECT_EQ(ring.half_bytes(), 4096);
  EXPECT_EQ(ring.most_bytes(), 256);
  EXPECT_EQ(ring.Place(1), 0);
  EXPECT_EQ(ring.Place(256), 256);
  EXPECT_EQ(ring.Place(0), 512);
  for (int64_t i = 2; i < 16; ++i) EXPECT_EQ(ring.Place(200), i * 256);
  EXPECT_EQ(ring.used(), 4096);
  EXPECT_EQ(ring.Place(1), -1);
  EXPECT_EQ(ring.used(), 4096);
  ring.Turn(/*step_begins=*/false);
  EXPECT_EQ(ring.used(), 0);
  EXPECT_EQ(ring.host_half(), 1);
  EXPECT_EQ(ring.device_half(), 1);
  EXPECT_EQ(ring.Place(1), 0);
  // A step begins in half 0 of the device and in the other one of the host.
  ring.Turn(/*step_begins=*/true);
  EXPECT_EQ(ring.host_half(), 0);
  EXPECT_EQ(ring.device_half(), 0);
  ring.Turn(/*step_begins=*/true);
  EXPECT_EQ(ring.host_half(), 1);
  EXPECT_EQ(ring.device_half(), 0);
}

TEST(StagingRing, OneTurnIsEnoughForAllRequestsOfAnOp) {
  for (const int64_t bytes : {1, 256, 257, 5000, 1 << 20}) {
    StagingRing ring(StagingRing::HalfFor(bytes));
    EXPECT_GE(ring.most_bytes(), bytes);
    EXPECT_LT(StagingRing(StagingRing::HalfFor(bytes) / 2).most_bytes(), bytes);
    // Whatever is in the half before the op.
    for (int64_t before = 0; before < StagingRing::kRequestsOfOp; ++before) {
      StagingRing op = ring;
      for (int64_t i = 0; i < before; ++i) ASSERT_GE(op.Place(bytes), 0);
      int turns = 0;
      for (int64_t i = 0; i < StagingRing::kRequestsOfOp; ++i) {
        if (op.Place(bytes) >= 0) continue;
        ++turns;
        op.Turn(/*step_begins=*/false);
        ASSERT_GE(op.Place(bytes), 0);
      }
      EXPECT_LE(turns, 1);
    }
  }
}

// Against a list of all that was added, with contents that often agree in length and beginning.
TEST(StagedContents, FindsEqualBytesUntilTheyAreCleared) {
  StagedContents contents;
  std::vector<char> half(1 << 20);
  uint32_t state = 1;
  const auto below = [&](uint32_t n) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % n;
  };
  for (int round = 0; round < 5; ++round) {
    std::vector<std::tuple<int64_t, Staged, std::vector<char>>> added;
    int64_t used = 0;
    int found = 0;
    for (int i = 0; i < 2000; ++i) {
      std::vector<char> bytes(1 + below(20), 'x');
      bytes[below(static_cast<uint32_t>(bytes.size()))] = static_cast<char>('a' + below(3));
      const auto size = static_cast<int64_t>(bytes.size());
      const Staged kind = below(2) == 0 ? Staged::kIds : Staged::kSlots;
      int64_t expected = -1;
      for (const auto& [offset, added_kind, content] : added) {
        if (added_kind == kind && content == bytes) expected = offset;
      }
      ASSERT_EQ(contents.Find(kind, bytes.data(), size, half.data()), expected);
      found += expected >= 0 ? 1 : 0;
      if (expected >= 0) continue;
      std::memcpy(half.data() + used, bytes.data(), bytes.size());
      contents.Add(kind, bytes.data(), size, used);
      added.emplace_back(used, kind, bytes);
      used += 256;
    }
    EXPECT_GT(found, 1000);
    EXPECT_GT(added.size(), 300u);
    contents.Clear();
  }
}

TEST(GroupHeads, SortsQueryHeadsByTheirKvHead) {
  const HeadGroups groups = GroupHeads(std::vector<int32_t>{1, 0, 1, 3}, 4);
  EXPECT_EQ(groups.heads, (std::vector<int32_t>{1, 0, 2, 3}));
  ASSERT_EQ(groups.groups.size(), 3u);
  EXPECT_EQ(groups.groups[1].kv_head, 1);
  EXPECT_EQ(groups.groups[1].begin, 1);
  EXPECT_EQ(groups.groups[1].end, 3);
  EXPECT_EQ(groups.groups[2].kv_head, 3);
  EXPECT_EQ(groups.widest, 2);
}

TEST(PlanAttention, CoversEveryRowOnceInTilesOfTheRightKernel) {
  std::vector<int32_t> tables(200);
  for (int i = 0; i < 200; ++i) tables[i] = 199 - i;
  const std::vector<AttentionSequence> sequences = {
      {0, 1, 100, tables.data()}, {1, 100, 0, tables.data()}, {105, 3, 33, tables.data() + 7}};
  for (const auto& [begin, end] : {std::pair{0, 108}, std::pair{0, 50}, std::pair{50, 108}}) {
    for (const int64_t heads : {1, 4, 40}) {
      const AttentionPlan plan = PlanAttention(sequences, begin, end, heads, true);
      // Query rows of each sequence, by tile.
      for (size_t s = 0; s < plan.sequences.size(); ++s) {
        const SequenceRows& rows = plan.sequences[s];
        std::set<int64_t> covered;
        for (const auto& [tiles, step] :
             {std::pair{&plan.few, kFewRows}, std::pair{&plan.many, kManyRows}}) {
          for (const RowTile& tile : *tiles) {
            if (tile.sequence != static_cast<int>(s)) continue;
            for (int64_t r = tile.first;
                 r < std::min<int64_t>(tile.first + step, rows.row_count * heads); ++r) {
              EXPECT_TRUE(covered.insert(r).second);
            }
          }
        }
        EXPECT_EQ(static_cast<int64_t>(covered.size()), rows.row_count * heads);
        EXPECT_LT(rows.row_begin + rows.row_count, end - begin + 1);
      }
      EXPECT_GE(plan.most_few_rows, 1);
      EXPECT_LE(plan.most_few_rows, kFewRows);
    }
  }
  const AttentionPlan whole = PlanAttention(sequences, 0, 108, 4, true);
  EXPECT_EQ(whole.runs, (std::vector<std::pair<int64_t, int64_t>>{{0, 101}, {105, 108}}));
  ASSERT_EQ(whole.sequences.size(), 3u);
  EXPECT_EQ(whole.sequences[2].table_begin, 4 + 4);
  EXPECT_EQ(whole.tables[8], tables[7]);
  // The second half of the prefill begins where the first ended.
  const AttentionPlan half = PlanAttention(sequences, 50, 108, 4, true);
  EXPECT_EQ(half.sequences[0].row_begin, 0);
  EXPECT_EQ(half.sequences[0].start, 49);
  EXPECT_EQ(half.sequences[0].row_count, 51);
  // F32 and F16: a tile a token.
  EXPECT_EQ(PlanAttention(sequences, 0, 108, 4, false).tokens.size(), 104u);
}

TEST(PlanAttention, CutsShorterTilesWhereABlockHasLittleSharedMemory) {
  // An H100, and an L40S; 2 KiB are static.
  const auto layout = [](int64_t d, bool fp8 = false) { return KvLayout(DType::kBF16, 1, d, fp8); };
  EXPECT_EQ(FewAttentionRows(layout(128), 227 << 10), kFewRows);
  // Four blocks of 16 KiB, 4 x 136 floats a row.
  EXPECT_EQ(FewAttentionRows(layout(128), 99 << 10), 15);
  EXPECT_EQ(FewAttentionRows(layout(128, true), 99 << 10), kFewRows);
  EXPECT_EQ(FewAttentionRows(layout(64), 99 << 10), kFewRows);
  // Of wide heads eight at most.
  EXPECT_EQ(FewAttentionRows(layout(256), 227 << 10), kFewRows / 2);
  EXPECT_EQ(FewAttentionRows(layout(256), 99 << 10), kFewRows / 2);
  EXPECT_EQ(FewAttentionRows(layout(256), 70 << 10), 1);
  std::vector<int32_t> table(8);
  const AttentionPlan plan = PlanAttention({{0, 5, 0, table.data()}}, 0, 5, 5, true, 11);
  ASSERT_EQ(plan.few.size(), 3u);  // 25 query rows
  EXPECT_EQ(plan.few[2].first, 22);
  EXPECT_EQ(plan.most_few_rows, 11);
}

TEST(PlanAttention, CountsTheBlocksThatAStripeHasAtMost) {
  EXPECT_EQ(MostBlocksOfStripe(0, 0, 0, 8), 1);
  EXPECT_EQ(MostBlocksOfStripe(511, 511, 0, 8), 2);
  EXPECT_EQ(MostBlocksOfStripe(512, 512, 0, 8), 3);
  EXPECT_EQ(MostBlocksOfStripe(512, 512, 0, 1), 17);
  // A window of 64 tokens sees at most three blocks.
  EXPECT_EQ(MostBlocksOfStripe(512, 512, 64, 1), 3);
  EXPECT_EQ(MostBlocksOfStripe(511, 511, 64, 1), 2);
  std::vector<int> warps, of_four;
  for (const int64_t blocks : {0, 1, 2, 3, 4, 5, 8, 9, 1000}) {
    warps.push_back(WarpsOfStripe(blocks, 8));
    of_four.push_back(WarpsOfStripe(blocks, 4));
  }
  EXPECT_EQ(warps, (std::vector<int>{1, 1, 2, 4, 4, 8, 8, 8, 8}));
  EXPECT_EQ(of_four, (std::vector<int>{1, 1, 2, 4, 4, 4, 4, 4, 4}));
  // Of the tiles of few rows alone: the second sequence has none.
  std::vector<int32_t> table(40);
  const std::vector<AttentionSequence> sequences = {{0, 1, 600, table.data()},
                                                    {1, 100, 900, table.data()}};
  const AttentionPlan plan = PlanAttention(sequences, 0, 101, 4, true);
  EXPECT_EQ(MostFewBlocks(plan, 0, 4), 5);
  EXPECT_EQ(MostFewBlocks(plan, 33, 4), 1);
  EXPECT_EQ(MostFewBlocks(PlanAttention(sequences, 1, 101, 4, true), 0, 4), 0);
}

TEST(FewAttention, HasEightWarpsWhereThereIsABlockForEachMultiprocessorAtMost) {
  const KvLayout layout(DType::kBF16, 8, 128);
  const auto warps = [&](int rows, int64_t most_blocks, int64_t blocks, int64_t max_shared) {
    return FewAttentionWarps(layout, rows, most_blocks, blocks, 132, max_shared);
  };
  // A sequence of 8,192 tokens, eight KV heads, eight stripes.
  EXPECT_EQ(warps(4, 32, 64, 227 << 10), 8);
  EXPECT_EQ(warps(8, 5, 132, 227 << 10), 8);
  EXPECT_EQ(warps(8, 5, 133, 227 << 10), 4);
  // More rows have kernels of four warps alone, and so few blocks have enough of them.
  EXPECT_EQ(warps(9, 32, 64, 227 << 10), 4);
  EXPECT_EQ(warps(4, 4, 64, 227 << 10), 4);
  // 128 KiB of keys and values, 4,352 bytes a row, 2 KiB that are static: an A100, and an L40S.
  EXPECT_EQ(warps(4, 32, 64, 163 << 10), 8);
  EXPECT_EQ(warps(8, 32, 64, 163 << 10), 4);
  EXPECT_EQ(warps(1, 32, 64, 99 << 10), 4);
  EXPECT_EQ(FewAttentionBytes(layout, 8, 4), (128 << 10) + 4 * 4352);
  EXPECT_EQ(FewAttentionWarps(KvLayout(DType::kBF16, 8, 256), 4, 32, 64, 132, 227 << 10), 2);
}

TEST(PrefillPieces, CutsContextsWhereTilesLeaveMultiprocessorsIdle) {
  std::vector<int32_t> table(1100);
  const auto pieces = [&](int64_t start, int64_t rows, int64_t groups, int64_t window = 0,
                          int64_t most = 100) {
    const AttentionPlan plan = PlanAttention({{0, rows, start, table.data()}}, 0, rows, 4, true);
    return PrefillPieces(plan, groups, window, 132, most);
  };
  // 64 tiles x 8 groups keep 264 blocks busy.
  EXPECT_EQ(pieces(0, 2048, 8), 1);
  // A tile x 8 groups, after a long prefix; no more than 16, nor than there is memory for.
  EXPECT_EQ(pieces(32000, 20, 8), 16);
  EXPECT_EQ(pieces(32000, 20, 8, 0, 5), 5);
  EXPECT_EQ(pieces(32000, 20, 8, 0, 0), 1);
  // 16 tiles x 1 group, of 8.25 blocks for each of which there is room.
  EXPECT_EQ(pieces(32000, 512, 1), 16);
  EXPECT_EQ(pieces(32000, 1024, 1), 8);
  EXPECT_EQ(pieces(32000, 1024, 2), 4);
  // A piece has 256 tokens at least; behind a window there are none.
  EXPECT_EQ(pieces(1003, 20, 1), 3);
  EXPECT_EQ(pieces(1004, 20, 1), 4);
  EXPECT_EQ(pieces(200, 20, 1), 1);
  EXPECT_EQ(pieces(32000, 20, 1, 1024), 4);
  EXPECT_EQ(PrefillPieces(AttentionPlan(), 8, 0, 132, 100), 1);
}

TEST(IsTree, KnowsTheTreeOverAnyNumberOfOperands) {
  for (int n = 1; n <= 64; ++n) {
    std::vector<int> program;
    AppendTree(0, n, program);
    EXPECT_TRUE(IsTree(program, n)) << n;
    EXPECT_FALSE(IsTree(program, n + 1)) << n;
    EXPECT_FALSE(IsTree(program, n - 1)) << n;
    program.push_back(-1);
    EXPECT_FALSE(IsTree(program, n)) << n;
  }
  EXPECT_FALSE(IsTree(std::vector<int>{1, 0, -1}, 2));
  EXPECT_FALSE(IsTree(std::vector<int>{0, 1, -1, 2, -1, 3, -1}, 4));
  EXPECT_FALSE(IsTree(std::vector<int>{0, 1, 2, -1, -1}, 3));
  EXPECT_FALSE(IsTree({}, 0));
}

TEST(ProgramDepth, CountsOperandsAliveAtOnce) {
  EXPECT_EQ(ProgramDepth(std::vector<int>{0}, 1), 1);
  EXPECT_EQ(ProgramDepth(std::vector<int>{0, 1, -1, 2, 3, -1, -1}, 4), 3);
  EXPECT_EQ(ProgramDepth(std::vector<int>{0, 1, 2, 3, -1, -1, -1}, 4), 4);
  EXPECT_DEATH(ProgramDepth(std::vector<int>{0, -1}, 1), "postfix");
  EXPECT_DEATH(ProgramDepth(std::vector<int>{0, 2, -1}, 2), "operand 2 of 2");
}

TEST(DeviceErrors, SayWhatIsMissingAndWhatToDo) {
  DeviceQuery query;
  query.runtime_version = 13000;
  EXPECT_TRUE(ExplainDevices(query).ok());
  query.no_driver = true;
  EXPECT_EQ(
      ExplainDevices(query).message(),
      "no CUDA device: this machine has no NVIDIA driver; install one for CUDA 13.0 or newer, "
      "or use --device cpu");
  query.driver_version = 12080;
  EXPECT_EQ(
      ExplainDevices(query).message(),
      "no CUDA device: the NVIDIA driver is for CUDA 12.8, this binary needs 13.0; update the "
      "driver, or use --device cpu");
  query.no_driver = false;
  query.no_device = true;
  EXPECT_EQ(ExplainDevices(query).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ExplainDevices(query).message()), HasSubstr("no CUDA device: "));
  query.no_device = false;
  query.error = "unknown error";
  EXPECT_THAT(std::string(ExplainDevices(query).message()),
              HasSubstr("no CUDA device: the CUDA runtime says: unknown error"));

  EXPECT_TRUE(CheckDeviceIndex(0, 1).ok());
  EXPECT_EQ(CheckDeviceIndex(2, 2).message(),
            "no CUDA device 2: this machine has 2 (numbers 0 to 1)");
  EXPECT_EQ(CheckDeviceIndex(-1, 1).message(), "no CUDA device -1: this machine has 1 (number 0)");
  EXPECT_TRUE(CheckCapability(0, 8, 0).ok());
  EXPECT_THAT(std::string(CheckCapability(0, 7, 5).message()),
              HasSubstr("compute capability 7.5; the kernels need 8.0"));
}

// Whatever this machine and build have: an answer, and never a crash.
TEST(CudaDevice, AnswersOnEveryMachine) {
  const absl::StatusOr<int> count = CudaDeviceCount();
  const auto kernels = CreateCudaKernels({});
  EXPECT_EQ(count.ok(), kernels.ok());
  if (count.ok()) {
    EXPECT_GE(*count, 1);
    EXPECT_FALSE(CreateCudaKernels({.device = *count}).ok());
  } else {
    EXPECT_TRUE(absl::StartsWith(count.status().message(), "no CUDA device: ")) << count.status();
    EXPECT_THAT(std::string(count.status().message()), HasSubstr("--device cpu"));
    EXPECT_EQ(kernels.status(), count.status());
    if (!BuiltWithCuda()) {
      EXPECT_THAT(std::string(count.status().message()), HasSubstr("built without CUDA"));
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
