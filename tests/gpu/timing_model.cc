#include "tests/gpu/timing_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/types/span.h"
#include "kernels/check.h"
#include "parallel/leaves.h"

namespace phalanx::timing {
namespace {

using kernels::DType;
using kernels::kBlockTokens;
using kernels::TensorView;

constexpr int kLeaves = 8;
constexpr int kStripes = 8;
constexpr float kEps = 1e-5f;

std::vector<int> Tree(int count) { return parallel::LeafProgram({0, count}, 0); }

// Columns of the queries, each head's padded.
int64_t QueryWidth(const checkpoint::ModelConfig& shape) {
  return shape.num_heads * kernels::RoundUp(shape.head_dim, kernels::kDotGroup);
}

int64_t BlocksOf(const StepShape& step) {
  return (step.past + step.rows + kBlockTokens - 1) / kBlockTokens;
}

}  // namespace

TimingModel::TimingModel(kernels::Kernels& kernels, const checkpoint::ModelConfig& shape,
                         int64_t max_rows, int64_t max_tokens)
    : kernels_(kernels), shape_(shape), stripe_program_(Tree(kStripes)) {
  PHALANX_CHECK(shape.num_experts == 0) << shape.architecture << " has experts";
  const int64_t h = shape.hidden_size;
  const int64_t q_width = shape.num_heads * shape.head_dim;
  const int64_t qkv_width = q_width + 2 * shape.num_kv_heads * shape.head_dim;
  const int64_t widest =
      std::max({shape.vocab_size * h, 2 * shape.intermediate_size * h, qkv_width * h});
  // Around 2^-6, either sign: sums of thousands of products stay small.
  random_.resize(static_cast<size_t>(widest));
  uint64_t state = 88172645463325252u;
  for (uint16_t& value : random_) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = static_cast<uint16_t>((state & 0x8000u) | (119u << 7) | (state >> 20 & 0x7fu));
  }
  num_blocks_ = max_tokens / kBlockTokens + 1;
  kernels::KvShape kv = {DType::kBF16, shape.num_kv_heads, shape.head_dim};
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    Layer& layer = layers_.emplace_back();
    layer.qkv = MakeWeight(qkv_width, h, 1);
    layer.o = MakeWeight(h, q_width, kLeaves);
    layer.gate_up = MakeWeight(2 * shape.intermediate_size, h, 1);
    layer.down = MakeWeight(h, shape.intermediate_size, kLeaves);
    // A block of BF16 is values alone, whatever their order.
    layer.kv = AllocateRandom(num_blocks_ * kernels_.KvBlockBytes(kv));
  }
  head_ = MakeWeight(shape.vocab_size, h, 1);
  norm_weight_ = Allocate(h * 4);
  const std::vector<float> ones(h, 1.0f);
  kernels_.CopyIn(norm_weight_.data(), ones.data(), h * 4);
  const int64_t half = shape.head_dim / 2;
  std::vector<float> cosines(max_tokens * half), sines(max_tokens * half);
  for (int64_t p = 0; p < max_tokens; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) *
                           std::pow(500000.0, -static_cast<double>(i) / static_cast<double>(half));
      cosines[p * half + i] = static_cast<float>(std::cos(angle));
      sines[p * half + i] = static_cast<float>(std::sin(angle));
    }
  }
  cos_ = Allocate(max_tokens * half * 4);
  sin_ = Allocate(max_tokens * half * 4);
  kernels_.CopyIn(cos_.data(), cosines.data(), max_tokens * half * 4);
  kernels_.CopyIn(sin_.data(), sines.data(), max_tokens * half * 4);
  // Pairs of BF16 numbers are F32 numbers of the same size.
  x_ = AllocateRandom(max_rows * h * 4);
  normed_ = AllocateRandom(max_rows * h * 2);
  qkv_ = AllocateRandom(max_rows * qkv_width * 4);
  q_ = AllocateRandom(max_rows * QueryWidth(shape) * 2);
  attended_ = AllocateRandom(max_rows * q_width * 2);
  delta_ = AllocateRandom(max_rows * h * 4);
  gate_up_ = AllocateRandom(max_rows * 2 * shape.intermediate_size * 4);
  act_ = AllocateRandom(max_rows * shape.intermediate_size * 2);
  logits_ = AllocateRandom(kMaxSequences * shape.vocab_size * 4);
  chosen_ = Allocate(kMaxSequences * static_cast<int64_t>(sizeof(kernels::Choice)));
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    kv_head_of_.push_back(static_cast<int32_t>(head * shape.num_kv_heads / shape.num_heads));
    out_column_.push_back(static_cast<int32_t>(head * shape.head_dim));
  }
}

