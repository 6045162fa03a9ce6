// The op set on one CUDA device, profile `exact`.
//
// All work goes to one stream of the instance's own. Ops whose results lie on the host (RouteTopK,
// LogSumExpLeaves, GumbelArgmax) wait for them; every other op returns once it is enqueued, having
// copied what it needs of host memory. An op that fails ends the process: a CUDA error in a step
// has cost the device's context.
#ifndef PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_
#define PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/matmul.h"
#include "kernels/kernels.h"
#include "kernels/weight_plan.h"

namespace phalanx::kernels {

class CudaPackedWeight : public PackedWeight {
 public:
  explicit CudaPackedWeight(WeightPlan plan);
  int64_t bytes() const override { return static_cast<int64_t>(data.bytes()); }
  int64_t unit_bytes() const;
  int64_t num_units() const;

  WeightPlan plan;
  cuda::MatMulParams params;  // all but x, outputs and rows
  Buffer data;
};

// Made by CreateCudaKernels, which checks that the device is there.
class CudaKernels : public Kernels {
 public:
  explicit CudaKernels(const CudaOptions& options);
  ~CudaKernels() override;

  std::string Describe() const override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  void CopyIn(void* device, const void* host, int64_t bytes) override;
  // Waits for the copy, and so for everything enqueued before it.
  void CopyOut(void* host, const void* device, int64_t bytes) override;
  void Synchronize() override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const WeightSpec& spec) override;
  int64_t PackedBytes(const WeightSpec& spec) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackInto(const WeightSpec& spec,
                                                         Buffer memory) override;
  std::unique_ptr<PackedWeight> WrapPacked(const WeightSpec& spec, Buffer memory) const override;
  // Device memory is there from the beginning.
  absl::Status Back(void* /*memory*/, int64_t /*bytes*/) const override { return absl::OkStatus(); }
  void MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) override;
  void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                  TensorView out) override;
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
  // The logits may lie on the device or on the host.
  void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                       absl::Span<MaxSum> out) override;
  Choice GumbelArgmax(absl::Span<const float> logits, int32_t first_id, float temperature,
                      float threshold, const GumbelKey& key) override;

  // For timing and graphs: where everything is enqueued.
  cudaStream_t stream() const { return stream_; }

 private:
  // Before any call of CUDA: ranks may be threads with devices of their own.
  void Enter() const;
  absl::Status FillPacked(const WeightSpec& spec, CudaPackedWeight& weight);
  // `x` with rows aligned to 16 bytes: itself, or a copy.
  TensorView AlignedRows(TensorView x);
  // `floats` that are on the device, or a copy there.
  const float* OnDevice(const float* data, int64_t floats);
  // Fills the parts of `params` that a call brings and enqueues it.
  void RunMatMul(TensorView x, const CudaPackedWeight& w, absl::Span<const TensorView> outs,
                 absl::Span<const ExpertRows> groups);
  // Attention of rows [row_begin, row_end) to partials, [row - row_begin][head][stripe][2 + d].
  void PartialsOf(const AttentionArgs& args, const cuda::AttentionPlan& plan, int64_t row_begin,
                  const cuda::HeadGroups& groups, float* partials);
  cuda::DeviceProgram PutProgram(absl::Span<const int> program, int num_in);
  void MergeRows(const AttentionArgs& args, const float* partials, int num_in, int64_t row_begin,
                 int64_t row_end, cuda::DeviceProgram program, const int32_t* out_column);
  // Copies results to the host and waits for them.
  void Fetch(void* host, const void* device, int64_t bytes);

  const int device_;
  std::string name_;
  int num_sms_ = 0;
  int64_t max_shared_ = 0;  // bytes a block may have
  cudaStream_t stream_ = nullptr;
  ThreadPool pack_pool_;
  std::unique_ptr<cuda::Staging> staging_;
  cuda::DeviceScratch matmul_scratch_;
  cuda::DeviceScratch aligned_x_;
  cuda::DeviceScratch partials_;
  cuda::DeviceScratch results_;                 // what goes back to the host
  cuda::DeviceScratch host_rows_;               // logits that came from the host
  char* pack_buffers_[2] = {nullptr, nullptr};  // pinned, made when first needed
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_
