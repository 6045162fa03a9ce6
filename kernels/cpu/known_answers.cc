// Fixed inputs through every op, digested (R6 of the design). Nothing here depends on the number of
// threads, the instruction set or libm.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/check.h"
#include "kernels/fp8.h"
#include "kernels/kernels.h"
#include "kernels/rope.h"
#include "kernels/scalar_math.h"

namespace phalanx::kernels {
namespace {

// FNV-1a of 64 bits (RFC draft-eastlake-fnv), twice from different offsets.
class Digest {
 public:
  void Add(const void* data, size_t bytes) {
    const auto* p = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < bytes; ++i) {
      low_ = (low_ ^ p[i]) * kPrime;
      high_ = (high_ ^ static_cast<uint8_t>(p[i] + 0x5b)) * kPrime;
    }
  }
  std::string Hex() const {
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(high_),
                  static_cast<unsigned long long>(low_));
    return text;
  }

 private:
  static constexpr uint64_t kPrime = 0x100000001b3;
  uint64_t low_ = 0xcbf29ce484222325;
  uint64_t high_ = 0x6c62272e07bb0142;
};

// Values in (-1, 1), by a 64-bit linear congruential generator (Knuth's MMIX constants).
class Inputs {
 public:
  float Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const auto top = static_cast<int32_t>(state_ >> 40) - (1 << 23);
    return static_cast<float>(top) * 0x1p-23f;
  }
  std::vector<float> Floats(int64_t n, float scale = 1.0f, float offset = 0.0f) {
    std::vector<float> values(n);
    for (float& v : values) v = offset + scale * Next();
    return values;
  }

 private:
  uint64_t state_ = 20240229;
};

// Device memory with a host copy of its contents.
class Device {
 public:
  Device(Kernels& kernels, Digest& digest) : kernels_(kernels), digest_(digest) {}

  void* Put(const void* host, int64_t bytes) {
    absl::StatusOr<Buffer> buffer = kernels_.Allocate(bytes);
    PHALANX_CHECK(buffer.ok()) << buffer.status().message();
    if (host != nullptr) kernels_.CopyIn(buffer->data(), host, bytes);
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().data();
  }
  const float* Put(const std::vector<float>& values) {
    return static_cast<const float*>(
        Put(values.data(), static_cast<int64_t>(values.size() * sizeof(float))));
  }
  // [rows, cols] of `type`, rounded from F32; zero when `values` is empty.
  TensorView Matrix(DType type, int64_t rows, int64_t cols, const std::vector<float>& values = {}) {
    const std::vector<uint8_t> bytes = Encode(type, values, rows * cols);
    return {Put(bytes.data(), static_cast<int64_t>(bytes.size())), type, rows, cols, cols};
  }
  static std::vector<uint8_t> Encode(DType type, const std::vector<float>& values, int64_t count) {
    std::vector<uint8_t> bytes(count * SizeOf(type));
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::kF32) {
        std::memcpy(bytes.data() + 4 * i, &values[i], 4);
      } else {
        const uint16_t bits = type == DType::kBF16 ? F32ToBf16(values[i]) : F32ToF16(values[i]);
        std::memcpy(bytes.data() + 2 * i, &bits, 2);
      }
    }
    return bytes;
  }
  void AddToDigest(const void* device, int64_t bytes) {
    kernels_.Synchronize();
    std::vector<uint8_t> host(bytes);
    kernels_.CopyOut(host.data(), device, bytes);
    digest_.Add(host.data(), host.size());
  }
  void AddToDigest(TensorView t) { AddToDigest(t.data, t.rows * t.stride * SizeOf(t.dtype)); }

 private:
  Kernels& kernels_;
  Digest& digest_;
  std::vector<Buffer> buffers_;
};

