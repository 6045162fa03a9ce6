#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "tests/kernels/emulation/fake_cublas.h"
#include "tests/kernels/host_memory_kernels.h"
#include "tests/kernels/kernel_sets.h"

namespace phalanx::kernels {
namespace {

// Every second op is a step of its own, recorded and replayed as the graph that ops of the same
// kernels had before it, whatever their sizes: so both ways are tested, and updates of every node.
class OpsInSteps : public CudaKernels {
 public:
  OpsInSteps(const CudaOptions& options, std::shared_ptr<cuda::DeviceMemory> memory)
      : CudaKernels(options, std::move(memory),
                    {.most_graphs = 16, .least_kernels = 1, .build_at_once = true}) {}

  void Zero(void* memory, int64_t bytes) override {
    const Step step(*this);
    CudaKernels::Zero(memory, bytes);
  }
  void CopyRows(TensorView in, TensorView out) override {
    const Step step(*this);
    CudaKernels::CopyRows(in, out);
  }
  void AddParts(absl::Span<const float* const> operands, absl::Span<const int> program, float* out,
                int64_t count) override {
    const Step step(*this);
    CudaKernels::AddParts(operands, program, out, count);
  }
  void OrInto(uint32_t* data, const uint32_t* other, int64_t count) override {
    const Step step(*this);
    CudaKernels::OrInto(data, other, count);
  }
  void MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) override {
    const Step step(*this);
    CudaKernels::MatMul(x, w, outs);
  }
  void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                  const Choice* chosen, TensorView out) override {
    const Step step(*this);
    CudaKernels::GatherRows(table, ids, first_id, chosen, out);
  }
  void AddResidual(TensorView x, TensorView delta, const float* bias) override {
    const Step step(*this);
    CudaKernels::AddResidual(x, delta, bias);
  }
  void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) override {
    const Step step(*this);
    CudaKernels::RmsNorm(x, weight, eps, out);
  }
  void AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias, const float* weight,
                          float eps, TensorView out) override {
    const Step step(*this);
    CudaKernels::AddResidualRmsNorm(x, delta, bias, weight, eps, out);
  }
  void SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) override {
    const Step step(*this);
    CudaKernels::SiluMul(gate_up, bias, n, out);
  }
  void MatMulSiluMul(TensorView x, const PackedWeight& w, TensorView gate_up, const float* bias,
                     int64_t n, TensorView out) override {
    const Step step(*this);
    CudaKernels::MatMulSiluMul(x, w, gate_up, bias, n, out);
  }
  void QkvToCache(const QkvArgs& args) override {
    const Step step(*this);
    CudaKernels::QkvToCache(args);
  }
  void CopyBlocks(const KvView& cache,
                  absl::Span<const std::pair<int32_t, int32_t>> blocks) override {
    const Step step(*this);
    CudaKernels::CopyBlocks(cache, blocks);
  }
  void Attention(const AttentionArgs& args) override {
    const Step step(*this);
    CudaKernels::Attention(args);
  }
  void AttentionPartials(const AttentionArgs& args, float* partials) override {
    const Step step(*this);
    CudaKernels::AttentionPartials(args, partials);
  }
  void MergeAttention(const AttentionArgs& args, const float* partials) override {
    const Step step(*this);
    CudaKernels::MergeAttention(args, partials);
  }
  void MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                     absl::Span<const std::vector<int>> programs, float* out) override {
    const Step step(*this);
    CudaKernels::MergePartials(partials, count, d, num_in, programs, out);
  }
  void RouteTopK(const RouterArgs& args) override {
    const Step step(*this);
    CudaKernels::RouteTopK(args);
  }
  void CombineExperts(const CombineExpertsArgs& args) override {
    const Step step(*this);
    CudaKernels::CombineExperts(args);
  }
  void GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) override {
    const Step step(*this);
    CudaKernels::GatherTokens(in, rows, out);
  }
  void GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                     absl::Span<const TensorView> outs) override {
    const Step step(*this);
    CudaKernels::GroupedMatMul(x, groups, outs);
  }
  void RunExperts(const ExpertsArgs& args) override {
    const Step step(*this);
    CudaKernels::RunExperts(args);
  }
  void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                       absl::Span<MaxSum> out) override {
    const Step step(*this);
    CudaKernels::LogSumExpLeaves(logits, leaves, out);
  }
  void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) override {
    const Step step(*this);
    CudaKernels::EditLogits(logits, edits);
  }
  void ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) override {
    const Step step(*this);
    CudaKernels::ChooseRows(logits, rows, out);
  }

 private:
  class Step {
   public:
    explicit Step(OpsInSteps& kernels) : kernels_(kernels) {
      if (kernels_.ops_++ % 2 == 0) kernels_.BeginStep(1);
    }
    ~Step() { kernels_.EndStep(); }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    OpsInSteps& kernels_;
  };

  int64_t ops_ = 0;
};

std::unique_ptr<Kernels> Emulated(Numerics numerics) {
  auto memory = cuda::DeviceMemory::Create(0, /*arena_bytes=*/0);
  EXPECT_TRUE(memory.ok()) << memory.status();
  auto kernels = std::make_unique<OpsInSteps>(
      CudaOptions{.device = 0, .pack_threads = 1, .numerics = numerics}, *std::move(memory));
  if (numerics == Numerics::kFast) {
    const absl::Status status = kernels->UseLibrary(emulation::FakeCublas());
    EXPECT_TRUE(status.ok()) << status;
  }
  return std::make_unique<HostMemoryKernels>(std::move(kernels), /*arena_bytes=*/0);
}

}  // namespace

const bool kBf16HasCpuBits = false;
const TestSize kTestSize = TestSize::kSmall;

std::vector<KernelSet> KernelSets() {
  return {{"emulated", [](int /*threads*/) { return Emulated(Numerics::kExact); }}};
}

std::vector<KernelSet> FastKernelSets() {
  return {{"emulated_fast", [](int /*threads*/) { return Emulated(Numerics::kFast); }, 16}};
}

std::vector<NamedKernels> AllKernels() {
  std::vector<NamedKernels> all;
  all.push_back({"emulated", KernelSets()[0].make(1)});
  return all;
}

}  // namespace phalanx::kernels