kernels::Buffer TimingModel::Allocate(int64_t bytes) {
  absl::StatusOr<kernels::Buffer> buffer = kernels_.Allocate(bytes);
  PHALANX_CHECK(buffer.ok()) << buffer.status().message();
  return *std::move(buffer);
}

kernels::Buffer TimingModel::AllocateRandom(int64_t bytes) {
  kernels::Buffer buffer = Allocate(bytes);
  const auto most = static_cast<int64_t>(random_.size() * sizeof(random_[0]));
  for (int64_t done = 0; done < bytes; done += most) {
    kernels_.CopyIn(buffer.as<char>() + done, random_.data(), std::min(most, bytes - done));
  }
  return buffer;
}

TimingModel::Weight TimingModel::MakeWeight(int64_t n, int64_t k, int leaves) {
  kernels::WeightSpec spec;
  spec.dtype = DType::kBF16;
  spec.rows = {{random_.data(), n, k}};
  for (int i = 0; i < leaves; ++i) {
    spec.leaves.push_back({i * k / leaves / 32 * 32, (i + 1) * k / leaves / 32 * 32});
  }
  spec.parts = {Tree(leaves)};
  absl::StatusOr<Weight> weight = kernels_.Pack(spec);
  PHALANX_CHECK(weight.ok()) << weight.status().message();
  return *std::move(weight);
}

kernels::KvView TimingModel::Cache(const Layer& layer) const {
  return {{DType::kBF16, shape_.num_kv_heads, shape_.head_dim}, layer.kv.data(), num_blocks_};
}

TensorView TimingModel::View(const kernels::Buffer& buffer, DType type, int64_t rows,
                             int64_t cols) const {
  return {buffer.data(), type, rows, cols, cols};
}

void TimingModel::SetStep(const StepShape& step) {
  rows_ = step.sequences * step.rows;
  const int64_t blocks = BlocksOf(step);
  PHALANX_CHECK(blocks * step.sequences <= num_blocks_)
      << blocks * step.sequences << " blocks of " << num_blocks_;
  PHALANX_CHECK(step.sequences <= kMaxSequences) << step.sequences << " sequences";
  positions_.clear();
  slots_.clear();
  sequences_.clear();
  samples_.clear();
  blocks_.resize(blocks * step.sequences);
  // Neighbours in a sequence are none in memory.
  for (int64_t s = 0; s < step.sequences; ++s) {
    for (int64_t b = 0; b < blocks; ++b) {
      blocks_[s * blocks + b] = static_cast<int32_t>(b * step.sequences + s);
    }
  }
  for (int64_t s = 0; s < step.sequences; ++s) {
    sequences_.push_back({s * step.rows, step.rows, step.past, &blocks_[s * blocks]});
    for (int64_t i = 0; i < step.rows; ++i) {
      const int64_t position = step.past + i;
      positions_.push_back(static_cast<int32_t>(position));
      slots_.push_back(static_cast<int32_t>(
          blocks_[s * blocks + position / kBlockTokens] * kBlockTokens + position % kBlockTokens));
    }
    samples_.emplace_back().row = s;
  }
}

void TimingModel::Qkv(const Layer& layer) {
  kernels::QkvArgs args;
  args.qkv = View(qkv_, DType::kF32, rows_, layer.qkv->n());
  args.num_heads = shape_.num_heads;
  args.cos = cos_.as<float>();
  args.sin = sin_.as<float>();
  args.rotary_dim = shape_.head_dim;
  args.positions = positions_;
  args.slots = slots_;
  args.cache = Cache(layer);
  args.q = View(q_, DType::kBF16, rows_, QueryWidth(shape_));
  kernels_.QkvToCache(args);
}