void RunMatMul(Kernels& kernels, Device& device, Inputs& inputs, DType type, WeightFormat format) {
  // A row, a few, and as many as a GPU's profile `fast` gives to a library.
  constexpr int64_t kN = 53, kK = 150, kM[] = {1, 7, 40};
  const std::vector<uint8_t> weight = Device::Encode(type, inputs.Floats(kN * kK), kN * kK);
  std::vector<WeightSpec> specs(1);
  specs[0].dtype = type;
  specs[0].format = format;
  specs[0].rows = {{weight.data(), kN, kK}};
  specs[0].leaves = {{0, 64}, {64, 96}, {96, 150}};
  specs[0].parts = {{0, 1, -1}, {2}};
  // Of FP8 codes and scales, too, as checkpoints bring them: a scale for each row.
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  if (IsFp8(format)) {
    for (const float value : inputs.Floats(kN * kK, 100.0f)) codes.push_back(F32ToE4m3(value, 127));
    scales = inputs.Floats(kN, 0.001f, 0.01f);
    for (float& scale : scales) {
      if (format == WeightFormat::kF8E4M3) scale = Bf16ToF32(F32ToBf16(scale));
    }
    specs.push_back(specs[0]);
    specs[1].rows = {{codes.data(), kN, kK, {scales.data(), 1, kK, 1}, 0}};
  }
  for (const WeightSpec& spec : specs) {
    absl::StatusOr<std::unique_ptr<PackedWeight>> packed = kernels.Pack(spec);
    PHALANX_CHECK(packed.ok()) << packed.status().message();
    for (const int64_t m : kM) {
      std::vector<float> x = inputs.Floats(m * (*packed)->k());
      for (int64_t row = 0; row < m; ++row) {  // the last leaf's padding
        for (int64_t j = kK; j < (*packed)->k(); ++j) x[row * (*packed)->k() + j] = 0.0f;
      }
      const TensorView left = device.Matrix(ActivationType(type), m, (*packed)->k(), x);
      const std::array<TensorView, 2> outs = {device.Matrix(DType::kF32, m, kN),
                                              device.Matrix(DType::kF32, m, kN)};
      kernels.MatMul(left, **packed, outs);
      for (const TensorView& out : outs) device.AddToDigest(out);
    }
  }
}

void RunRows(Kernels& kernels, Device& device, Inputs& inputs, DType type) {
  constexpr int64_t kRows = 5, kCols = 83;
  const TensorView table = device.Matrix(type, 11, kCols, inputs.Floats(11 * kCols));
  const TensorView x = device.Matrix(DType::kF32, kRows, kCols);
  kernels.GatherRows(table, std::array<int32_t, kRows>{20, 31, 99, 25, 30}, 20, nullptr, x);
  device.AddToDigest(x);
  const TensorView delta = device.Matrix(DType::kF32, kRows, kCols, inputs.Floats(kRows * kCols));
  const float* bias = device.Put(inputs.Floats(kCols));
  const float* weight = device.Put(inputs.Floats(kCols, 0.5f, 1.0f));
  const TensorView normed = device.Matrix(ActivationType(type), kRows, kCols);
  kernels.AddResidual(x, delta, bias);
  kernels.RmsNorm(x, weight, 1e-5f, normed);
  device.AddToDigest(normed);
  kernels.AddResidualRmsNorm(x, delta, nullptr, weight, 1e-6f, normed);
  device.AddToDigest(x);
  device.AddToDigest(normed);
  constexpr int64_t kInner = 45;
  const TensorView gate_up =
      device.Matrix(DType::kF32, kRows, 2 * kInner, inputs.Floats(kRows * 2 * kInner, 12.0f));
  const TensorView activated = device.Matrix(ActivationType(type), kRows, RoundUp(kInner, 32));
  kernels.SiluMul(gate_up, device.Put(inputs.Floats(2 * kInner)), kInner, activated);
  device.AddToDigest(activated);
  kernels.SiluMul(gate_up, nullptr, kInner, activated);
  device.AddToDigest(activated);
}

