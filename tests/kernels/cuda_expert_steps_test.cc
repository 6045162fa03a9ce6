// Steps with layers of experts on the emulated device: routing stays there, so that a step is one
// segment, nothing waits for the host, and other routes change no launch.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/float16.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

constexpr int64_t kHidden = 64;
constexpr int64_t kChannels = 32;
constexpr int64_t kExperts = 6;
constexpr int64_t kTopK = 3;
constexpr int64_t kLayers = 2;
constexpr int64_t kMaxRows = 40;
constexpr int64_t kArena = int64_t{64} << 20;
constexpr int64_t kCounterBytes = kExperts * static_cast<int64_t>(sizeof(int64_t));

struct Result {
  std::vector<float> residual;  // [rows, kHidden]
  std::vector<int64_t> tokens;  // [kExperts]
  friend bool operator==(const Result&, const Result&) = default;
};

// Norm, router and experts, layer after layer, with weights drawn from one seed.
class ExpertStack {
 public:
  explicit ExpertStack(const CudaOptions& options, const cuda::StepGraphsOptions& graphs = {})
      : kernels_(options, *cuda::DeviceMemory::Create(0, options.memory_bytes), graphs) {
    Random random(8);
    const std::vector<float> ones(kHidden, 1.0f);
    norm_ = Allocate(kHidden * 4);
    kernels_.CopyIn(norm_.data(), ones.data(), kHidden * 4);
    for (int64_t i = 0; i < kLayers; ++i) {
      Layer& layer = layers_.emplace_back();
      layer.router = Weight(random, kExperts, kHidden);
      std::vector<ExpertWeights> weights;
      for (int64_t e = 0; e < kExperts; ++e) {
        layer.weights.push_back(Weight(random, 2 * kChannels, kHidden));
        layer.weights.push_back(Weight(random, kHidden, kChannels));
        weights.push_back({layer.weights[2 * e].get(), layer.weights[2 * e + 1].get()});
      }
      auto set = kernels_.MakeExpertSet(std::move(weights));
      EXPECT_TRUE(set.ok()) << set.status();
      layer.experts = *std::move(set);
    }
    residual_ = Allocate(kMaxRows * kHidden * 4);
    delta_ = Allocate(kMaxRows * kHidden * 4);
    normed_ = Allocate(kMaxRows * kHidden * 2);
    logits_ = Allocate(kMaxRows * kExperts * 4);
    grouped_ = Allocate(kMaxRows * kTopK * kHidden * 2);
    gate_up_ = Allocate(kMaxRows * kTopK * 2 * kChannels * 4);
    activated_ = Allocate(kMaxRows * kTopK * kChannels * 2);
    part_ = Allocate(kMaxRows * kTopK * kHidden * 4);
    counters_ = Allocate(kCounterBytes);
  }

  // Enqueues a step whose rows begin as `x`, or as the step before has left them where it is empty.
  void Enqueue(int64_t m, const std::vector<float>& x, bool as_step = true) {
    CudaKernels& k = kernels_;
    if (as_step) k.BeginStep(m);
    const TensorView residual = F32(residual_, m, kHidden);
    const TensorView delta = F32(delta_, m, kHidden);
    const TensorView normed = {normed_.data(), DType::kBF16, m, kHidden, kHidden};
    if (!x.empty()) k.CopyIn(residual_.data(), x.data(), m * kHidden * 4);
    k.Zero(counters_.data(), kCounterBytes);
    k.RmsNorm(residual, norm_.as<float>(), 1e-5f, normed);
    for (const Layer& layer : layers_) {
      const TensorView part = F32(part_, m * kTopK, kHidden);
      ExpertsArgs args;
      args.logits = F32(logits_, m, kExperts);
      args.top_k = kTopK;
      args.normalise = true;
      args.x = normed;
      args.experts = layer.experts.get();
      args.room = {{grouped_.data(), DType::kBF16, m * kTopK, kHidden, kHidden},
                   F32(gate_up_, m * kTopK, 2 * kChannels),
                   {activated_.data(), DType::kBF16, m * kTopK, kChannels, kChannels},
                   {&part, 1}};
      args.program = program_;
      args.out = delta;
      args.tokens = counters_.as<int64_t>();
      k.MatMul(normed, *layer.router, {&args.logits, 1});
      k.RunExperts(args);
      k.AddResidualRmsNorm(residual, delta, nullptr, norm_.as<float>(), 1e-5f, normed);
    }
    if (as_step) k.EndStep();
  }
  Result Fetch(int64_t m) {
    Result out;
    out.residual.resize(m * kHidden);
    out.tokens.resize(kExperts);
    kernels_.CopyOut(out.residual.data(), residual_.data(), m * kHidden * 4);
    kernels_.CopyOut(out.tokens.data(), counters_.data(), kCounterBytes);
    return out;
  }
  Result Run(int64_t m, const std::vector<float>& x, bool as_step = true) {
    Enqueue(m, x, as_step);
    return Fetch(m);
  }