void TimingModel::Attend(const Layer& layer) {
  const int64_t q_width = shape_.num_heads * shape_.head_dim;
  kernels::AttentionArgs args;
  args.q = View(q_, DType::kBF16, rows_, QueryWidth(shape_));
  args.num_heads = shape_.num_heads;
  args.kv_head_of = kv_head_of_;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)));
  args.cache = Cache(layer);
  args.sequences = sequences_;
  args.num_stripes = kStripes;
  args.stripe_end = kStripes;
  args.stripe_program = stripe_program_;
  args.out_column = out_column_;
  args.out = View(attended_, DType::kBF16, rows_, q_width);
  kernels_.Attention(args);
}

void TimingModel::EachOp(const StepShape& step,
                         const std::function<void(const std::string&, int64_t, int64_t,
                                                  const std::function<void()>&)>& measure) {
  SetStep(step);
  const int64_t h = shape_.hidden_size;
  const int64_t m = rows_;
  const TensorView x = View(x_, DType::kF32, m, h);
  const TensorView normed = View(normed_, DType::kBF16, m, h);
  const TensorView delta = View(delta_, DType::kF32, m, h);
  // Weights of one layer after the other, lest what is small should stay in the L2 cache.
  size_t turn = 0;
  const auto next = [&]() -> const Layer& { return layers_[turn++ % layers_.size()]; };
  const auto product = [&](const char* name, Weight Layer::*weight, const kernels::Buffer& in,
                           const kernels::Buffer& out) {
    const kernels::PackedWeight& w = *(layers_[0].*weight);
    const int64_t bytes = w.bytes() + m * (w.k() * 2 + w.n() * 4);
    measure(name, bytes, 2 * m * w.n() * w.k(), [&, weight] {
      const kernels::PackedWeight& other = *(next().*weight);
      const TensorView result = View(out, DType::kF32, m, other.n());
      kernels_.MatMul(View(in, DType::kBF16, m, other.k()), other, {&result, 1});
    });
  };
  measure("add_residual_rms_norm", m * h * 14, 0, [&] {
    kernels_.AddResidualRmsNorm(x, delta, nullptr, norm_weight_.as<float>(), kEps, normed);
  });
  product("matmul_qkv", &Layer::qkv, normed_, qkv_);
  measure("qkv_to_cache", m * layers_[0].qkv->n() * 6, 0, [&] { Qkv(next()); });
  measure("attention",
          step.sequences * BlocksOf(step) * kernels_.KvBlockBytes(Cache(layers_[0]).shape),
          4 * shape_.num_heads * shape_.head_dim * step.sequences *
              (step.rows * step.past + step.rows * (step.rows + 1) / 2),
          [&] { Attend(next()); });
  product("matmul_o", &Layer::o, attended_, delta_);
  product("matmul_gate_up", &Layer::gate_up, normed_, gate_up_);
  const int64_t channels = shape_.intermediate_size;
  const TensorView gate_up = View(gate_up_, DType::kF32, m, 2 * channels);
  const TensorView act = View(act_, DType::kBF16, m, channels);
  measure("silu_mul", m * channels * 10, 0,
          [&] { kernels_.SiluMul(gate_up, nullptr, channels, act); });
  // What a step runs: the two above, or less.
  measure("matmul_silu_mul", layers_[0].gate_up->bytes() + m * (h + channels) * 2,
          4 * m * channels * h, [&] {
            kernels_.MatMulSiluMul(View(normed_, DType::kBF16, m, h), *next().gate_up, gate_up,
                                   nullptr, channels, act);
          });
  product("matmul_down", &Layer::down, act_, delta_);
  const int64_t count = step.sequences;
  const TensorView logits = View(logits_, DType::kF32, count, shape_.vocab_size);
  measure("matmul_head", head_->bytes() + count * (h * 2 + shape_.vocab_size * 4),
          2 * count * h * shape_.vocab_size, [&] {
            kernels_.MatMul(View(normed_, DType::kBF16, count, h), *head_, {&logits, 1});
          });
  measure("choose", count * shape_.vocab_size * 4, 0,
          [&] { kernels_.ChooseRows(logits, samples_, chosen_.as<kernels::Choice>()); });
  std::vector<kernels::ChoiceRow> cut = samples_;
  for (kernels::ChoiceRow& row : cut) {
    row.temperature = 0.8f;
    row.top_p = 0.95f;
  }
  measure("choose_top_p", count * shape_.vocab_size * 4, 0,
          [&] { kernels_.ChooseRows(logits, cut, chosen_.as<kernels::Choice>()); });
}

}  // namespace phalanx::timing
