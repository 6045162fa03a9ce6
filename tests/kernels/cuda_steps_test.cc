// Steps of the CUDA backend on the emulated device: recorded, replayed as graphs or launched one by
// one, whole or in segments, they give the same bits; and nothing is allocated in them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/float16.h"
#include "tests/kernels/emulation/fake_cublas.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

constexpr int64_t kHidden = 64;
constexpr int64_t kHeads = 4;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kChannels = 96;
constexpr int64_t kVocab = 48;
constexpr int64_t kLayers = 2;
constexpr int64_t kMaxRows = 20;
constexpr int64_t kBlocks = 12;
constexpr int kStripes = 4;
constexpr int64_t kArena = int64_t{64} << 20;

// One sequence of a step.
struct Tokens {
  std::vector<int32_t> ids;
  int64_t start = 0;
  std::vector<int32_t> table;
};
using Step = std::vector<Tokens>;

std::vector<uint16_t> RandomBf16(Random& random, int64_t count, float scale) {
  std::vector<uint16_t> out;
  for (const float value : random.Floats(count, scale)) out.push_back(F32ToBf16(value));
  return out;
}

// A decoder's ops in a decoder's order, with weights drawn from one seed.
class TinyDecoder {
 public:
  explicit TinyDecoder(const CudaOptions& options, const cuda::StepGraphsOptions& graphs = {},
                       int64_t head_dim = 16)
      : head_dim_(head_dim),
        query_width_(std::max<int64_t>(head_dim, 32)),
        kernels_(options, *cuda::DeviceMemory::Create(0, options.memory_bytes), graphs) {
    if (options.numerics == Numerics::kFast) {
      const absl::Status status = kernels_.UseLibrary(emulation::FakeCublas());
      EXPECT_TRUE(status.ok()) << status;
    }
    Random random(7);
    embedding_ = Bf16(RandomBf16(random, kVocab * kHidden, 1));
    norm_ = Floats(random.Floats(kHidden));
    for (int64_t i = 0; i < kLayers; ++i) {
      layers_.push_back({Weight(random, (kHeads + 2 * kKvHeads) * head_dim_, kHidden),
                         Weight(random, kHidden, kHeads * head_dim_),
                         Weight(random, 2 * kChannels, kHidden), Weight(random, kHidden, kChannels),
                         Allocate(kBlocks * kernels_.KvBlockBytes(CacheShape()))});
    }
    head_ = Weight(random, kVocab, kHidden);
    residual_ = Allocate(kMaxRows * kHidden * 4);
    delta_ = Allocate(kMaxRows * kHidden * 4);
    normed_ = Allocate(kMaxRows * kHidden * 2);
    qkv_ = Allocate(kMaxRows * (kHeads + 2 * kKvHeads) * head_dim_ * 4);
    q_ = Allocate(kMaxRows * kHeads * query_width_ * 2);
    attended_ = Allocate(kMaxRows * kHeads * head_dim_ * 2);
    gate_up_ = Allocate(kMaxRows * 2 * kChannels * 4);
    activated_ = Allocate(kMaxRows * kChannels * 2);
    last_ = Allocate(kMaxRows * kHidden * 4);
    logits_ = Allocate(kMaxRows * kVocab * 4);
    choices_ = Allocate(kMaxRows * static_cast<int64_t>(sizeof(Choice)));
    cos_ = Allocate(kMaxRows * head_dim_ / 2 * 4);
    sin_ = Allocate(kMaxRows * head_dim_ / 2 * 4);
  }

  // Runs after every layer, as a communicator's call does.
  std::function<void(CudaKernels&)> between_layers = [](CudaKernels&) {};

