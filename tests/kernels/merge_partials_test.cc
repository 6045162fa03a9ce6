// MergePartials: merging whole subtrees first and the rest later gives Attention's bits (R3).
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "parallel/leaves.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using parallel::Range;

// Every way to cut [0, n) into contiguous runs.
std::vector<std::vector<Range>> AllSplits(int n) {
  std::vector<std::vector<Range>> splits;
  for (int cuts = 0; cuts < 1 << (n - 1); ++cuts) {
    std::vector<Range> runs = {{0, 0}};
    for (int i = 0; i < n; ++i) {
      if (i > 0 && (cuts >> (i - 1) & 1) != 0) runs.push_back({i, i});
      runs.back().end = i + 1;
    }
    splits.push_back(runs);
  }
  return splits;
}

// What sequence-parallel ranks send and finish: `stripes` partials of each of `count` units, cut
// into runs, each run's whole subtrees merged on its own, and the program over what they send.
struct Merged {
  std::vector<float> partials;
  int num_partials = 0;
  std::vector<int> program;
};
Merged MergeOnRanks(Kernels& kernels, const std::vector<float>& partials, int64_t count, int64_t d,
                    int stripes, const std::vector<Range>& runs) {
  const int64_t width = 2 + d;
  std::vector<Range> parts;
  std::vector<std::vector<float>> sent;
  std::vector<int64_t> sent_parts;
  for (const Range& run : runs) {
    std::vector<std::vector<int>> programs;
    for (const Range& part : parallel::WholeSubtrees(run, stripes)) {
      std::vector<int> program = parallel::LeafProgram(part, static_cast<int>(part.begin));
      for (int& step : program) {
        if (step >= 0) step -= static_cast<int>(run.begin);
      }
      programs.push_back(program);
      parts.push_back(part);
    }
    std::vector<float> mine;
    for (int64_t unit = 0; unit < count; ++unit) {
      const float* from = partials.data() + (unit * stripes + run.begin) * width;
      mine.insert(mine.end(), from, from + run.size() * width);
    }
    const int64_t num_parts = static_cast<int64_t>(programs.size());
    std::vector<float> out(count * num_parts * width + 1, -321.0f);
    kernels.MergePartials(mine.data(), count, d, static_cast<int>(run.size()), programs,
                          out.data());
    EXPECT_EQ(out.back(), -321.0f);
    sent.push_back(out);
    sent_parts.push_back(num_parts);
  }
  Merged merged;
  merged.num_partials = static_cast<int>(parts.size());
  merged.program = parallel::TreeProgram({0, stripes}, parts);
  for (int64_t unit = 0; unit < count; ++unit) {
    for (size_t r = 0; r < runs.size(); ++r) {
      const float* from = sent[r].data() + unit * sent_parts[r] * width;
      merged.partials.insert(merged.partials.end(), from, from + sent_parts[r] * width);
    }
  }
  return merged;
}

TEST(MergePartials, InTwoStepsGivesTheBitsOfAttentionForEverySplitOfTheStripes) {
  for (const DType type : kAllTypes) {
    Shape shape;
    shape.type = type;
    shape.heads = 3;
    shape.kv_heads = 1;
    shape.dim = 24;
    const Layer layer(shape);
    for (const auto& [name, kernels] : AllKernels()) {
      // Rows whose contexts fill one stripe, three, and all eight twice over.
      for (const int64_t start : {0, 70, 520}) {
        constexpr int64_t kRows = 5;
        const std::vector<int32_t> table = ShuffledBlocks(20, 4);
        Cache cache(*kernels, layer.kv(), 20);
        const int64_t tokens = start + kRows;
        Matrix qkv(DType::kF32, tokens, layer.Cols());
        std::vector<int32_t> positions, slots;
        for (int64_t p = 0; p < tokens; ++p) {
          const std::vector<float> row = layer.Row(0, p);
          for (int64_t j = 0; j < layer.Cols(); ++j) qkv.Set(p, j, row[j]);
          positions.push_back(static_cast<int32_t>(p));
          slots.push_back(
              static_cast<int32_t>(table[p / kBlockTokens] * kBlockTokens + p % kBlockTokens));
        }
        const int64_t q_cols = shape.heads * RoundUp(shape.dim, kDotGroup);
        Matrix q(Activation(shape), tokens, q_cols);
        kernels->QkvToCache(layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view()));
        TensorView last = q.view();
        last.data = static_cast<uint8_t*>(last.data) + start * last.stride * SizeOf(last.dtype);
        last.rows = kRows;
        const std::vector<AttentionSequence> sequences = {{0, kRows, start, table.data()}};
        Matrix expected(Activation(shape), kRows, layer.OutCols());
        AttentionArgs args = layer.Attention(last, cache.view(), sequences, expected.view());
        kernels->Attention(args);
        std::vector<float> partials(kRows * shape.heads * 8 * (2 + shape.dim));
        kernels->AttentionPartials(args, partials.data());
        for (const std::vector<Range>& runs : AllSplits(8)) {
          const Merged merged =
              MergeOnRanks(*kernels, partials, kRows * shape.heads, shape.dim, 8, runs);
          Matrix out(Activation(shape), kRows, layer.OutCols());
          AttentionArgs rest = args;
          rest.out = out.view();
          rest.num_partials = merged.num_partials;
          rest.stripe_program = merged.program;
          kernels->MergeAttention(rest, merged.partials.data());
          ASSERT_EQ(out.Difference(expected), "")
              << name << " " << Name(type) << ", start " << start << ", " << runs.size() << " runs";
          Matrix plain(Activation(shape), kRows, layer.OutCols());
          rest.out = plain.view();
          reference::MergeAttention(rest, merged.partials.data());
          ASSERT_EQ(plain.Difference(expected), "") << "the reference";
        }
      }
    }
  }
}

TEST(MergePartials, EqualsReferenceWithEmptyOperands) {
  Random random(8);
  for (const int64_t d : {1, 16, 40, 129}) {
    for (const int num_in : {1, 2, 5, 8, 24}) {
      constexpr int64_t kCount = 37;
      const int64_t width = 2 + d;
      std::vector<float> partials = random.Floats(kCount * num_in * width, 3.0f);
      for (int64_t i = 0; i < kCount * num_in; ++i) {
        float* p = partials.data() + i * width;
        if (random.Below(3) == 0 || i < num_in) {
          std::memset(p, 0, width * sizeof(float));
          p[0] = -kInfinity;
        }
      }
      // Whole, in runs of subtrees, skewed, and one operand by itself.
      std::vector<std::vector<std::vector<int>>> all = {
          {parallel::LeafProgram({0, num_in}, 0)}, {{num_in - 1}}, {{0}, {num_in - 1}}};
      std::vector<int> skewed = {0};
      for (int i = 1; i < num_in; ++i) {
        skewed.push_back(i);
        skewed.push_back(-1);
      }
      all.push_back({skewed, {0}, skewed});
      std::vector<int> right;
      for (int i = 0; i < num_in; ++i) right.push_back(i);
      right.insert(right.end(), num_in - 1, -1);
      all.push_back({right});
      for (const std::vector<std::vector<int>>& programs : all) {
        std::vector<float> expected(kCount * programs.size() * width);
        reference::MergePartials(partials.data(), kCount, d, num_in, programs, expected.data());
        EXPECT_EQ(expected[0], -kInfinity) << "all operands of unit 0 are empty";
        for (const auto& [name, kernels] : AllKernels()) {
          std::vector<float> out(expected.size());
          kernels->MergePartials(partials.data(), kCount, d, num_in, programs, out.data());
          ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
              << name << ", d " << d << ", " << num_in << " operands";
        }
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