  CudaKernels& kernels() { return kernels_; }
  const Buffer& counters() const { return counters_; }

 private:
  struct Layer {
    std::unique_ptr<PackedWeight> router;
    std::vector<std::unique_ptr<PackedWeight>> weights;  // of each expert: gate and up, down
    std::unique_ptr<ExpertSet> experts;
  };

  Buffer Allocate(int64_t bytes) {
    absl::StatusOr<Buffer> buffer = kernels_.Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  std::unique_ptr<PackedWeight> Weight(Random& random, int64_t n, int64_t k) {
    std::vector<uint16_t> source;
    for (const float value : random.Floats(n * k, 0.3f)) source.push_back(F32ToBf16(value));
    WeightSpec spec;
    spec.rows = {{source.data(), n, k}};
    spec.leaves = {{0, k}};
    spec.parts = {{0}};
    auto weight = kernels_.Pack(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  static TensorView F32(const Buffer& buffer, int64_t rows, int64_t cols) {
    return {buffer.data(), DType::kF32, rows, cols, cols};
  }

  const std::vector<int> program_ = {0};
  CudaKernels kernels_;
  Buffer norm_, residual_, delta_, normed_, logits_, grouped_, gate_up_, activated_, part_,
      counters_;
  std::vector<Layer> layers_;
};

CudaOptions WithArena(bool graphs) {
  CudaOptions options;
  options.memory_bytes = kArena;
  options.graphs = graphs;
  return options;
}

// Rows that go elsewhere each time.
std::vector<float> Rows(int64_t m, uint32_t seed) { return Random(seed).Floats(m * kHidden); }

// Decode, and prefill: products of eight, sixteen, 32 and 64 rows a tile.
const std::vector<int64_t> kSizes = {1, 2, 13, 1, 20, kMaxRows, 1, 13};

std::vector<Result> ResultsOf(ExpertStack& stack, bool as_steps) {
  std::vector<Result> out;
  for (size_t i = 0; i < kSizes.size(); ++i) {
    out.push_back(stack.Run(kSizes[i], Rows(kSizes[i], static_cast<uint32_t>(i)), as_steps));
  }
  return out;
}

const std::vector<Result>& PlainResults() {
  static const auto* results = [] {
    ExpertStack plain({});
    return new std::vector<Result>(ResultsOf(plain, /*as_steps=*/false));
  }();
  return *results;
}

TEST(CudaExpertSteps, ReplayedStepsHaveTheBitsOfPlainLaunches) {
  for (const bool graphs : {true, false}) {
    ExpertStack stack(WithArena(graphs));
    EXPECT_EQ(ResultsOf(stack, /*as_steps=*/true), PlainResults());
    EXPECT_EQ(ResultsOf(stack, /*as_steps=*/true), PlainResults());
    EXPECT_EQ(stack.kernels().graph_counts().launched > 0, graphs);
  }
}

TEST(CudaExpertSteps, CountTheTokensOfEveryExpert) {
  for (size_t i = 0; i < kSizes.size(); ++i) {
    const std::vector<int64_t>& tokens = PlainResults()[i].tokens;
    EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), int64_t{0}),
              kSizes[i] * kTopK * kLayers);
    // An expert gets a row once a layer.
    EXPECT_LE(*std::max_element(tokens.begin(), tokens.end()), kSizes[i] * kLayers);
  }
}