  // A digest of the residual stream and of each sequence's choice. `as_step`: between BeginStep and
  // EndStep.
  uint64_t Run(const Step& step, bool as_step = true) {
    CudaKernels& k = kernels_;
    std::vector<int32_t> ids, positions, slots, last;
    std::vector<AttentionSequence> sequences;
    for (const Tokens& tokens : step) {
      const auto begin = static_cast<int64_t>(ids.size());
      const auto count = static_cast<int64_t>(tokens.ids.size());
      sequences.push_back({begin, count, tokens.start, tokens.table.data()});
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = tokens.start + i;
        ids.push_back(tokens.ids[i]);
        positions.push_back(static_cast<int32_t>(begin + i));
        slots.push_back(static_cast<int32_t>(tokens.table[at / 32] * 32 + at % 32));
      }
      last.push_back(static_cast<int32_t>(ids.size()) - 1);
    }
    const auto m = static_cast<int64_t>(ids.size());
    std::vector<float> cos, sin;
    for (const Tokens& tokens : step) {
      for (size_t i = 0; i < tokens.ids.size(); ++i) {
        for (int64_t j = 0; j < head_dim_ / 2; ++j) {
          cos.push_back(1.0f / static_cast<float>(1 + tokens.start + i + j));
          sin.push_back(1.0f / static_cast<float>(2 + tokens.start + i + 3 * j));
        }
      }
    }