void RunAttention(Kernels& kernels, Device& device, Inputs& inputs, DType type, KvFormat format) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 40, kTokens = 75, kDecoded = 1;
  constexpr int64_t kBlocks = 4;
  constexpr int64_t kRows = kTokens + kDecoded;
  const KvShape shape{type, kKvHeads, kDim, format};
  KvView cache;
  cache.shape = shape;
  cache.num_blocks = kBlocks;
  const int64_t block_bytes = kernels.KvBlockBytes(shape);
  cache.data = device.Put(nullptr, kBlocks * block_bytes);
  std::vector<float> inv_freq;
  inv_freq.reserve(kDim / 2);
  for (int i = 0; i < kDim / 2; ++i) {
    inv_freq.push_back(static_cast<float>(PowDouble(10000.0, -2.0 * i / kDim)));
  }
  const RopeTables rope = BuildRopeTables(inv_freq, kRows, 1.0f);
  const std::array<int32_t, 3> table = {2, 0, 3};
  std::vector<int32_t> positions(kRows), slots(kRows);
  for (int32_t t = 0; t < kRows; ++t) {
    positions[t] = t;
    slots[t] = table[t / kBlockTokens] * static_cast<int32_t>(kBlockTokens) +
               t % static_cast<int32_t>(kBlockTokens);
  }
  constexpr int64_t kQkvCols = (kHeads + 2 * kKvHeads) * kDim;
  QkvArgs qkv;
  qkv.qkv = device.Matrix(DType::kF32, kRows, kQkvCols, inputs.Floats(kRows * kQkvCols, 3.0f));
  qkv.bias = device.Put(inputs.Floats(kQkvCols));
  qkv.q_norm = device.Put(inputs.Floats(kDim, 0.5f, 1.0f));
  qkv.k_norm = device.Put(inputs.Floats(kDim, 0.5f, 1.0f));
  qkv.norm_eps = 1e-6f;
  qkv.num_heads = kHeads;
  qkv.cos = device.Put(rope.cos);
  qkv.sin = device.Put(rope.sin);
  qkv.rotary_dim = kDim;
  qkv.positions = positions;
  qkv.slots = slots;
  qkv.cache = cache;
  qkv.q = device.Matrix(ActivationType(type), kRows, kHeads * RoundUp(kDim, kDotGroup));
  kernels.QkvToCache(qkv);
  device.AddToDigest(qkv.q);

  const std::array<int32_t, kHeads> kv_head_of = {0, 1, 0, 1};
  const std::array<int32_t, kHeads> out_column = {120, 0, 40, 80};
  const std::array<int, 5> program = {0, 1, -1, 2, -1};
  const std::array<AttentionSequence, 2> sequences = {
      AttentionSequence{0, kTokens, 0, table.data()},
      AttentionSequence{kTokens, kDecoded, kTokens, table.data()}};
  AttentionArgs attention;
  attention.q = qkv.q;
  attention.num_heads = kHeads;
  attention.kv_head_of = kv_head_of;
  attention.scale = 0.158113883f;
  attention.cache = cache;
  attention.sequences = sequences;
  attention.num_stripes = 3;
  attention.stripe_begin = 0;
  attention.stripe_end = 3;
  attention.stripe_program = program;
  attention.out_column = out_column;
  attention.out = device.Matrix(ActivationType(type), kRows, kHeads * kDim);
  kernels.Attention(attention);
  device.AddToDigest(attention.out);
  attention.window = 41;
  const int64_t floats = kRows * kHeads * 3 * (2 + kDim);
  auto* partials = static_cast<float*>(device.Put(nullptr, floats * SizeOf(DType::kF32)));
  kernels.AttentionPartials(attention, partials);
  device.AddToDigest(partials, floats * SizeOf(DType::kF32));
  kernels.MergeAttention(attention, partials);
  device.AddToDigest(attention.out);
  const std::array<std::vector<int>, 2> programs = {std::vector<int>{0, 1, -1}, {2}};
  const int64_t merged_floats = kRows * kHeads * 2 * (2 + kDim);
  auto* merged = static_cast<float*>(device.Put(nullptr, merged_floats * SizeOf(DType::kF32)));
  kernels.MergePartials(partials, kRows * kHeads, kDim, 3, programs, merged);
  device.AddToDigest(merged, merged_floats * SizeOf(DType::kF32));
  // The cache's inner layout is the device's own, so copied blocks are digested by what attention
  // reads from them.
  kernels.CopyBlocks(cache, std::array<std::pair<int32_t, int32_t>, 1>{{{2, 1}}});
  const std::array<int32_t, 3> copied = {1, 0, 3};
  const std::array<AttentionSequence, 1> decode = {
      AttentionSequence{kTokens, kDecoded, kTokens, copied.data()}};
  attention.sequences = decode;
  attention.window = 0;
  kernels.Attention(attention);
  device.AddToDigest(static_cast<const uint8_t*>(attention.out.data) +
                         kTokens * attention.out.stride * SizeOf(attention.out.dtype),
                     kDecoded * attention.out.stride * SizeOf(attention.out.dtype));
}

