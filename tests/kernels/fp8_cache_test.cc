// A cache of FP8: attention over it has the bits of attention over a plain cache that holds what a
// plain reference of the quantisation reads back, on every path, prefill and decode, and nothing
// that isn't a number is hidden.
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
#include "kernels/fp8.h"
#include "kernels/kernels.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

// What FP8 makes of one head of one token, written straight from kernels/fp8.h's text.
std::vector<float> ReadBack(std::vector<float> x) {
  double largest = 0;
  for (float& v : x) {
    if (std::abs(v) < std::numeric_limits<float>::min()) v = std::copysign(0.0f, v);
  }
  for (const float v : x) largest = std::max(largest, std::abs(static_cast<double>(v)));
  int s = -117;
  while (s < 119 && largest > std::ldexp(448.0, s)) ++s;
  for (float& v : x) {
    const double quotient = std::ldexp(std::abs(static_cast<double>(v)), -s);
    // Three bits of fraction below the leading one, none below 2^-9.
    int exponent = 0;
    std::frexp(quotient, &exponent);
    const int unit = std::max(exponent - 4, -9);
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(quotient, -unit)), unit);
    v = std::copysign(static_cast<float>(std::ldexp(std::min(rounded, 448.0), s)), v);
  }
  return x;
}

// Rows of qkv whose heads need no norm, bias or rotation, with keys and values of many magnitudes.
class Tokens {
 public:
  Tokens(const Shape& shape, int64_t count) : shape_(shape) {
    Random random(11);
    const int64_t d = shape.dim;
    for (int64_t t = 0; t < count; ++t) {
      std::vector<float> row = random.Floats((shape.heads + 2 * shape.kv_heads) * d);
      for (int64_t head = shape.heads; head < shape.heads + 2 * shape.kv_heads; ++head) {
        float* x = row.data() + head * d;
        const int shift = static_cast<int>((t * 7 + head * 3) % 9) - 5;
        for (int64_t i = 0; i < d; ++i) x[i] = std::ldexp(x[i], shift);
        // Far below the others, and nothing at all.
        x[t % d] *= 0.001f;
        if (t % 13 == 4) std::fill_n(x, d, 0.0f);
        // Where the least scale isn't small enough, and, while a window passes over it, the largest
        // isn't large enough.
        const bool is_value = head >= shape.heads + shape.kv_heads;
        for (int64_t i = 0; is_value && t == 0 && i < d; ++i) x[i] = std::ldexp(x[i], -118);
        for (int64_t i = 0; is_value && t == 1 && shape.window > 0 && i < d; ++i) {
          x[i] = std::copysign(3.3e38f, x[i]);
        }
      }
      rows_.push_back(row);
      for (int64_t head = shape.heads; head < shape.heads + 2 * shape.kv_heads; ++head) {
        const auto x = row.begin() + head * d;
        const std::vector<float> read = ReadBack({x, x + d});
        std::copy(read.begin(), read.end(), x);
      }
      read_back_.push_back(row);
    }
  }
  const Shape& shape() const { return shape_; }
  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  const std::vector<float>& row(int64_t t, bool read_back) const {
    return read_back ? read_back_[t] : rows_[t];
  }

 private:
  Shape shape_;
  std::vector<std::vector<float>> rows_, read_back_;
};

// A prompt of `prompt` tokens in one step, then steps of `chunk` tokens: every output row, then the
// partials of the last step over the stripes [1, stripes).
std::vector<std::vector<float>> RunSteps(Kernels& kernels, const Tokens& tokens,
                                         KvShape cache_shape, int64_t prompt, int64_t chunk,
                                         bool read_back) {
  const Shape& shape = tokens.shape();
  const Layer layer(shape);
  const int64_t count = tokens.count();
  const int64_t blocks = count / kBlockTokens + 1;
  Cache cache(kernels, cache_shape, blocks);
  const std::vector<int32_t> table = ShuffledBlocks(blocks, 6);
  const DType activation = ActivationType(cache_shape.dtype);
  std::vector<std::vector<float>> result;
  int64_t rows = 0;
  for (int64_t start = 0; start < count; start += rows) {
    rows = start == 0 ? prompt : std::min(chunk, count - start);
    Matrix qkv(DType::kF32, rows, layer.Cols());
    std::vector<int32_t> positions, slots;
    for (int64_t i = 0; i < rows; ++i) {
      const std::vector<float>& row = tokens.row(start + i, read_back);
      for (int64_t j = 0; j < layer.Cols(); ++j) qkv.Set(i, j, row[j]);
      const auto position = static_cast<int32_t>(start + i);
      positions.push_back(position);
      slots.push_back(table[position / kBlockTokens] * static_cast<int32_t>(kBlockTokens) +
                      position % static_cast<int32_t>(kBlockTokens));
    }
    Matrix q(activation, rows, shape.heads * RoundUp(shape.dim, kDotGroup));
    Matrix out(activation, rows, layer.OutCols());
    QkvArgs args = layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view());
    args.rotary_dim = 0;
    kernels.QkvToCache(args);
    const std::vector<AttentionSequence> sequences = {{0, rows, start, table.data()}};
    AttentionArgs attention = layer.Attention(q.view(), cache.view(), sequences, out.view());
    kernels.Attention(attention);
    for (int64_t i = 0; i < rows; ++i) {
      result.emplace_back();
      for (int64_t j = 0; j < layer.OutCols(); ++j) result.back().push_back(out.Get(i, j));
    }
    if (start + rows < count || shape.stripes == 1) continue;
    attention.stripe_begin = 1;
    std::vector<float> partials(rows * shape.heads * (shape.stripes - 1) * (2 + shape.dim));
    kernels.AttentionPartials(attention, partials.data());
    result.push_back(std::move(partials));
  }
  return result;
}