    if (as_step) k.BeginStep(m);
    const TensorView x = F32(residual_, m, kHidden);
    const TensorView delta = F32(delta_, m, kHidden);
    const TensorView normed = {normed_.data(), DType::kBF16, m, kHidden, kHidden};
    k.GatherRows({embedding_.data(), DType::kBF16, kVocab, kHidden, kHidden}, ids, 0, nullptr, x);
    k.CopyIn(cos_.data(), cos.data(), static_cast<int64_t>(cos.size()) * 4);
    k.CopyIn(sin_.data(), sin.data(), static_cast<int64_t>(sin.size()) * 4);
    k.RmsNorm(x, norm_.as<float>(), 1e-5f, normed);
    for (const Layer& layer : layers_) {
      const TensorView qkv = F32(qkv_, m, (kHeads + 2 * kKvHeads) * head_dim_);
      k.MatMul(normed, *layer.qkv, {&qkv, 1});
      QkvArgs write;
      write.qkv = qkv;
      write.num_heads = kHeads;
      write.cos = cos_.as<float>();
      write.sin = sin_.as<float>();
      write.rotary_dim = head_dim_;
      write.positions = positions;
      write.slots = slots;
      write.cache = {CacheShape(), layer.cache.data(), kBlocks};
      write.q = {q_.data(), DType::kBF16, m, kHeads * query_width_, kHeads * query_width_};
      k.QkvToCache(write);
      AttentionArgs attend;
      attend.q = write.q;
      attend.num_heads = kHeads;
      attend.kv_head_of = kv_head_of_;
      attend.scale = 0.25f;
      attend.cache = write.cache;
      attend.sequences = sequences;
      attend.num_stripes = kStripes;
      attend.stripe_program = program_;
      attend.out_column = out_column_;
      attend.out = {attended_.data(), DType::kBF16, m, kHeads * head_dim_, kHeads * head_dim_};
      k.Attention(attend);
      k.MatMul(attend.out, *layer.o, {&delta, 1});
      between_layers(k);
      k.AddResidualRmsNorm(x, delta, nullptr, norm_.as<float>(), 1e-5f, normed);
      const TensorView gate_up = F32(gate_up_, m, 2 * kChannels);
      const TensorView activated = {activated_.data(), DType::kBF16, m, kChannels, kChannels};
      k.MatMul(normed, *layer.gate_up, {&gate_up, 1});
      k.SiluMul(gate_up, nullptr, kChannels, activated);
      k.MatMul(activated, *layer.down, {&delta, 1});
      between_layers(k);
      k.AddResidualRmsNorm(x, delta, nullptr, norm_.as<float>(), 1e-5f, normed);
    }
    const auto wanted = static_cast<int64_t>(last.size());
    const TensorView rows = F32(last_, wanted, kHidden);
    k.GatherTokens(x, last, rows);
    const TensorView last_normed = {normed_.data(), DType::kBF16, wanted, kHidden, kHidden};
    k.RmsNorm(rows, norm_.as<float>(), 1e-5f, last_normed);
    const TensorView logits = F32(logits_, wanted, kVocab);
    k.MatMul(last_normed, *head_, {&logits, 1});
    std::vector<ChoiceRow> draws(wanted);
    for (int64_t i = 0; i < wanted; ++i) {
      draws[i].row = i;
      draws[i].temperature = 0.7f;
    }
    k.ChooseRows(logits, draws, choices_.as<Choice>());
    if (as_step) k.EndStep();
    std::vector<Choice> choices(wanted);
    k.CopyOut(choices.data(), choices_.data(), wanted * static_cast<int64_t>(sizeof(Choice)));
    std::string out(m * kHidden * 4, 0);
    k.CopyOut(out.data(), residual_.data(), static_cast<int64_t>(out.size()));
    out.append(reinterpret_cast<const char*>(choices.data()), choices.size() * sizeof(Choice));
    return std::hash<std::string>()(out);
  }

  CudaKernels& kernels() { return kernels_; }

 private:
  struct Layer {
    std::unique_ptr<PackedWeight> qkv, o, gate_up, down;
    Buffer cache;
  };

  KvShape CacheShape() const { return {DType::kBF16, kKvHeads, head_dim_}; }
  Buffer Allocate(int64_t bytes) {
    absl::StatusOr<Buffer> buffer = kernels_.Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  Buffer Floats(const std::vector<float>& values) {
    Buffer out = Allocate(static_cast<int64_t>(values.size()) * 4);
    kernels_.CopyIn(out.data(), values.data(), static_cast<int64_t>(values.size()) * 4);
    return out;
  }
  Buffer Bf16(const std::vector<uint16_t>& values) {
    Buffer out = Allocate(static_cast<int64_t>(values.size()) * 2);
    kernels_.CopyIn(out.data(), values.data(), static_cast<int64_t>(values.size()) * 2);
    return out;
  }
  std::unique_ptr<PackedWeight> Weight(Random& random, int64_t n, int64_t k) {
    const std::vector<uint16_t> source = RandomBf16(random, n * k, 0.3f);
    WeightSpec spec;
    spec.rows = {{source.data(), n, k}};
    spec.leaves = {{0, 32}, {32, k}};
    spec.parts = {{0, 1, -1}};
    auto weight = kernels_.Pack(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  static std::vector<int32_t> ColumnsOf(int64_t head_dim) {
    std::vector<int32_t> out;
    for (int64_t head = 0; head < kHeads; ++head) {
      out.push_back(static_cast<int32_t>(head * head_dim));
    }
    return out;
  }
  static TensorView F32(const Buffer& buffer, int64_t rows, int64_t cols) {
    return {buffer.data(), DType::kF32, rows, cols, cols};
  }

  const std::vector<int32_t> kv_head_of_ = {0, 0, 1, 1};
  const std::vector<int> program_ = {0, 1, -1, 2, 3, -1, -1};
  const int64_t head_dim_;
  const int64_t query_width_;  // of a head, padded
  const std::vector<int32_t> out_column_ = ColumnsOf(head_dim_);
  CudaKernels kernels_;
  Buffer embedding_, norm_, residual_, delta_, normed_, qkv_, q_, attended_, gate_up_, activated_,
      last_, logits_, choices_, cos_, sin_;
  std::vector<Layer> layers_;
  std::unique_ptr<PackedWeight> head_;
};

CudaOptions WithArena(bool graphs, Numerics numerics = Numerics::kExact) {
  CudaOptions options;
  options.numerics = numerics;
  options.memory_bytes = kArena;
  options.graphs = graphs;
  return options;
}

// Decode of one sequence, a second one that joins with a prefill, both, and prefills of other
// lengths; tables change and grow.
std::vector<Step> Steps() {
  std::vector<Step> steps;
  int64_t length[2] = {};
  const auto tokens = [&](int sequence, int64_t count) {
    Tokens out;
    out.start = length[sequence];
    out.table = sequence == 0 ? std::vector<int32_t>{3, 7} : std::vector<int32_t>{5, 2, 9};
    for (int64_t i = 0; i < count; ++i) {
      out.ids.push_back(static_cast<int32_t>((length[sequence]++ * 37 + sequence) % kVocab));
    }
    return out;
  };
  steps.push_back({tokens(0, 18)});
  for (int i = 0; i < 3; ++i) steps.push_back({tokens(0, 1)});
  steps.push_back({tokens(0, 1), tokens(1, 3)});  // 4 rows
  for (int i = 0; i < 2; ++i) {
    steps.push_back({tokens(0, 2), tokens(1, 1)});  // 3 rows, of the same bucket
    steps.push_back({tokens(1, 1)});
  }
  steps.push_back({tokens(1, 20)});
  steps.push_back({tokens(0, 7), tokens(1, 10)});
  steps.push_back({tokens(1, 1)});
  steps.push_back({tokens(0, 1), tokens(1, 18)});
  return steps;
}

std::vector<uint64_t> ResultsOf(TinyDecoder& decoder, bool as_steps = true) {
  std::vector<uint64_t> out;
  for (const Step& step : Steps()) out.push_back(decoder.Run(step, as_steps));
  return out;
}

const std::vector<uint64_t>& PlainResults() {
  static const auto* results = [] {
    TinyDecoder plain({});
    return new std::vector<uint64_t>(ResultsOf(plain, /*as_steps=*/false));
  }();
  return *results;
}

TEST(CudaSteps, ReplayedStepsHaveTheBitsOfPlainLaunches) {
  TinyDecoder decoder(WithArena(/*graphs=*/true));
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  const cuda::StepGraphsCounts first = decoder.kernels().graph_counts();
  EXPECT_GE(first.launched, 3);
  EXPECT_GE(first.plain, 3);
  // Then every shape has been seen, and every segment has a graph but those of fewer than four
  // kernels: a second sequence's choice, in four steps.
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  const cuda::StepGraphsCounts second = decoder.kernels().graph_counts();
  EXPECT_GE(second.launched, first.launched + static_cast<int64_t>(PlainResults().size()) - 2);
}

TEST(CudaSteps, StepsWithoutGraphsHaveTheBitsOfPlainLaunches) {
  TinyDecoder decoder(WithArena(/*graphs=*/false));
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  EXPECT_EQ(decoder.kernels().graph_counts().launched, 0);
}

// Kernels that start early, in graphs and by themselves; a driver that refuses it is asked once in
// each way.
TEST(CudaSteps, StartsKernelsEarlyWhereTheDriverDoesSo) {
  for (const bool graphs : {true, false}) {
    CudaOptions options = WithArena(graphs);
    int64_t before = emulation::NumEarlyStarts();
    TinyDecoder decoder(options);
    EXPECT_EQ(ResultsOf(decoder), PlainResults());
    EXPECT_EQ(ResultsOf(decoder), PlainResults());
    EXPECT_TRUE(decoder.kernels().early_starts());
    EXPECT_EQ(emulation::NumEarlyStarts() > before, graphs) << "without graphs nothing is recorded";

    before = emulation::NumEarlyStarts();
    options.early_starts = false;
    TinyDecoder in_turn(options);
    EXPECT_EQ(ResultsOf(in_turn), PlainResults());
    EXPECT_EQ(ResultsOf(in_turn), PlainResults());
    EXPECT_FALSE(in_turn.kernels().early_starts());
    EXPECT_EQ(emulation::NumEarlyStarts(), before);
  }
}

TEST(CudaSteps, DoWithoutEarlyStartsWhereTheDriverRefusesThem) {
  const int64_t graphs = emulation::NumGraphs();
  for (const bool build_at_once : {false, true}) {
    for (const cudaError_t error :
         {cudaErrorInvalidValue, cudaErrorNotSupported, cudaErrorCallRequiresNewerDriver}) {
      emulation::RefuseEarlyStarts(error);
      const int64_t before = emulation::NumEarlyStarts();
      TinyDecoder decoder(WithArena(/*graphs=*/true), {.build_at_once = build_at_once});
      EXPECT_TRUE(decoder.kernels().early_starts());
      EXPECT_EQ(ResultsOf(decoder), PlainResults());
      EXPECT_FALSE(decoder.kernels().early_starts());
      emulation::RefuseEarlyStarts(cudaSuccess);
      EXPECT_EQ(ResultsOf(decoder), PlainResults());
      EXPECT_EQ(emulation::NumEarlyStarts(), before);
    }
  }
  EXPECT_EQ(emulation::NumGraphs(), graphs) << "those that were refused are gone, too";
}

// Between two of a library's products there is a segment; steps of few rows are one. Of heads of 64
// a prompt's attention has a kernel of its own, beside a decode's in the last step.
TEST(CudaSteps, FastStepsAreReplayedWithTheirOwnBits) {
  CudaOptions options;
  options.numerics = Numerics::kFast;
  TinyDecoder plain(options);
  const std::vector<uint64_t> expected = ResultsOf(plain, /*as_steps=*/false);
  EXPECT_NE(expected, PlainResults());
  TinyDecoder plain_of_64(options, {}, 64);
  const std::vector<uint64_t> expected_of_64 = ResultsOf(plain_of_64, /*as_steps=*/false);
  for (const bool graphs : {false, true}) {
    TinyDecoder decoder(WithArena(graphs, Numerics::kFast));
    EXPECT_EQ(ResultsOf(decoder), expected);
    EXPECT_EQ(ResultsOf(decoder), expected);
    EXPECT_EQ(decoder.kernels().graph_counts().launched > 0, graphs);
    TinyDecoder decoder_of_64(WithArena(graphs, Numerics::kFast), {}, 64);
    EXPECT_EQ(ResultsOf(decoder_of_64), expected_of_64);
    EXPECT_EQ(ResultsOf(decoder_of_64), expected_of_64);
  }
  cuda::StepGraphsOptions at_once;
  at_once.build_at_once = true;
  at_once.least_kernels = 1;
  TinyDecoder decoder(WithArena(/*graphs=*/true, Numerics::kFast), at_once);
  EXPECT_EQ(ResultsOf(decoder), expected);
  const cuda::StepGraphsCounts before = decoder.kernels().graph_counts();
  decoder.Run({{{5}, 29, {3, 7, 1}}});
  EXPECT_EQ(decoder.kernels().graph_counts().launched, before.launched + 1);
}

TEST(CudaSteps, SegmentsBetweenCommunicatorsCallsHaveTheSameBits) {
  cuda::StepGraphsOptions at_once;
  at_once.build_at_once = true;
  at_once.least_kernels = 1;
  at_once.most_graphs = 7;
  TinyDecoder decoder(WithArena(/*graphs=*/true), at_once);
  decoder.between_layers = [](CudaKernels& kernels) {
    kernels.Flush();
    kernels.Flush();
  };
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  EXPECT_GT(decoder.kernels().graph_counts().evicted, 20);
  EXPECT_GT(decoder.kernels().graph_counts().updated_nodes, 20);
  EXPECT_EQ(decoder.kernels().graph_counts().plain, 0);
}

TEST(CudaSteps, ADecodeStepUpdatesNoKernelOfItsGraph) {
  TinyDecoder decoder(WithArena(/*graphs=*/true));
  const std::vector<int32_t> table = {3, 7, 1};
  // In the first one scratch grows, which ends a segment.
  for (int64_t at = 26; at < 29; ++at) decoder.Run({{{5}, at, table}});
  const cuda::StepGraphsCounts before = decoder.kernels().graph_counts();
  EXPECT_EQ(before.built, 1);
  // Over the end of a block, too: another id, position, slot and a longer table are staged at the
  // same addresses.
  for (int64_t at = 29; at < 35; ++at) decoder.Run({{{static_cast<int32_t>(at)}, at, table}});
  const cuda::StepGraphsCounts after = decoder.kernels().graph_counts();
  EXPECT_EQ(after.launched, before.launched + 6);
  EXPECT_EQ(after.updated_nodes, before.updated_nodes);
  EXPECT_EQ(after.built, 1);
}

TEST(CudaSteps, AllocateNothingAfterTheLargestOne) {
  TinyDecoder decoder(WithArena(/*graphs=*/true));
  const Step largest = {{std::vector<int32_t>(kMaxRows, 3), 0, {4}}};
  decoder.Run(largest);
  const int64_t left = *decoder.kernels().FreeBytes();
  EXPECT_LT(left, kArena);
  decoder.kernels().FreezeScratch();
  // All that was free is given away, as the KV cache takes it.
  const absl::StatusOr<Buffer> cache = decoder.kernels().Allocate(left);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  decoder.Run(largest);
}

TEST(CudaSteps, LargerOnesThanTheScratchWasFrozenForMakeDoWithIt) {
  TinyDecoder decoder(WithArena(/*graphs=*/true));
  decoder.Run({{{1}, 0, {3}}});
  decoder.kernels().FreezeScratch();
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
}

// The tables' vector is where the last step's was, with other blocks in it.
TEST(CudaSteps, TablesMayChangeBetweenStepsAndOutsideThem) {
  for (const bool as_step : {true, false}) {
    uint64_t results[2];
    for (const bool reuse : {true, false}) {
      TinyDecoder decoder(WithArena(/*graphs=*/true));
      const Step prefill = {{{1, 2, 3}, 0, {3}}};
      const Step other = {{{4, 5, 6}, 0, {5}}};
      decoder.Run(prefill);
      decoder.Run(other);
      Step step = {{{7}, 3, {3}}};
      if (reuse) decoder.Run(step);
      step[0].table[0] = 5;
      results[reuse ? 1 : 0] = decoder.Run(step, as_step);
    }
    EXPECT_EQ(results[0], results[1]) << as_step;
  }
}

TEST(CudaSteps, AStepThatWasNotEndedEndsWithTheNext) {
  TinyDecoder decoder(WithArena(/*graphs=*/true));
  decoder.kernels().BeginStep(1);
  EXPECT_EQ(ResultsOf(decoder), PlainResults());
  decoder.kernels().EndStep();
  decoder.kernels().EndStep();
}

// Ops of up to sixteen arrays each, of sizes that turn the ring and make it grow, in steps and
// outside them.
TEST(Staging, HoldsWhatAnOpBringsUntilTheOpIsEnqueued) {
  Random random(3);
  for (const bool deferred : {true, false}) {
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    {
      cuda::Staging* staging = nullptr;
      const auto flush = [&] {
        const cuda::Upload upload = staging->TakeUpload();
        if (upload.bytes == 0) return;
        ASSERT_EQ(cudaMemcpyAsync(upload.to, upload.from, static_cast<size_t>(upload.bytes),
                                  cudaMemcpyHostToDevice, stream),
                  cudaSuccess);
      };
      cuda::Staging ring(0, stream, *cuda::DeviceMemory::Create(0, 0), 16384, flush);
      staging = &ring;
      std::vector<const void*> first_of_step;
      int64_t largest = 1000;
      for (int step = 0; step < 60; ++step) {
        const bool in_step = step % 3 != 2;
        if (in_step) ring.BeginStep(deferred);
        if (step == 40) largest = 20000;
        for (int op = 0; op < 12; ++op) {
          std::vector<std::vector<char>> arrays(1 + random.Below(16));
          std::vector<const void*> placed;
          for (std::vector<char>& array : arrays) {
            array.resize(random.Below(largest), static_cast<char>(random.Below(3)));
            if (op == 0) array.assign(100, static_cast<char>(step));
            const void* at =
                ring.Put(cuda::Staged::kIds, array.data(), static_cast<int64_t>(array.size()));
            placed.push_back(at);
            // The first array of every step lies where that of the first did.
            if (op == 0 && in_step && step < 40) first_of_step.push_back(at);
          }
          if (deferred && in_step) flush();
          for (size_t i = 0; i < arrays.size(); ++i) {
            std::vector<char> there(arrays[i].size());
            if (there.empty()) continue;
            ASSERT_EQ(cudaMemcpyAsync(there.data(), placed[i], there.size(), cudaMemcpyDeviceToHost,
                                      stream),
                      cudaSuccess);
            ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
            ASSERT_EQ(there, arrays[i]) << "step " << step << ", op " << op << ", array " << i;
          }
        }
        if (in_step) ring.EndStep();
      }
      EXPECT_EQ(std::count(first_of_step.begin(), first_of_step.end(), first_of_step[0]),
                static_cast<int64_t>(first_of_step.size()));
      EXPECT_GT(ring.turns(), 100);
      EXPECT_GE(ring.most_bytes(), 15000);
    }
    ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  }
}

TEST(CudaMemory, AnArenaGivesItsBytesAndRefusesMoreNamingTheFigures) {
  CudaOptions options;
  options.memory_bytes = int64_t{32} << 20;
  auto kernels = CreateCudaKernels(options);
  ASSERT_TRUE(kernels.ok()) << kernels.status();
  const int64_t free = *(*kernels)->FreeBytes();
  EXPECT_LT(free, options.memory_bytes);
  EXPECT_GT(free, options.memory_bytes / 2);
  {
    const absl::StatusOr<Buffer> all = (*kernels)->Allocate(free);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(all->data()) % 256, 0u);
    EXPECT_EQ(*(*kernels)->FreeBytes(), 0);
    const absl::StatusOr<Buffer> more = (*kernels)->Allocate(1);
    EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(more.status().message()),
                testing::HasSubstr("CUDA device 0, this rank's share: cannot allocate 1 bytes: of "
                                   "33554432 bytes 0 are free, 0 of them in the largest piece; "));
  }
  EXPECT_EQ(*(*kernels)->FreeBytes(), free);
  // What is given out again is zeroed again.
  absl::StatusOr<Buffer> buffer = (*kernels)->Allocate(64);
  std::vector<char> bytes(64, 'x');
  (*kernels)->CopyIn(buffer->data(), bytes.data(), 64);
  *buffer = Buffer();
  buffer = (*kernels)->Allocate(64);
  (*kernels)->CopyOut(bytes.data(), buffer->data(), 64);
  EXPECT_EQ(bytes, std::vector<char>(64, 0));
}

TEST(CudaMemory, BuffersMayOutliveTheirKernels) {
  auto kernels = CreateCudaKernels(WithArena(true));
  ASSERT_TRUE(kernels.ok());
  absl::StatusOr<Buffer> buffer = (*kernels)->Allocate(1000);
  kernels->reset();
  EXPECT_NE(buffer->data(), nullptr);
}

TEST(CudaMemory, WhatADeviceHasNotGotIsRefusedAtTheStart) {
  CudaOptions options;
  options.memory_bytes = int64_t{1} << 50;
  EXPECT_EQ(CreateCudaKernels(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.memory_fraction = 0.5;
  EXPECT_EQ(CreateCudaKernels(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.memory_bytes = 0;
  EXPECT_TRUE(CreateCudaKernels(options).ok());
}

TEST(CudaMemory, ScratchThatIsNotThereEndsTheProcessSayingWhatFor) {
  // The kernels start threads, which TSan allows no forked process.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  CudaOptions options;
  options.memory_bytes = int64_t{32} << 20;
  EXPECT_DEATH(
      {
        CudaKernels kernels(options, *cuda::DeviceMemory::Create(0, options.memory_bytes));
        const absl::StatusOr<Buffer> all = kernels.Allocate(*kernels.FreeBytes());
        kernels.FreezeScratch();
        const std::vector<ChoiceRow> rows(1 << 16);
        kernels.ChooseRows({nullptr, DType::kF32, 1, 1 << 16, 1 << 16}, rows, nullptr);
      },
      "scratch memory for choices: CUDA device 0, this rank's share: cannot allocate 17301504 "
      "bytes");
}

TEST(GatedProducts, OfFewRowsWriteNoGatesAndUps) {
  constexpr int64_t kGates = 96;
  constexpr int64_t kMost = 17;
  CudaOptions options;
  options.memory_bytes = kArena;
  CudaKernels k(options, *cuda::DeviceMemory::Create(0, options.memory_bytes), {});
  Random random(5);
  const std::vector<uint16_t> source = RandomBf16(random, 2 * kGates * kHidden, 1);
  WeightSpec spec;
  spec.rows = {{source.data(), 2 * kGates, kHidden}};
  spec.leaves = {{0, kHidden}};
  spec.parts = {{0}};
  const auto weight = k.Pack(spec);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const auto copy_in = [&k](const void* from, int64_t bytes) {
    Buffer buffer = *k.Allocate(bytes);
    k.CopyIn(buffer.data(), from, bytes);
    return buffer;
  };
  const std::vector<uint16_t> values = RandomBf16(random, kMost * kHidden, 1);
  const Buffer x = copy_in(values.data(), kMost * kHidden * 2);
  const std::vector<float> untouched(kMost * 2 * kGates, -12345.0f);
  const Buffer out = *k.Allocate(kMost * kGates * 2);
  for (const int64_t rows : {1, 16, 17}) {
    const Buffer gate_up = copy_in(untouched.data(), kMost * 2 * kGates * 4);
    k.MatMulSiluMul({x.data(), DType::kBF16, rows, kHidden, kHidden}, **weight,
                    {gate_up.data(), DType::kF32, rows, 2 * kGates, 2 * kGates}, nullptr, kGates,
                    {out.data(), DType::kBF16, rows, kGates, kGates});
    std::vector<float> left(untouched.size());
    k.CopyOut(left.data(), gate_up.data(), static_cast<int64_t>(left.size()) * 4);
    EXPECT_EQ(left == untouched, rows <= 16) << rows;
  }
}

}  // namespace
}  // namespace phalanx::kernels