// The stream does nothing until somebody waits for it.
TEST(CudaExpertSteps, AStepWaitsForNothing) {
  for (const int64_t m : {int64_t{1}, kMaxRows}) {
    for (const bool graphs : {true, false}) {
      ExpertStack stack(WithArena(graphs));
      CudaKernels& kernels = stack.kernels();
      // In the first one scratch grows.
      (void)stack.Run(kMaxRows, Rows(kMaxRows, 1));
      kernels.Zero(stack.counters().data(), kCounterBytes);
      const std::unique_ptr<Marker> before = kernels.Mark();
      stack.Enqueue(m, Rows(m, 2));
      EXPECT_FALSE(before->Passed()) << m << " rows, graphs " << graphs;
      kernels.Synchronize();
      EXPECT_TRUE(before->Passed());
    }
  }
}

TEST(CudaExpertSteps, AStepIsOneSegmentAndOtherRoutesUpdateNoKernelOfItsGraph) {
  ExpertStack stack(WithArena(/*graphs=*/true));
  (void)stack.Run(kMaxRows, Rows(kMaxRows, 1));
  for (const int64_t m : {int64_t{1}, int64_t{20}}) {
    for (uint32_t i = 0; i < 2; ++i) (void)stack.Run(m, Rows(m, i));  // noted, then built
    const cuda::StepGraphsCounts before = stack.kernels().graph_counts();
    std::vector<int64_t> tokens;
    for (uint32_t i = 2; i < 7; ++i) {
      const Result result = stack.Run(m, Rows(m, i));
      EXPECT_NE(result.tokens, tokens) << "the same routes";
      tokens = result.tokens;
    }
    const cuda::StepGraphsCounts after = stack.kernels().graph_counts();
    EXPECT_EQ(after.launched, before.launched + 5);
    EXPECT_EQ(after.plain, before.plain);
    EXPECT_EQ(after.built, before.built);
    EXPECT_EQ(after.updated_nodes, before.updated_nodes);
  }
}

TEST(CudaExpertSteps, AllocateNothingAfterTheLargestOne) {
  ExpertStack stack(WithArena(/*graphs=*/true));
  (void)stack.Run(kMaxRows, Rows(kMaxRows, 1));
  const int64_t left = *stack.kernels().FreeBytes();
  stack.kernels().FreezeScratch();
  // All that was free is given away, as the KV cache takes it.
  const absl::StatusOr<Buffer> cache = stack.kernels().Allocate(left);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(ResultsOf(stack, /*as_steps=*/true), PlainResults());
  for (int64_t m = 1; m <= kMaxRows; m += 9) (void)stack.Run(m, Rows(m, 9));
}

// Each takes up what the one before leaves, and its counters come to the host in time.
TEST(CudaExpertSteps, StepsEnqueuedAheadHaveTheBitsOfStepsOneByOne) {
  constexpr int kSteps = 4;
  ExpertStack one_by_one(WithArena(/*graphs=*/true));
  std::vector<Result> expected;
  for (int i = 0; i < kSteps; ++i) {
    expected.push_back(one_by_one.Run(3, i == 0 ? Rows(3, 5) : std::vector<float>()));
  }
  EXPECT_NE(expected[0].tokens, expected[1].tokens);

  ExpertStack ahead(WithArena(/*graphs=*/true));
  std::vector<Buffer> counters;
  for (int i = 0; i < kSteps; ++i) {
    ahead.Enqueue(3, i == 0 ? Rows(3, 5) : std::vector<float>());
    absl::StatusOr<Buffer> host = ahead.kernels().AllocateHost(kCounterBytes);
    ASSERT_TRUE(host.ok()) << host.status();
    counters.push_back(*std::move(host));
    ahead.kernels().CopyOutLater(counters.back().data(), ahead.counters().data(), kCounterBytes);
  }
  EXPECT_EQ(ahead.Fetch(3), expected.back());
  for (int i = 0; i < kSteps; ++i) {
    const auto* tokens = counters[i].as<int64_t>();
    EXPECT_EQ(std::vector<int64_t>(tokens, tokens + kExperts), expected[i].tokens) << "step " << i;
  }
}

}  // namespace
}  // namespace phalanx::kernels