void RunExperts(Kernels& kernels, Device& device, Inputs& inputs, Digest& digest, DType type,
                WeightFormat format) {
  constexpr int64_t kRows = 6, kExperts = 5, kTopK = 3, kHidden = 70, kK = 64;
  const TensorView logits =
      device.Matrix(DType::kF32, kRows, kExperts, inputs.Floats(kRows * kExperts, 2.0f));
  std::array<int32_t, kRows* kTopK> experts = {};
  std::array<float, kRows* kTopK> weights = {};
  for (const bool normalise : {false, true}) {
    kernels.RouteTopK({logits, kTopK, normalise, absl::MakeSpan(experts), absl::MakeSpan(weights)});
    kernels.Synchronize();
    digest.Add(experts.data(), sizeof experts);
    digest.Add(weights.data(), sizeof weights);
  }
  const TensorView tokens =
      device.Matrix(ActivationType(type), kRows, kK, inputs.Floats(kRows * kK));
  constexpr int64_t kSlots = kRows * kTopK;
  std::array<int32_t, kSlots> rows = {};
  for (int32_t i = 0; i < kSlots; ++i) rows[i] = i == 4 ? -1 : i * 5 % kRows;
  const TensorView x = device.Matrix(ActivationType(type), kSlots, kK);
  kernels.GatherTokens(tokens, rows, x);
  device.AddToDigest(x);
  std::vector<std::unique_ptr<PackedWeight>> bank;
  std::vector<ExpertRows> groups;
  constexpr std::array<int64_t, 3> kCounts = {1, 13, 4};
  int64_t begin = 0;
  for (const int64_t count : kCounts) {
    const std::vector<uint8_t> weight =
        Device::Encode(type, inputs.Floats(kHidden * kK), kHidden * kK);
    WeightSpec spec;
    spec.dtype = type;
    spec.format = format;
    spec.rows = {{weight.data(), kHidden, kK}};
    spec.leaves = {{0, 32}, {32, 64}};
    spec.parts = {{0}, {1}};
    absl::StatusOr<std::unique_ptr<PackedWeight>> packed = kernels.Pack(spec);
    PHALANX_CHECK(packed.ok()) << packed.status().message();
    bank.push_back(*std::move(packed));
    groups.push_back({bank.back().get(), begin, count});
    begin += count;
  }
  const std::array<TensorView, 2> outs = {device.Matrix(DType::kF32, kSlots, kHidden),
                                          device.Matrix(DType::kF32, kSlots, kHidden)};
  kernels.GroupedMatMul(x, groups, outs);
  std::vector<const float*> parts;
  for (int64_t slot = 0; slot < kSlots; ++slot) {
    for (const TensorView& out : outs) {
      device.AddToDigest(out.f32() + slot * out.stride, kHidden * SizeOf(DType::kF32));
      parts.push_back(out.f32() + slot * out.stride);
    }
  }
  constexpr std::array<int, 3> kProgram = {0, 1, -1};
  CombineExpertsArgs combine;
  combine.rows = kRows;
  combine.hidden = kHidden;
  combine.top_k = kTopK;
  combine.weights = weights.data();
  combine.parts = parts;
  combine.num_parts = 2;
  combine.program = kProgram;
  combine.out = device.Matrix(DType::kF32, kRows, kHidden);
  kernels.CombineExperts(combine);
  device.AddToDigest(combine.out);
  combine.shared = device.Matrix(DType::kF32, kRows, kHidden, inputs.Floats(kRows * kHidden));
  kernels.CombineExperts(combine);
  device.AddToDigest(combine.out);
  combine.shared_gate_logit = device.Put(inputs.Floats(kRows, 3.0f));
  kernels.CombineExperts(combine);
  device.AddToDigest(combine.out);
}

