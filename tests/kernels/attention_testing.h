// Shared by the tests of attention: random layers, their caches, and shapes to try.
#ifndef PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_
#define PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "kernels/rope.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {

// The reduction tree over [a, b) as a postfix program: split at the largest power of two below.
inline void AppendTree(int a, int b, std::vector<int>& program) {
  if (b - a == 1) {
    program.push_back(a);
    return;
  }
  int split = 1;
  while (split * 2 < b - a) split *= 2;
  AppendTree(a, a + split, program);
  AppendTree(a + split, b, program);
  program.push_back(-1);
}

struct Shape {
  DType type = DType::kBF16;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t dim = 64;
  int64_t window = 0;
  int stripes = 8;
  bool norm = false;
  bool bias = false;
  int64_t rotary = 0;  // 0: dim
  KvFormat format = KvFormat::kPlain;
};

inline DType Activation(const Shape& shape) { return ActivationType(shape.type); }

// One layer of a model: weights of the op and a source of each token's qkv row.
class Layer {
 public:
  explicit Layer(const Shape& shape, uint32_t seed = 5) : shape_(shape), seed_(seed) {
    Random random(seed);
    const int64_t cols = Cols();
    bias_ = random.Floats(cols);
    q_norm_ = random.Floats(shape.dim);
    k_norm_ = random.Floats(shape.dim);
    std::vector<float> inv_freq;
    const int64_t rotary = Rotary();
    for (int64_t i = 0; i < rotary / 2; ++i) {
      inv_freq.push_back(static_cast<float>(PowDouble(10000.0, -2.0 * i / rotary)));
    }
    rope_ = BuildRopeTables(inv_freq, 4096, 1.0f);
    for (int64_t h = 0; h < shape.heads; ++h) {
      kv_head_of_.push_back(static_cast<int32_t>(h * shape.kv_heads / shape.heads));
      out_column_.push_back(static_cast<int32_t>((shape.heads - 1 - h) * shape.dim + 3));
    }
    AppendTree(0, shape.stripes, program_);
  }

  const Shape& shape() const { return shape_; }
  int64_t Cols() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.dim; }
  int64_t Rotary() const { return shape_.rotary > 0 ? shape_.rotary : shape_.dim; }
  int64_t OutCols() const { return shape_.heads * shape_.dim + 5; }
  KvShape kv() const { return {shape_.type, shape_.kv_heads, shape_.dim, shape_.format}; }

  // The qkv row of a sequence's token: depends on (sequence, position) alone.
  std::vector<float> Row(int sequence, int64_t position) const {
    Random random(seed_ * 7919 + static_cast<uint32_t>(sequence * 100003 + position));
    return random.Floats(Cols(), 1.5f);
  }

  QkvArgs Qkv(TensorView qkv, absl::Span<const int32_t> positions, absl::Span<const int32_t> slots,
              const KvView& cache, TensorView q) const {
    QkvArgs args;
    args.qkv = qkv;
    args.bias = shape_.bias ? bias_.data() : nullptr;
    args.q_norm = shape_.norm ? q_norm_.data() : nullptr;
    args.k_norm = shape_.norm ? k_norm_.data() : nullptr;
    args.norm_eps = 1e-6f;
    args.num_heads = shape_.heads;
    args.cos = rope_.cos.data();
    args.sin = rope_.sin.data();
    args.rotary_dim = Rotary();
    args.positions = positions;
    args.slots = slots;
    args.cache = cache;
    args.q = q;
    return args;
  }

  AttentionArgs Attention(TensorView q, const KvView& cache,
                          absl::Span<const AttentionSequence> sequences, TensorView out) const {
    AttentionArgs args;
    args.q = q;
    args.num_heads = shape_.heads;
    args.kv_head_of = kv_head_of_;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim));
    args.window = shape_.window;
    args.cache = cache;
    args.sequences = sequences;
    args.num_stripes = shape_.stripes;
    args.stripe_begin = 0;
    args.stripe_end = shape_.stripes;
    args.stripe_program = program_;
    args.out_column = out_column_;
    args.out = out;
    return args;
  }

 private:
  Shape shape_;
  uint32_t seed_;
  std::vector<float> bias_, q_norm_, k_norm_;
  RopeTables rope_;
  std::vector<int32_t> kv_head_of_, out_column_;
  std::vector<int> program_;
};

