// QkvToCache, CopyBlocks and attention: by bits against the reference, and the invariances of R3.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

TEST(QkvToCache, EqualsReferenceInEveryByteOfTheCache) {
  for (const Shape& shape : Shapes()) {
    const Layer layer(shape);
    for (const auto& [name, kernels] : AllKernels()) {
      const auto plain = CreateCpuKernels({});
      ASSERT_TRUE(plain.ok());
      Cache expected(**plain, layer.kv(), 6), cache(*kernels, layer.kv(), 6);
      for (const auto& [rows, first] :
           std::vector<std::pair<int64_t, int32_t>>{{1, 17}, {2, 17}, {45, 17}, {1, 0}, {40, 0}}) {
        Random random(3);
        Matrix qkv = Matrix::Of(DType::kF32, rows, layer.Cols(), random);
        std::vector<int32_t> positions, slots;
        for (int32_t i = 0; i < rows; ++i) {
          positions.push_back(first + i);
          slots.push_back(i == 7 ? -1 : static_cast<int32_t>(i * 3 + rows));
        }
        const int64_t q_cols = shape.heads * RoundUp(shape.dim, kDotGroup);
        Matrix expected_q(Activation(shape), rows, q_cols), q(Activation(shape), rows, q_cols);
        reference::QkvToCache(
            layer.Qkv(qkv.view(), positions, slots, expected.view(), expected_q.view()));
        kernels->QkvToCache(layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view()));
        EXPECT_EQ(q.Difference(expected_q), "") << name << " " << Describe(shape);
        // A device's layout of BF16 blocks is its own.
        if (HasCpuBits(shape.type)) {
          EXPECT_TRUE(cache == expected) << name << " " << Describe(shape);
        }
      }
    }
  }
}

TEST(QkvToCache, RotatesPairsAsHuggingFaceDoes) {
  Shape shape;
  shape.type = DType::kF32;
  shape.heads = shape.kv_heads = 1;
  shape.dim = 6;
  shape.rotary = 4;
  const Layer layer(shape);
  const auto kernels = KernelSets().back().make(1);
  Cache cache(*kernels, layer.kv(), 1);
  Matrix qkv(DType::kF32, 1, layer.Cols()), q(DType::kF32, 1, 32);
  for (int64_t j = 0; j < layer.Cols(); ++j) qkv.Set(0, j, static_cast<float>(j + 1));
  const std::vector<int32_t> positions = {9}, slots = {4};
  kernels->QkvToCache(layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view()));
  const double a = 9.0, b = 9.0 / 100.0;
  EXPECT_NEAR(q.Get(0, 0), 1 * std::cos(a) - 3 * std::sin(a), 1e-5);
  EXPECT_NEAR(q.Get(0, 2), 3 * std::cos(a) + 1 * std::sin(a), 1e-5);
  EXPECT_NEAR(q.Get(0, 1), 2 * std::cos(b) - 4 * std::sin(b), 1e-5);
  EXPECT_NEAR(q.Get(0, 3), 4 * std::cos(b) + 2 * std::sin(b), 1e-5);
  EXPECT_EQ(q.Get(0, 4), 5.0f);
  EXPECT_EQ(q.Get(0, 5), 6.0f);
  EXPECT_EQ(q.Get(0, 6), 0.0f);
}

TEST(Attention, EqualsReferenceWithStaleSlotsFullOfNan) {
  for (const Shape& shape : Shapes()) {
    const Layer layer(shape);
    std::vector<std::vector<std::vector<float>>> expected;
    for (const auto& [name, kernels] : AllKernels()) {
      const std::vector<int32_t> blocks = ShuffledBlocks(20, 9);
      const std::vector<std::vector<int32_t>> tables = {{blocks.begin(), blocks.begin() + 6},
                                                        {blocks.begin() + 6, blocks.begin() + 9},
                                                        {blocks.begin() + 9, blocks.end()}};
      Session session(*kernels, layer, tables, 20);
      const std::vector<std::vector<Chunk>> steps = {{{0, 0, 50}, {1, 0, 1}},
                                                     {{1, 1, 1}, {0, 50, 33}, {2, 0, 90}},
                                                     {{2, 90, 1}, {0, 83, 1}, {1, 2, 1}},
                                                     {{0, 84, 70}, {2, 91, 230}, {1, 3, 31}}};
      if (expected.empty()) {
        const auto cpu = CreateCpuKernels({});
        ASSERT_TRUE(cpu.ok());
        Session plain(**cpu, layer, tables, 20);
        for (const std::vector<Chunk>& step : steps) expected.push_back(plain.Step(step, true));
      }
      for (size_t i = 0; i < steps.size(); ++i) {
        const auto out = session.Step(steps[i]);
        ExpectReference(shape.type, out, expected[i], name + " " + Describe(shape));
        for (const auto& row : out) {
          for (const float value : row) ASSERT_TRUE(std::isfinite(value)) << Describe(shape);
        }
      }
    }
  }
}