// A whole layer: 14 slots of four experts.
void RunExpertLayer(Kernels& kernels, Device& device, Inputs& inputs, DType type,
                    WeightFormat format) {
  constexpr int64_t kRows = 7, kExperts = 4, kTopK = 2, kHidden = 64, kChannels = 40;
  std::vector<std::unique_ptr<PackedWeight>> packed;
  const auto pack = [&](int64_t n, std::vector<KLeaf> leaves, std::vector<std::vector<int>> parts) {
    const int64_t k = leaves.back().end;
    const std::vector<uint8_t> weight = Device::Encode(type, inputs.Floats(n * k), n * k);
    WeightSpec spec;
    spec.dtype = type;
    spec.rows = {{weight.data(), n, k}};
    spec.format = format;
    spec.leaves = std::move(leaves);
    spec.parts = std::move(parts);
    absl::StatusOr<std::unique_ptr<PackedWeight>> made = kernels.Pack(spec);
    PHALANX_CHECK(made.ok()) << made.status().message();
    packed.push_back(*std::move(made));
    return packed.back().get();
  };
  std::vector<ExpertWeights> weights;
  for (int64_t e = 0; e < kExperts; ++e) {
    const PackedWeight* gate_up = pack(2 * kChannels, {{0, kHidden}}, {{0}});
    weights.push_back({gate_up, pack(kHidden, {{0, 32}, {32, kChannels}}, {{0}, {1}})});
  }
  const int64_t down_k = weights[0].down->k();
  const absl::StatusOr<std::unique_ptr<ExpertSet>> set = kernels.MakeExpertSet(std::move(weights));
  PHALANX_CHECK(set.ok()) << set.status().message();
  constexpr int64_t kSlots = kRows * kTopK;
  const std::array<TensorView, 2> parts = {device.Matrix(DType::kF32, kSlots, kHidden),
                                           device.Matrix(DType::kF32, kSlots, kHidden)};
  constexpr std::array<int, 3> kProgram = {0, 1, -1};
  ExpertsArgs args;
  args.logits = device.Matrix(DType::kF32, kRows, kExperts, inputs.Floats(kRows * kExperts, 2.0f));
  args.top_k = kTopK;
  args.normalise = true;
  args.x = device.Matrix(ActivationType(type), kRows, kHidden, inputs.Floats(kRows * kHidden));
  args.experts = set->get();
  args.room = {device.Matrix(ActivationType(type), kSlots, kHidden),
               device.Matrix(DType::kF32, kSlots, 2 * kChannels),
               device.Matrix(ActivationType(type), kSlots, down_k), parts};
  args.program = kProgram;
  args.out = device.Matrix(DType::kF32, kRows, kHidden);
  constexpr int64_t kCounterBytes = kExperts * static_cast<int64_t>(sizeof(int64_t));
  args.tokens = static_cast<int64_t*>(device.Put(nullptr, kCounterBytes));
  kernels.RunExperts(args);
  device.AddToDigest(args.out);
  device.AddToDigest(args.tokens, kCounterBytes);
}

void RunSampling(Kernels& kernels, Device& device, Inputs& inputs, Digest& digest) {
  constexpr int64_t kRows = 2, kVocab = 9001;
  const TensorView logits =
      device.Matrix(DType::kF32, kRows, kVocab, inputs.Floats(kRows * kVocab, 9.0f));
  const std::array<std::pair<int64_t, int64_t>, 3> leaves = {
      {{0, 4096}, {4096, 4096}, {4096, kVocab}}};
  std::vector<MaxSum> sums(kRows * leaves.size());
  kernels.LogSumExpLeaves(logits, leaves, absl::MakeSpan(sums));
  kernels.Synchronize();
  digest.Add(sums.data(), sums.size() * sizeof(MaxSum));
  // Greedy, drawn from everything, and with each cut.
  std::vector<ChoiceRow> choices(6);
  for (size_t i = 0; i < choices.size(); ++i) {
    choices[i].row = static_cast<int64_t>(i) % kRows;
    choices[i].temperature = i == 0 ? 0.0f : 0.7f;
    choices[i].key = {0x123456789abcdef0u, static_cast<uint32_t>(i), 1, 0};
  }
  choices[2].top_k = 50;
  choices[3].top_p = 0.9f;
  choices[4].min_p = 0.02f;
  choices[5].top_k = 500;
  choices[5].top_p = 0.8f;
  const std::vector<LogitEdit> edits = {{0, 17, 3.5f}, {1, 4000, 0, 1.3f, 0.7f, -0.2f}};
  kernels.EditLogits(logits, edits);
  const auto bytes = static_cast<int64_t>(choices.size() * sizeof(Choice));
  auto* chosen = static_cast<Choice*>(device.Put(nullptr, bytes));
  kernels.ChooseRows(logits, choices, chosen);
  device.AddToDigest(chosen, bytes);
}

}  // namespace

std::string KnownAnswerDigest(Kernels& kernels, DType weight_dtype, KvFormat kv_format,
                              WeightFormat weight_format) {
  Digest digest;
  Inputs inputs;
  Device device(kernels, digest);
  RunMatMul(kernels, device, inputs, weight_dtype, weight_format);
  RunRows(kernels, device, inputs, weight_dtype);
  RunAttention(kernels, device, inputs, weight_dtype, kv_format);
  RunSampling(kernels, device, inputs, digest);
  RunExperts(kernels, device, inputs, digest, weight_dtype, weight_format);
  RunExpertLayer(kernels, device, inputs, weight_dtype, weight_format);
  return digest.Hex();
}

}  // namespace phalanx::kernels