std::vector<Shape> Fp8Shapes() {
  std::vector<Shape> shapes;
  for (const DType type : kAllTypes) {
    shapes.push_back({.type = type});
    shapes.push_back({.type = type, .heads = 7, .kv_heads = 1, .dim = 80, .window = 37});
    shapes.push_back({.type = type, .heads = 2, .kv_heads = 2, .dim = 20, .stripes = 3});
    shapes.push_back({.type = type, .heads = 3, .kv_heads = 1, .dim = 128, .stripes = 1});
    shapes.push_back({.type = type, .heads = 1, .kv_heads = 1, .dim = 200, .window = 100});
  }
  return shapes;
}

TEST(Fp8Cache, AttendsWithTheBitsOfAPlainCacheOfTheSameValues) {
  struct Steps {
    int64_t prompt;
    int64_t chunk;
  };
  for (const Shape& large : Fp8Shapes()) {
    for (const KernelSet& set : KernelSets()) {
      Shape shape = large;
      const auto kernels = set.make(2);
      const bool small = set.size == TestSize::kSmall;
      // More than one block of every stripe.
      if (small) shape.stripes = std::min(shape.stripes, 3);
      const int64_t last = shape.stripes * kBlockTokens + 40;
      const Tokens tokens(shape, last + 1);
      const KvShape fp8 = {shape.type, shape.kv_heads, shape.dim, KvFormat::kF8E4M3};
      const KvShape plain = {fp8.read_type(), shape.kv_heads, shape.dim};
      // By rows of queries: all at once; some; then one.
      using Cases = std::vector<Steps>;
      for (const Steps steps :
           small ? Cases{{last + 1, 1}, {last - 6, 4}, {last, 1}}
                 : Cases{{last + 1, 1}, {40, 40}, {last - 15, 5}, {last - 11, 1}}) {
        const auto expected =
            RunSteps(*kernels, tokens, plain, steps.prompt, steps.chunk, /*read_back=*/true);
        const auto found =
            RunSteps(*kernels, tokens, fp8, steps.prompt, steps.chunk, /*read_back=*/false);
        ASSERT_EQ(found.size(), expected.size());
        for (size_t i = 0; i < found.size(); ++i) {
          ASSERT_EQ(found[i].size(), expected[i].size());
          ASSERT_EQ(
              std::memcmp(found[i].data(), expected[i].data(), found[i].size() * sizeof(float)), 0)
              << set.name << " " << Describe(shape) << " prompt of " << steps.prompt << ", row "
              << i;
        }
      }
    }
  }
}

