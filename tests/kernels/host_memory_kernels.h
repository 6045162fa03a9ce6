// A device's op set over host memory: every op copies its operands to the device, runs there, waits
// and copies back what it wrote. So that one test body, which reads and writes plain arrays, serves
// every device.
#ifndef PHALANX_TESTS_KERNELS_HOST_MEMORY_KERNELS_H_
#define PHALANX_TESTS_KERNELS_HOST_MEMORY_KERNELS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::kernels {

class HostMemoryKernels : public Kernels {
 public:
  // Where operands go that fit.
  static constexpr int64_t kArenaBytes = int64_t{64} << 20;

  // With an arena of 0 bytes every operand is an allocation of its own: what goes past its end
  // shows where the device watches allocations, and an op takes longer.
  explicit HostMemoryKernels(std::unique_ptr<Kernels> device, int64_t arena_bytes = kArenaBytes);

  std::string Describe() const override { return device_->Describe(); }
  // Memory of the host.
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  void CopyIn(void* to, const void* from, int64_t bytes) override;
  void CopyOut(void* to, const void* from, int64_t bytes) override;
  void Synchronize() override { device_->Synchronize(); }
  void Zero(void* memory, int64_t bytes) override;
  void CopyRows(TensorView in, TensorView out) override;
  void AddParts(absl::Span<const float* const> operands, absl::Span<const int> program, float* out,
                int64_t count) override;
  void OrInto(uint32_t* data, const uint32_t* other, int64_t count) override;
  // Weights lie on the device.
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const WeightSpec& spec) override;
  int64_t PackedBytes(const WeightSpec& spec) const override { return device_->PackedBytes(spec); }
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInto(const WeightSpec& spec,
                                                         Buffer memory) override;
  std::unique_ptr<PackedWeight> WrapPacked(const WeightSpec& spec, Buffer memory) const override;
  absl::Status Back(void* memory, int64_t bytes) const override;
  void MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) override;
  void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                  const Choice* chosen, TensorView out) override;
  void AddResidual(TensorView x, TensorView delta, const float* bias) override;
  void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) override;
  void AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias, const float* weight,
                          float eps, TensorView out) override;
  void SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) override;
  void MatMulSiluMul(TensorView x, const PackedWeight& w, TensorView gate_up, const float* bias,
                     int64_t n, TensorView out) override;
  int64_t KvBlockBytes(const KvShape& shape) const override { return device_->KvBlockBytes(shape); }
  void QkvToCache(const QkvArgs& args) override;
  void CopyBlocks(const KvView& cache,
                  absl::Span<const std::pair<int32_t, int32_t>> blocks) override;
  void Attention(const AttentionArgs& args) override;
  void AttentionPartials(const AttentionArgs& args, float* partials) override;
  void MergeAttention(const AttentionArgs& args, const float* partials) override;
  void MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                     absl::Span<const std::vector<int>> programs, float* out) override;
  void RouteTopK(const RouterArgs& args) override;
  void CombineExperts(const CombineExpertsArgs& args) override;
  void GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) override;
  void GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                     absl::Span<const TensorView> outs) override;
  absl::StatusOr<std::unique_ptr<ExpertSet>> MakeExpertSet(
      std::vector<ExpertWeights> weights) override {
    return device_->MakeExpertSet(std::move(weights));
  }
  void RunExperts(const ExpertsArgs& args) override;
  void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                       absl::Span<MaxSum> out) override;
  void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) override;
  void ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) override;

 private:
  // One op's operands on the device: copied there as they are named, and back when the op is over.
  class Op;

  std::unique_ptr<Kernels> device_;
  Buffer arena_;
};

}  // namespace phalanx::kernels

#endif  // PHALANX_TESTS_KERNELS_HOST_MEMORY_KERNELS_H_