TEST(Attention, IsCloseToTheFormulaInDouble) {
  for (const DType type : kAllTypes) {
    Shape shape;
    shape.type = type;
    shape.dim = 16;
    shape.heads = 2;
    shape.kv_heads = 1;
    shape.window = 150;
    const auto kernels = KernelSets().back().make(1);
    ExpectFormula(*kernels, shape, type == DType::kF32 ? 1e-4 : type == DType::kF16 ? 1e-2 : 8e-2);
  }
}

TEST(Attention, DoesNotDependOnChunkingBatchThreadsOrPlacement) {
  for (const Shape& shape : Shapes()) {
    const Layer layer(shape);
    std::vector<std::vector<float>> expected;
    for (const auto& [name, kernels] : AllKernels()) {
      if (name.rfind("portable", 0) == 0) continue;
      for (const int64_t chunk : Sized<int64_t>({17, 64, 200}, {1, 7, 64, 200})) {
        // Another sequence shares each step, and the blocks lie elsewhere each time.
        const std::vector<int32_t> blocks = ShuffledBlocks(40, static_cast<uint32_t>(chunk));
        Session session(*kernels, layer,
                        {{blocks.begin(), blocks.begin() + 7}, {blocks.begin() + 7, blocks.end()}},
                        40);
        std::vector<std::vector<float>> rows;
        for (int64_t start = 0; start < 200; start += chunk) {
          const int64_t count = std::min<int64_t>(chunk, 200 - start);
          const auto out = chunk % 10 == 7 ? session.Step({{1, start, count}, {0, start, count}})
                                           : session.Step({{0, start, count}});
          rows.insert(rows.end(), out.end() - count, out.end());
        }
        if (expected.empty()) expected = rows;
        ExpectSameBits(rows, expected,
                       name + " chunks of " + std::to_string(chunk) + " " + Describe(shape));
      }
    }
  }
}

// A GPU shares out its warps by the blocks of a stripe, of the longest sequence in the step: one
// row has the bits that it has among forty (which another kernel takes), alone or beside a shorter
// and a longer sequence.
TEST(Attention, DoesNotDependOnHowManyBlocksAStripeHas) {
  constexpr int64_t kTokens = 480;
  for (const int64_t window : {0, 100}) {
    for (const KvFormat format : {KvFormat::kPlain, KvFormat::kF8E4M3}) {
      Shape shape;
      shape.stripes = 3;
      shape.window = window;
      shape.format = format;
      const Layer layer(shape);
      for (const auto& [name, kernels] : AllKernels()) {
        if (name.rfind("portable", 0) == 0) continue;
        const std::vector<int32_t> blocks = ShuffledBlocks(45, 9);
        Session session(*kernels, layer,
                        {{blocks.begin(), blocks.begin() + 15},
                         {blocks.begin() + 15, blocks.begin() + 30},
                         {blocks.begin() + 30, blocks.end()}},
                        45);
        std::vector<std::vector<float>> rows;
        for (int64_t start = 0; start < kTokens; start += 40) {
          for (const auto& row : session.Step({{0, start, 40}})) rows.push_back(row);
        }
        session.Step({{1, 0, 20}});
        session.Step({{2, 0, kTokens - 1}});
        // Up to five blocks of a stripe: around where it gets a block more.
        for (const int64_t p : {0, 31, 95, 96, 191, 192, 288, 383, 384, 479}) {
          const std::string what = name + " position " + std::to_string(p) + " " + Describe(shape);
          ExpectSameBits(session.Step({{0, p, 1}}), {rows[p]}, what);
          const auto among = session.Step({{1, 19, 1}, {0, p, 1}, {2, kTokens - 2, 1}});
          ExpectSameBits({among[1]}, {rows[p]}, what + " among others");
        }
      }
    }
  }
}

TEST(AttentionPartials, OfStripesOnAnyNumberOfRanksMergeToAttention) {
  for (const Shape& shape : Shapes()) {
    const Layer layer(shape);
    for (const auto& [name, kernels] : AllKernels()) {
      if (name.rfind("portable", 0) == 0) continue;
      for (const int ranks : Sized<int>({3}, {1, 2, 3, 5, 8})) {
        if (ranks > shape.stripes) continue;
        const std::vector<std::vector<int32_t>> tables = {ShuffledBlocks(20, 2)};
        Session together(*kernels, layer, tables, 20), split(*kernels, layer, tables, 20);
        for (const Chunk& chunk : Sized<Chunk>({{0, 0, 150}, {0, 150, 1}, {0, 151, 120}},
                                               {{0, 0, 300}, {0, 300, 1}, {0, 301, 100}})) {
          ExpectSameBits(split.Step({chunk}, false, ranks), together.Step({chunk}),
                         name + " " + std::to_string(ranks) + " ranks " + Describe(shape));
        }
      }
    }
  }
}

TEST(AttentionPartials, OfAnEmptyStripeAreTheIdentity) {
  Shape shape;
  const Layer layer(shape);
  for (const auto& [name, kernels] : AllKernels()) {
    Cache cache(*kernels, layer.kv(), 1);
    Matrix q(DType::kBF16, 1, shape.heads * shape.dim), out(DType::kBF16, 1, layer.OutCols());
    for (int64_t j = 0; j < shape.heads * shape.dim; ++j) q.Set(0, j, 1.0f);
    const int32_t table = 0;
    const std::vector<AttentionSequence> sequences = {{0, 1, 5, &table}};
    AttentionArgs args = layer.Attention(q.view(), cache.view(), sequences, out.view());
    args.stripe_begin = 2;
    args.stripe_end = 4;
    const int64_t width = 2 + shape.dim;
    std::vector<float> partials(shape.heads * 2 * width, 7.0f);
    kernels->AttentionPartials(args, partials.data());
    for (int64_t i = 0; i < shape.heads * 2 * width; ++i) {
      EXPECT_EQ(partials[i], i % width == 0 ? -std::numeric_limits<float>::infinity() : 0.0f)
          << name;
    }
  }
}

TEST(CopyBlocks, CopiesKeysAndValuesOfEveryHead) {
  for (const Shape& shape : Shapes()) {
    const Layer layer(shape);
    const auto kernels = KernelSets().back().make(1);
    Session original(*kernels, layer, {{0, 1, 2}}, 8);
    Session copied(*kernels, layer, {{0, 1, 2}, {5, 7, 4}}, 8);
    original.Step({{0, 0, 70}});
    copied.Step({{0, 0, 70}});
    kernels->CopyBlocks(copied.cache().view(),
                        std::vector<std::pair<int32_t, int32_t>>{{0, 6}, {1, 7}, {2, 4}, {6, 5}});
    // The copy, read through another table, gives the original's outputs for the original's token.
    Session& view = copied;
    const auto expected = original.Step({{0, 70, 1}});
    Shape same = shape;
    const Layer twin(same);
    const std::vector<float> row = twin.Row(0, 70);
    Matrix qkv(DType::kF32, 1, twin.Cols());
    for (int64_t j = 0; j < twin.Cols(); ++j) qkv.Set(0, j, row[j]);
    Matrix q(Activation(shape), 1, shape.heads * RoundUp(shape.dim, kDotGroup));
    Matrix out(Activation(shape), 1, twin.OutCols());
    const std::vector<int32_t> positions = {70}, slots = {4 * 32 + 6};
    kernels->QkvToCache(twin.Qkv(qkv.view(), positions, slots, view.cache().view(), q.view()));
    const std::vector<AttentionSequence> sequences = {{0, 1, 70, view.table(1).data()}};
    kernels->Attention(twin.Attention(q.view(), view.cache().view(), sequences, out.view()));
    for (int64_t j = 0; j < twin.OutCols(); ++j) EXPECT_EQ(out.Get(0, j), expected[0][j]);
  }
}

}  // namespace
}  // namespace phalanx::kernels