// A cache whose every byte is 0xFF at first: NaN in all three dtypes and in FP8.
class Cache {
 public:
  Cache(Kernels& kernels, const KvShape& shape, int64_t blocks)
      : buffer_(*kernels.Allocate(blocks * kernels.KvBlockBytes(shape))),
        shape_(shape),
        blocks_(blocks) {
    std::memset(buffer_.data(), 0xFF, buffer_.bytes());
  }
  KvView view() const { return {shape_, buffer_.data(), blocks_}; }
  bool operator==(const Cache& other) const {
    return buffer_.bytes() == other.buffer_.bytes() &&
           std::memcmp(buffer_.data(), other.buffer_.data(), buffer_.bytes()) == 0;
  }

 private:
  Buffer buffer_;
  KvShape shape_;
  int64_t blocks_;
};

inline std::vector<int32_t> ShuffledBlocks(int64_t count, uint32_t seed) {
  std::vector<int32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0);
  Random random(seed);
  std::shuffle(blocks.begin(), blocks.end(), random.engine());
  return blocks;
}

inline std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const DType type : kAllTypes) {
    shapes.push_back({.type = type});
    shapes.push_back({.type = type, .heads = 3, .kv_heads = 3, .dim = 8, .stripes = 3});
    shapes.push_back({.type = type,
                      .heads = 7,
                      .kv_heads = 1,
                      .dim = 80,
                      .window = 37,
                      .norm = true,
                      .bias = true,
                      .rotary = 40});
    shapes.push_back({.type = type,
                      .heads = 2,
                      .kv_heads = 1,
                      .dim = 128,
                      .window = 1,
                      .stripes = 1,
                      .bias = true});
    shapes.push_back({.type = type,
                      .heads = 5,
                      .kv_heads = 5,
                      .dim = 20,
                      .window = 70,
                      .stripes = 24,
                      .norm = true});
    shapes.push_back({.type = type, .window = 70, .format = KvFormat::kF8E4M3});
    shapes.push_back({.type = type,
                      .heads = 3,
                      .kv_heads = 1,
                      .dim = 20,
                      .stripes = 3,
                      .bias = true,
                      .format = KvFormat::kF8E4M3});
  }
  return shapes;
}

inline std::string Describe(const Shape& s) {
  return std::string(Name(s.type)) + (s.format == KvFormat::kF8E4M3 ? " in FP8" : "") + " heads " +
         std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " dim " +
         std::to_string(s.dim) + " window " + std::to_string(s.window);
}

// Some tokens of one sequence in a step.
struct Chunk {
  int sequence;
  int64_t start;
  int64_t count;
};

// Runs steps of chunks, with one cache and fixed block tables, and collects output rows.
class Session {
 public:
  // `tables[s]`: physical block of each block of sequence s.
  Session(Kernels& kernels, const Layer& layer, std::vector<std::vector<int32_t>> tables,
          int64_t blocks)
      : kernels_(kernels),
        layer_(layer),
        tables_(std::move(tables)),
        cache_(kernels, layer.kv(), blocks) {}

  // Output rows of the step in order, each OutCols() values. `reference`: by the plain reference.
  std::vector<std::vector<float>> Step(const std::vector<Chunk>& chunks, bool reference = false,
                                       int ranks = 1) {
    int64_t rows = 0;
    for (const Chunk& chunk : chunks) rows += chunk.count;
    Matrix qkv(DType::kF32, rows, layer_.Cols());
    std::vector<int32_t> positions, slots;
    std::vector<AttentionSequence> sequences;
    int64_t row = 0;
    for (const Chunk& chunk : chunks) {
      sequences.push_back({row, chunk.count, chunk.start, tables_[chunk.sequence].data()});
      for (int64_t p = chunk.start; p < chunk.start + chunk.count; ++p, ++row) {
        const std::vector<float> values = layer_.Row(chunk.sequence, p);
        const int64_t first_value =
            (layer_.shape().heads + layer_.shape().kv_heads) * layer_.shape().dim;
        const Factors factors = factors_(p);
        for (int64_t j = 0; j < layer_.Cols(); ++j) {
          qkv.Set(row, j, (j < first_value ? factors.query_key : factors.value) * values[j]);
        }
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(static_cast<int32_t>(
            tables_[chunk.sequence][p / kBlockTokens] * kBlockTokens + p % kBlockTokens));
      }
    }
    const Shape& shape = layer_.shape();
    Matrix q(Activation(shape), rows, shape.heads * RoundUp(shape.dim, kDotGroup));
    Matrix out(Activation(shape), rows, layer_.OutCols());
    const QkvArgs qkv_args = layer_.Qkv(qkv.view(), positions, slots, cache_.view(), q.view());
    const AttentionArgs args = layer_.Attention(q.view(), cache_.view(), sequences, out.view());
    if (reference) {
      reference::QkvToCache(qkv_args);
      reference::Attention(args);
    } else {
      kernels_.QkvToCache(qkv_args);
      if (ranks == 1) {
        kernels_.Attention(args);
      } else {
        AttendOnRanks(args, ranks);
      }
    }
    std::vector<std::vector<float>> result(rows);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layer_.OutCols(); ++j) result[i].push_back(out.Get(i, j));
    }
    return result;
  }

  // What a token at a position is multiplied by from now on.
  struct Factors {
    float query_key = 1;
    float value = 1;
  };
  void set_factors(std::function<Factors(int64_t)> factors) { factors_ = std::move(factors); }

  Cache& cache() { return cache_; }
  const std::vector<int32_t>& table(int sequence) const { return tables_[sequence]; }

 private:
  // As `ranks` sequence-parallel ranks do: partials of a run of stripes each, brought together.
  void AttendOnRanks(const AttentionArgs& args, int ranks) {
    const int64_t width = 2 + args.cache.shape.head_dim;
    const int64_t units = args.q.rows * args.num_heads;
    std::vector<float> all(units * args.num_stripes * width, -123.0f);
    for (int rank = 0; rank < ranks; ++rank) {
      AttentionArgs mine = args;
      mine.stripe_begin = rank * args.num_stripes / ranks;
      mine.stripe_end = (rank + 1) * args.num_stripes / ranks;
      const int64_t stripes = mine.stripe_end - mine.stripe_begin;
      // Blocks of other ranks aren't here.
      std::vector<std::vector<int32_t>> tables;
      std::vector<AttentionSequence> sequences(args.sequences.begin(), args.sequences.end());
      for (AttentionSequence& sequence : sequences) {
        const int64_t blocks =
            RoundUp(sequence.start + sequence.row_count, kBlockTokens) / kBlockTokens;
        std::vector<int32_t> table(sequence.block_table, sequence.block_table + blocks);
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t stripe = b % args.num_stripes;
          if (stripe < mine.stripe_begin || stripe >= mine.stripe_end) table[b] = -1;
        }
        tables.push_back(std::move(table));
      }
      for (size_t s = 0; s < sequences.size(); ++s) sequences[s].block_table = tables[s].data();
      mine.sequences = sequences;
      std::vector<float> partials(units * stripes * width + 1, -321.0f);
      kernels_.AttentionPartials(mine, partials.data());
      EXPECT_EQ(partials.back(), -321.0f);
      for (int64_t unit = 0; unit < units; ++unit) {
        std::copy_n(partials.data() + unit * stripes * width, stripes * width,
                    all.data() + (unit * args.num_stripes + mine.stripe_begin) * width);
      }
    }
    kernels_.MergeAttention(args, all.data());
  }

  Kernels& kernels_;
  const Layer& layer_;
  std::vector<std::vector<int32_t>> tables_;
  std::function<Factors(int64_t)> factors_ = [](int64_t) { return Factors(); };
  Cache cache_;
};

