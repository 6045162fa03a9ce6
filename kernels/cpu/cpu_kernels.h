// The op set on CPUs.
#ifndef PHALANX_KERNELS_CPU_CPU_KERNELS_H_
#define PHALANX_KERNELS_CPU_CPU_KERNELS_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cut.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/tree_sum.h"

namespace phalanx::kernels {

// One path and one pool of threads. Made by CreateCpuKernels, which checks that the machine has the
// path.
class CpuKernels : public Kernels {
 public:
  explicit CpuKernels(const CpuOptions& options);

  std::string Describe() const override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  void CopyIn(void* device, const void* host, int64_t bytes) override;
  void CopyOut(void* host, const void* device, int64_t bytes) override;
  void Synchronize() override {}
  void Zero(void* memory, int64_t bytes) override;
  void CopyRows(TensorView in, TensorView out) override;
  void AddParts(absl::Span<const float* const> operands, absl::Span<const int> program, float* out,
                int64_t count) override;
  void OrInto(uint32_t* data, const uint32_t* other, int64_t count) override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const WeightSpec& spec) override;
  int64_t PackedBytes(const WeightSpec& spec) const override;
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
  int64_t KvBlockBytes(const KvShape& shape) const override;
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
  void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                       absl::Span<MaxSum> out) override;
  void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) override;
  void ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) override;

 private:
  const CpuPath path_;
  ThreadPool pool_;
  const cpu::OpTable& ops_;
  const cpu::MatMulTable& matmul_;
  cpu::AttentionScratch attention_scratch_;
  cpu::ChoiceScratch choice_scratch_;
  std::vector<int32_t> ids_;  // of GatherRows, with what was chosen
  TreeSum tree_sum_;
  Buffer packed_x_;  // MatMul's left operand as the path's kernels want it
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_CPU_KERNELS_H_
