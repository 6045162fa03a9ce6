// The op set on one CUDA device, profiles `exact` and `fast`.
//
// All work goes to one stream of the instance's own. Ops whose results lie on the host (RouteTopK,
// LogSumExpLeaves) wait for them; every other op returns once it is enqueued, having copied what it
// needs of host memory. An op that fails ends the process: a CUDA error in a step has cost the
// device's context.
//
// Between BeginStep and EndStep ops are recorded (recorder.h), and enqueued by Flush: at the step's
// end, before anything else touches the stream, and where a result is waited for.
#ifndef PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_
#define PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_graph.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/kernels.h"
#include "kernels/weight_plan.h"

namespace phalanx::kernels {

class CudaPackedWeight : public PackedWeight {
 public:
  CudaPackedWeight(WeightPlan plan, Numerics numerics);
  int64_t bytes() const override { return static_cast<int64_t>(data.bytes()); }
  int64_t unit_bytes() const;
  int64_t num_units() const;

  WeightPlan plan;
  cuda::MatMulParams params;  // all but x, outputs and rows
  // Of each part, where a product by a library can give it: row-major weights, a part's leaves side
  // by side in k and not all of them empty. Else empty.
  std::vector<PlacedLeaf> part_runs;
  Buffer data;
};

class CudaExpertSet : public ExpertSet {
 public:
  using ExpertSet::ExpertSet;
  Buffer pointers;  // const void* [2][experts]: weights of gate_up, then of down
};

// Made by CreateCudaKernels, which checks that the device is there.
class CudaKernels : public Kernels {
 public:
  CudaKernels(const CudaOptions& options, std::shared_ptr<cuda::DeviceMemory> memory,
              const cuda::StepGraphsOptions& graphs = {});
  ~CudaKernels() override;
  // Profile `fast`: products of many rows are `library`'s from here on. Takes its workspace.
  // RESOURCE_EXHAUSTED, FAILED_PRECONDITION.
  absl::Status UseLibrary(std::shared_ptr<const cuda::cublas::Library> library);

