// Attention of profile `fast`: of many rows in an order of its own, within the error that is stated
// of `exact`'s; of few rows, and of heads that it has no kernel for, `exact`'s bits.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/fast_testing.h"

namespace phalanx::kernels {
namespace {

using Rows = std::vector<std::vector<float>>;

class FastAttention : public FastBesideExact {
 protected:
  // What each step of chunks of three sequences gives, in exact and in fast. Their tables lie
  // apart.
  std::vector<std::pair<Rows, Rows>> Both(const Shape& shape,
                                          const std::vector<std::vector<Chunk>>& steps) {
    const Layer layer(shape);
    const std::vector<int32_t> blocks = ShuffledBlocks(24, 9);
    const std::vector<std::vector<int32_t>> tables = {{blocks.begin(), blocks.begin() + 8},
                                                      {blocks.begin() + 8, blocks.begin() + 16},
                                                      {blocks.begin() + 16, blocks.end()}};
    Session exact(*exact_, layer, tables, 24);
    Session fast(*fast_, layer, tables, 24);
    std::vector<std::pair<Rows, Rows>> out;
    for (const std::vector<Chunk>& step : steps) {
      out.emplace_back(exact.Step(step), fast.Step(step));
    }
    return out;
  }
};

// Prompts from their beginning and further chunks, with decodes before, between and behind them;
// tiles that end within a token's heads, contexts that end within a block, stale slots full of NaN.
const std::vector<std::vector<Chunk>> kSteps = {{{0, 0, 100}, {1, 0, 1}},
                                                {{1, 1, 3}, {0, 100, 61}, {2, 0, 34}},
                                                {{0, 161, 1}, {2, 34, 150}, {1, 4, 2}}};

std::vector<Shape> PrefillShapes() {
  std::vector<Shape> shapes;
  for (const int64_t dim : {64, 128}) {
    for (const KvFormat format : {KvFormat::kPlain, KvFormat::kF8E4M3}) {
      shapes.push_back({.heads = 5, .kv_heads = 1, .dim = dim, .format = format});
      shapes.push_back({.heads = 3, .kv_heads = 3, .dim = dim, .window = 37, .format = format});
    }
  }
  // A window that ends within a step, and one of the row itself alone.
  shapes.push_back({.window = 70, .stripes = 3});
  shapes.push_back({.heads = 2, .kv_heads = 1, .window = 1});
  return shapes;
}

TEST_F(FastAttention, OfManyRowsIsCloseToExacts) {
  bool differs = false;
  for (const Shape& shape : PrefillShapes()) {
    for (const auto& [exact, fast] : Both(shape, kSteps)) {
      ExpectClose(fast, exact, Describe(shape));
      differs = differs || fast != exact;
    }
  }
  EXPECT_TRUE(differs) << "exact's kernels ran";
}

TEST_F(FastAttention, IsCloseToTheFormulaInDouble) {
  for (const int64_t dim : {64, 128}) {
    Shape shape = {.heads = 2, .kv_heads = 1, .dim = dim, .window = 150};
    ExpectFormula(*fast_, shape, 8e-2);
  }
}

// Scores from far below to far above what was seen before, so that running values are scaled, and
// the other way round, so that they aren't.
TEST_F(FastAttention, OfScoresThatGrowOrFallIsCloseToExacts) {
  for (const bool grow : {true, false}) {
    for (const int64_t dim : {64, 128}) {
      const Shape shape = {.heads = 2, .kv_heads = 1, .dim = dim};
      const auto run = [&](Kernels& kernels) {
        const Layer layer(shape);
        constexpr int64_t kTokens = 200;
        Session session(kernels, layer, {ShuffledBlocks(7, 4)}, 7);
        session.set_factors([&](int64_t position) {
          const int64_t steps = grow ? position : kTokens - position;
          return Session::Factors{.query_key = 0.1f + 0.04f * static_cast<float>(steps)};
        });
        return session.Step({{0, 0, kTokens}});
      };
      ExpectClose(run(*fast_), run(*exact_), grow ? "growing" : "falling");
    }
  }
}

// Where all rows of a warp see a step whole nothing is masked: a token that isn't seen must leave
// every bit, at each edge of that. Keys and queries are so small that every token weighs much; a
// key that is large lets the maxima of the rows that see it grow, and of no others.
TEST_F(FastAttention, SeesTheTokensOfItsWindowAndNoOthers) {
  constexpr int64_t kRows = 70;
  struct Case {
    Shape shape;
    int64_t start;
  };
  std::vector<Case> cases;
  for (const int64_t window : {0, 95}) {
    for (const int64_t start : {62, 64}) {
      cases.push_back({{.heads = 1, .kv_heads = 1, .window = window}, start});
    }
  }
  const KvFormat fp8 = KvFormat::kF8E4M3;
  cases.push_back({{.heads = 1, .kv_heads = 1, .dim = 128, .window = 95, .format = fp8}, 62});
  // Rows of a token on both sides of a tile's border.
  cases.push_back({{.heads = 5, .kv_heads = 1, .dim = 128, .window = 95}, 190});
  for (const auto& [shape, start] : cases) {
    const Layer layer(shape);
    const auto run = [&](int64_t other, const Session::Factors& factors) {
      Session session(*fast_, layer, {ShuffledBlocks(9, 4)}, 9);
      session.set_factors([&](int64_t position) {
        return position == other ? factors : Session::Factors{.query_key = 0.1f};
      });
      session.Step({{0, 0, start}});
      return session.Step({{0, start, kRows}});
    };
    const Rows plain = run(-1, {});
    for (const int64_t p : {int64_t{0}, int64_t{31}, int64_t{61}, int64_t{63}, int64_t{64},
                            start - 1, start, start + 1, start + 31, start + 32, start + 63}) {
      const Rows value = run(p, {.query_key = 0.1f, .value = 3.0f});
      const bool in_rows = p > start && p < start + 32;
      const Rows key = in_rows ? run(p, {.query_key = 20.0f}) : plain;
      for (int64_t i = 0; i < kRows; ++i) {
        const int64_t row = start + i;
        const bool sees = p <= row && (shape.window == 0 || p > row - shape.window);
        EXPECT_EQ(value[i] != plain[i], sees)
            << Describe(shape) << " row " << row << ", token " << p;
        if (!sees) {
          EXPECT_EQ(key[i], plain[i]) << Describe(shape) << " row " << row << ", token " << p;
        }
      }
    }
  }
}

// A few rows after a long context: it is cut into pieces, so that each multiprocessor has some of
// it.
TEST_F(FastAttention, OfALongContextInPiecesIsCloseToExacts) {
  constexpr int64_t kPast = 610;
  bool differs = false;
  for (const int64_t window : {0, 520}) {
    for (const int64_t dim : {64, 128}) {
      const Shape shape = {.heads = 2, .kv_heads = 1, .dim = dim, .window = window};
      const auto run = [&](Kernels& kernels) {
        const Layer layer(shape);
        const std::vector<int32_t> blocks = ShuffledBlocks(28, 4);
        Session session(kernels, layer,
                        {{blocks.begin(), blocks.begin() + 22},
                         {blocks.begin() + 22, blocks.begin() + 26},
                         {blocks.begin() + 26, blocks.end()}},
                        28);
        session.Step({{0, 0, kPast}, {1, 0, 50}});
        // Between a decode and a prompt that is shorter than two pieces.
        return session.Step({{1, 50, 1}, {0, kPast, 40}, {2, 0, 33}});
      };
      const Rows exact = run(*exact_);
      const Rows fast = run(*fast_);
      ExpectClose(fast, exact, Describe(shape));
      differs = differs || fast != exact;
    }
  }
  EXPECT_TRUE(differs) << "exact's kernels ran";
}

TEST_F(FastAttention, OfFewRowsHasExactsBits) {
  for (const Shape& shape : PrefillShapes()) {
    const int64_t rows = 32 * shape.kv_heads / shape.heads;
    const auto both = Both(shape, {{{0, 0, rows}, {1, 0, 1}}, {{0, rows, rows}, {2, 0, 2}}});
    for (const auto& [exact, fast] : both) ExpectSameBits(fast, exact, Describe(shape));
  }
}

TEST_F(FastAttention, OfWhatItHasNoKernelForHasExactsBits) {
  for (const Shape& shape :
       std::vector<Shape>{{.heads = 7, .kv_heads = 1, .dim = 80, .window = 37},
                          {.heads = 3, .kv_heads = 1, .dim = 20, .format = KvFormat::kF8E4M3},
                          {.dim = 256},
                          {.type = DType::kF32},
                          {.type = DType::kF16, .format = KvFormat::kF8E4M3}}) {
    for (const auto& [exact, fast] : Both(shape, {{{0, 0, 60}, {1, 0, 1}}, {{1, 1, 40}}})) {
      ExpectSameBits(fast, exact, Describe(shape));
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