inline void ExpectSameBits(const std::vector<std::vector<float>>& a,
                           const std::vector<std::vector<float>>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size()) << what;
    ASSERT_EQ(std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)), 0)
        << what << ", row " << i;
  }
}

// Within two units in the last place of BF16.
inline void ExpectClose(const std::vector<std::vector<float>>& rows,
                        const std::vector<std::vector<float>>& expected, const std::string& what) {
  ASSERT_EQ(rows.size(), expected.size()) << what;
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(rows[i].size(), expected[i].size()) << what;
    for (size_t j = 0; j < rows[i].size(); ++j) {
      ASSERT_NEAR(rows[i][j], expected[i][j], 0.01 + std::abs(expected[i][j]) / 64)
          << what << ", row " << i << ", column " << j;
    }
  }
}

// Against the reference: by bits, or closely where a device adds BF16 products in an order of its
// own.
inline void ExpectReference(DType type, const std::vector<std::vector<float>>& rows,
                            const std::vector<std::vector<float>>& expected,
                            const std::string& what) {
  if (HasCpuBits(type)) {
    ExpectSameBits(rows, expected, what);
  } else {
    ExpectClose(rows, expected, what);
  }
}

// Attention of 300 tokens, each row against softmax(q k / sqrt(d)) v in double, from unrounded
// inputs. One KV head, rotary over the whole head, neither norms nor biases.
inline void ExpectFormula(Kernels& kernels, const Shape& shape, double tolerance) {
  constexpr int64_t kTokens = 300;
  const int64_t d = shape.dim;
  const int64_t keys = shape.heads * d;
  const int64_t values = keys + d;
  const Layer layer(shape);
  Session session(kernels, layer, {ShuffledBlocks(10, 1)}, 10);
  const auto out = session.Step({{0, 0, kTokens}});
  std::vector<std::vector<double>> rows;  // rotated q and k, and v
  for (int64_t p = 0; p < kTokens; ++p) {
    const std::vector<float> row = layer.Row(0, p);
    std::vector<double> x(row.begin(), row.end());
    for (int64_t head = 0; head <= shape.heads; ++head) {
      for (int64_t i = 0; i < d / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * i / d);
        double& a = x[head * d + i];
        double& b = x[head * d + i + d / 2];
        const double a0 = a, b0 = b;
        a = a0 * std::cos(angle) - b0 * std::sin(angle);
        b = b0 * std::cos(angle) + a0 * std::sin(angle);
      }
    }
    rows.push_back(x);
  }
  for (int64_t p = 0; p < kTokens; ++p) {
    const int64_t first = shape.window > 0 ? std::max<int64_t>(0, p - shape.window + 1) : 0;
    for (int64_t head = 0; head < shape.heads; ++head) {
      double sum = 0;
      std::vector<double> expected(d, 0.0);
      for (int64_t t = first; t <= p; ++t) {
        double score = 0;
        for (int64_t i = 0; i < d; ++i) score += rows[p][head * d + i] * rows[t][keys + i];
        const double weight = std::exp(score / std::sqrt(static_cast<double>(d)));
        sum += weight;
        for (int64_t i = 0; i < d; ++i) expected[i] += weight * rows[t][values + i];
      }
      for (int64_t i = 0; i < d; ++i) {
        ASSERT_NEAR(out[p][(shape.heads - 1 - head) * d + 3 + i], expected[i] / sum, tolerance)
            << Describe(shape) << " position " << p;
      }
    }
    EXPECT_EQ(out[p][0], 0.0f) << "a column of no head";
    EXPECT_EQ(out[p].back(), 0.0f);
  }
}

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_