  std::string Describe() const override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  void CopyIn(void* device, const void* host, int64_t bytes) override;
  // Waits for the copy, and so for everything enqueued before it.
  void CopyOut(void* host, const void* device, int64_t bytes) override;
  void CopyOutLater(void* host, const void* device, int64_t bytes) override;
  void Synchronize() override;
  void BeginStep(int64_t rows) override;
  void EndStep() override;
  void Flush() override;
  void FreezeScratch() override { scratch_frozen_ = true; }
  bool host_accessible() const override { return false; }
  absl::StatusOr<int64_t> FreeBytes() const override;
  int64_t max_head_dim(DType cache) const override;
  absl::StatusOr<Buffer> AllocateHost(int64_t bytes) override;
  std::string DeviceId() const override { return device_id_; }
  void* native_stream() override {
    Flush();
    NoteWork();
    return stream_;
  }
  std::unique_ptr<Marker> Mark() override;
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
  // Device memory is there from the beginning.
  absl::Status Back(void* /*memory*/, int64_t /*bytes*/) const override { return absl::OkStatus(); }
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
  absl::StatusOr<std::unique_ptr<ExpertSet>> MakeExpertSet(
      std::vector<ExpertWeights> weights) override;
  void RunExperts(const ExpertsArgs& args) override;
  void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                       absl::Span<MaxSum> out) override;
  void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) override;
  void ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) override;

  // Where everything is enqueued, with all that was asked for so far: for timing and communicators.
  cudaStream_t stream() {
    Flush();
    return stream_;
  }
  cuda::StepGraphsCounts graph_counts() const { return graphs_.counts(); }
  bool early_starts() const { return graph_api_.early_starts(); }

 private:
  // An attention call's plan and where its arrays lie on the device, which every layer of a step
  // shares.
  struct StagedPlan {
    std::vector<AttentionSequence> sequences;
    int64_t row_begin = 0;
    int64_t row_end = 0;
    int64_t widest_group = 0;
    bool bf16 = false;
    int64_t few_rows = 0;
    cuda::AttentionPlan plan;
    int64_t turn = -1;  // of the staging: the pointers are good while it lasts
    const cuda::SequenceRows* sequence_rows = nullptr;
    const int32_t* tables = nullptr;
    const cuda::RowTile* few = nullptr;
    const cuda::RowTile* many = nullptr;
    const cuda::RowTile* tokens = nullptr;
    // MostFewBlocks, for the window and the stripes of the last call: layers mostly have the same.
    int64_t window = -1;
    int64_t stripes = 0;
    int64_t most_few_blocks = 0;
  };

  // The tiles of a product.
  struct Tiles {
    const cuda::MatMulTile* list = nullptr;    // null: of one weight, by rows
    int64_t count = 0;                         // at most
    const int32_t* count_on_device = nullptr;  // null: `count`
  };

  // Before an op: what it launches goes to this instance's recorder in a step, else to its device.
  // Ranks may be threads with devices of their own, and a thread may have several instances.
  void Enter();
  // Before any call of CUDA but launches: in the stream's order after what was recorded.
  void EnterStream();
  // The observer's: before anything of a step is enqueued, and before the host waits for it or the
  // step ends.
  void NoteWork();
  void NoteWorkEnds();
  // `scratch` with room for `bytes`.
  void* AtLeast(cuda::DeviceScratch& scratch, int64_t bytes);
  // The plan of rows [row_begin, row_end); good until the next call.
  const StagedPlan& PlanRows(const AttentionArgs& args, int64_t row_begin, int64_t row_end,
                             const cuda::HeadGroups& groups);
  const cuda::HeadGroups& GroupsOf(const AttentionArgs& args);
  // Clears what MergeRows won't write.
  void ClearOutput(const AttentionArgs& args, bool all_rows_are_written);
  absl::Status FillPacked(const WeightSpec& spec, CudaPackedWeight& weight);
  // Makes pack_buffers_ hold so much each. Nothing may be on its way from them.
  void GrowPackBuffers(int64_t bytes);
  // `x` with rows aligned to 16 bytes: itself, or a copy.
  TensorView AlignedRows(TensorView x);
  // Fills the parts of `params` that a call brings and enqueues it.
  void RunMatMul(TensorView x, const CudaPackedWeight& w, absl::Span<const TensorView> outs,
                 absl::Span<const ExpertRows> groups);
  // What of that doesn't depend on where rows are: the plan of `rows` rows in `num_runs` runs of at
  // most (or, for a plan by expectation, about) `most_rows`; and the launch, of rows that are
  // aligned.
  static cuda::MatMulShape ShapeOf(const CudaPackedWeight& w, int64_t rows, int64_t most_rows,
                                   int64_t num_runs);
  cuda::MatMulPlan PlanRows(const CudaPackedWeight& w, int64_t rows, int64_t most_rows,
                            int64_t num_runs) const;
  // Of one weight's rows.
  static Tiles TilesOf(int64_t rows, const cuda::MatMulPlan& plan);
  cuda::MatMulParams ParamsOf(TensorView x, const CudaPackedWeight& w, const cuda::MatMulPlan& plan,
                              const Tiles& tiles) const;
  void RunTiles(TensorView x, const CudaPackedWeight& w, absl::Span<const TensorView> outs,
                const cuda::MatMulPlan& plan, const Tiles& tiles);
  static void CheckMatMul(TensorView x, const CudaPackedWeight& w,
                          absl::Span<const TensorView> outs);
  // RunMatMul by the library; false where it can't, and then nothing was enqueued. Of F16 weights a
  // part is two products (f16_terms.h).
  bool RunGemm(TensorView x, const CudaPackedWeight& w, absl::Span<const TensorView> outs);
  // As PlanRows, for a kernel that computes gates, ups and what SiluMul makes of them, `out`,
  // without writing the former: nullopt where that isn't better, or `out` isn't as it needs.
  std::optional<cuda::MatMulPlan> PlanGated(const CudaPackedWeight& w, TensorView out,
                                            int64_t most_rows, int64_t num_runs) const;
  void RunGatedTiles(TensorView x, const CudaPackedWeight& w, const float* bias, TensorView out,
                     const cuda::MatMulPlan& plan, const Tiles& tiles);
  // All of an attention call's parameters but `partials`.
  cuda::AttentionParams ParamsOf(const AttentionArgs& args, const StagedPlan& plan,
                                 const cuda::HeadGroups& groups);
  // Profile `fast`: whether sequences of many rows are AttendPrefill's; enqueues them, and returns
  // those that are not.
  bool TakesPrefill(const AttentionArgs& args) const;
  absl::Span<const AttentionSequence> AttendPrefill(AttentionArgs args,
                                                    const cuda::HeadGroups& groups,
                                                    float* partials);
  // Attention of rows [row_begin, row_end) to partials, [row - row_begin][head][stripe][2 + d].
  void PartialsOf(const AttentionArgs& args, const StagedPlan& plan, const cuda::HeadGroups& groups,
                  float* partials);
  cuda::DeviceProgram PutProgram(absl::Span<const int> program, int num_in);
  // Where MergeRows writes each head; null: side by side.
  const int32_t* PutOutColumns(const AttentionArgs& args);
  void MergeRows(const AttentionArgs& args, const float* partials, int num_in, int64_t row_begin,
                 int64_t row_end, cuda::DeviceProgram program, const int32_t* out_column);
  // Copies results to the host and waits for them.
  void Fetch(void* host, const void* device, int64_t bytes);

  const int device_;
  const bool use_graphs_;
  const Numerics numerics_;
  StepObserver* const observer_;
  const std::shared_ptr<cuda::DeviceMemory> memory_;
  const cuda::OwnedStream owned_stream_;  // what is declared after it may use it to its own end
  const cudaStream_t stream_;
  std::string name_;
  std::string device_id_;
  int num_sms_ = 0;
  int64_t max_shared_ = 0;  // bytes a block may have
  ThreadPool pack_pool_;
  cuda::CudaGraphApi graph_api_;
  cuda::StepGraphs graphs_;
  cuda::Recorder recorder_;
  cuda::Staging staging_;
  bool in_step_ = false;
  bool recording_ = false;  // in a step, and with graphs
  bool at_work_ = false;    // what the observer was told last
  bool scratch_frozen_ = false;
  std::unique_ptr<cuda::Gemm> gemm_;  // of `fast`; its workspace is the matmuls' scratch
  cuda::DeviceScratch matmul_scratch_;
  cuda::DeviceScratch aligned_x_;
  cuda::DeviceScratch f16_terms_;  // of `fast`
  cuda::DeviceScratch partials_;
  cuda::DeviceScratch choices_;                 // of pieces of rows, and where rows are cut
  cuda::DeviceScratch cut_work_;                // of kernels that look for that
  cuda::DeviceScratch slots_;                   // of RunExperts: routes, places, tiles
  cuda::DeviceScratch results_;                 // what goes back to the host
  std::vector<ChoiceRow> cut_rows_;             // of the ChooseRows at hand, each cut once
  std::vector<int32_t> cut_of_;                 // which of them is a choice's; -1: none
  std::vector<char> fetched_;                   // results of an op that brings several
  char* pack_buffers_[2] = {nullptr, nullptr};  // pinned, made when first needed
  int64_t pack_buffer_bytes_ = 0;               // of each
  std::vector<cuda::MatMulTile> tiles_;         // of the GroupedMatMul at hand
  std::vector<cuda::Product> gemms_;            // of the MatMul at hand, by the library
  // The step's attention plans: as many as it has runs of rows, at most kMostPlans.
  std::vector<StagedPlan> plans_;
  size_t num_plans_ = 0;
  // The sequences of the Attention at hand: those that AttendPrefill takes, and the rest.
  std::vector<AttentionSequence> prefills_;
  std::vector<AttentionSequence> rest_;
  std::vector<int32_t> grouped_kv_head_of_;
  int64_t grouped_kv_heads_ = -1;
  cuda::HeadGroups head_groups_;  // of the two above
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CUDA_CUDA_KERNELS_H_