// Every path and device writes the reference's bytes, whatever the numbers.
TEST(Fp8Cache, HoldsTheReferencesCodesAndScalesAtTheEdgesOfTheFormats) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::min();
  const float denormal = std::nextafter(kLeast, 0.0f);
  const float above = std::nextafter(448.0f, 500.0f);
  // Heads of 16.
  const std::vector<std::vector<float>> heads = {
      {0.0f, -0.0f},
      {denormal, -denormal, kLeast, -kLeast},
      {kMost, -kMost, kMost / 2, 1.0f, kLeast},
      {448.0f, -447.9f, 432.0f, 431.9f, 0.0009765625f, 0.0009766f, 0.015624f, 0.015625f, -1e-9f},
      {above, 224.0f, -0.002f, 0.0019531250f, 0.0029296875f, 0.0048828125f, denormal},
      {464.0f, 463.9f, 17.0f, 19.0f, 17.00001f, -18.999f, 0.0625f},
      {1.0f, std::numeric_limits<float>::infinity()},
      {-std::numeric_limits<float>::quiet_NaN(), 2.0f},
  };
  Shape shape;
  shape.type = DType::kF32;  // of which every device has one layout
  shape.heads = shape.kv_heads = 1;
  shape.dim = 16;
  shape.format = KvFormat::kF8E4M3;
  const Layer layer(shape);
  const auto rows = static_cast<int64_t>(heads.size());
  Matrix qkv(DType::kF32, rows, layer.Cols());
  std::vector<int32_t> positions(rows, 0), slots;
  for (int64_t row = 0; row < rows; ++row) {
    slots.push_back(static_cast<int32_t>(row));
    const std::vector<float>& key = heads[row];
    const std::vector<float>& value = heads[rows - 1 - row];
    for (size_t i = 0; i < key.size(); ++i) qkv.Set(row, 16 + static_cast<int64_t>(i), key[i]);
    for (size_t i = 0; i < value.size(); ++i) qkv.Set(row, 32 + static_cast<int64_t>(i), value[i]);
  }
  const auto plain = CreateCpuKernels({});
  ASSERT_TRUE(plain.ok());
  Matrix q(DType::kF32, rows, 32);
  Cache expected(**plain, layer.kv(), 1);
  QkvArgs args = layer.Qkv(qkv.view(), positions, slots, expected.view(), q.view());
  args.rotary_dim = 0;
  reference::QkvToCache(args);
  for (const auto& [name, kernels] : AllKernels()) {
    Cache cache(*kernels, layer.kv(), 1);
    args.cache = cache.view();
    kernels->QkvToCache(args);
    EXPECT_TRUE(cache == expected) << name;
  }
}

TEST(Fp8Cache, TakesTwoThirdsOfABf16CacheOrLessAndHalfWhereHeadsAreWide) {
  for (const auto& [name, kernels] : AllKernels()) {
    const auto bytes = [&, &ops = kernels](int64_t d, KvFormat format) {
      return static_cast<double>(ops->KvBlockBytes({DType::kBF16, 8, d, format}));
    };
    EXPECT_LE(bytes(20, KvFormat::kF8E4M3) / bytes(20, KvFormat::kPlain), 0.67) << name;
    EXPECT_LE(bytes(128, KvFormat::kF8E4M3) / bytes(128, KvFormat::kPlain), 0.51) << name;
    for (const DType type : kAllTypes) {
      for (const int64_t d : {1, 20, 33, 80, 128}) {
        EXPECT_EQ(kernels->KvBlockBytes({type, 3, d, KvFormat::kF8E4M3}) % 64, 0)
            << name << " head_dim " << d;
      }
    }
  }
}

// A key or a value that is no number makes its token's head NaN, and so what attends to it.
TEST(Fp8Cache, HidesNoNumberThatIsntOne) {
  for (const DType type : kAllTypes) {
    Shape shape;
    shape.type = type;
    shape.heads = 2;
    shape.kv_heads = 2;
    shape.dim = 40;
    shape.format = KvFormat::kF8E4M3;
    const Layer layer(shape);
    for (const auto& [name, kernels] : AllKernels()) {
      for (const float fault :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
            std::numeric_limits<float>::quiet_NaN()}) {
        for (const int64_t column : {2 * 40 + 7, 4 * 40 + 39}) {  // head 0's key, head 0's value
          Cache cache(*kernels, layer.kv(), 1);
          constexpr int64_t kRows = 6;
          Matrix qkv(DType::kF32, kRows, layer.Cols());
          std::vector<int32_t> positions, slots;
          for (int32_t i = 0; i < kRows; ++i) {
            const std::vector<float> row = layer.Row(0, i);
            for (int64_t j = 0; j < layer.Cols(); ++j) qkv.Set(i, j, row[j]);
            positions.push_back(i);
            slots.push_back(i);
          }
          qkv.Set(3, column, fault);
          Matrix q(ActivationType(type), kRows, shape.heads * RoundUp(shape.dim, kDotGroup));
          Matrix out(ActivationType(type), kRows, layer.OutCols());
          QkvArgs args = layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view());
          args.rotary_dim = 0;
          kernels->QkvToCache(args);
          const int32_t table = 0;
          const std::vector<AttentionSequence> sequences = {{0, kRows, 0, &table}};
          kernels->Attention(layer.Attention(q.view(), cache.view(), sequences, out.view()));
          // Layer::Attention puts head 1 at column 3, head 0 after it.
          for (int64_t row = 3; row < kRows; ++row) {
            for (int64_t j = 0; j < shape.dim; ++j) {
              EXPECT_TRUE(std::isnan(out.Get(row, 3 + shape.dim + j)))
                  << name << " " << Name(type) << " row " << row;
              EXPECT_FALSE(std::isnan(out.Get(row, 3 + j))) << name << " row " << row;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels
