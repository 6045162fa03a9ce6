// Shared by the tests of attention: random layers, their caches, and shapes to try.
#ifndef PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_
#define PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

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

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_ATTENTION_TESTING_H_
