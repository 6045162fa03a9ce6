// The CPU ops other than MatMul: one table of plain functions per instruction set, and front
// functions that split the work over a thread pool.
//
// A table's functions work on a range of independent units (rows, heads, leaves ...) and touch no
// memory of other units, so any split over threads gives the same bits. They expect flush-to-zero
// and denormals-are-zero to be set on the calling thread, as every pool thread does.
//
// Arguments mean what they mean in kernels/kernels.h; shapes are not checked here.
#ifndef PHALANX_KERNELS_CPU_OPS_H_
#define PHALANX_KERNELS_CPU_OPS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/choosing.h"
#include "kernels/kernels.h"
#include "kernels/tensor.h"

namespace phalanx::kernels {

class ThreadPool;

namespace cpu {

struct ChoiceScratch;

// One attention work unit: some query heads that read one KV head, some rows of one sequence, some
// stripes. attention.cc makes them.
struct AttentionTask {
  int32_t sequence = 0;   // index in AttentionArgs::sequences
  int32_t group = 0;      // index in AttentionScratch::groups
  int64_t row_begin = 0;  // rows relative to the sequence's first
  int64_t row_end = 0;
  int32_t stripe_begin = 0;  // absolute stripes
  int32_t stripe_end = 0;
};

// Query heads that share a KV head.
struct HeadGroup {
  int32_t kv_head = 0;
  int32_t begin = 0;  // into AttentionScratch::heads
  int32_t end = 0;
};

// Memory that attention reuses from call to call; belongs to one Kernels instance. Grows to the
// largest call and allocates nothing afterwards.
struct AttentionScratch {
  std::vector<HeadGroup> groups;
  std::vector<int32_t> heads;  // query heads, grouped by KV head
  std::vector<AttentionTask> tasks;
  std::vector<float> partials;
};

// A postfix program, as plain data.
struct MergeProgram {
  const int* steps = nullptr;
  int64_t count = 0;
};

struct OpTable {
  // Rows [begin, end).
  void (*gather_rows)(TensorView table, const int32_t* ids, int64_t first_id, TensorView out,
                      int64_t begin, int64_t end);
  void (*add_residual)(TensorView x, TensorView delta, const float* bias, int64_t begin,
                       int64_t end);
  void (*rms_norm)(TensorView x, const float* weight, float eps, TensorView out, int64_t begin,
                   int64_t end);
  void (*add_residual_rms_norm)(TensorView x, TensorView delta, const float* bias,
                                const float* weight, float eps, TensorView out, int64_t begin,
                                int64_t end);
  void (*silu_mul)(TensorView gate_up, const float* bias, int64_t n, TensorView out, int64_t begin,
                   int64_t end);
  // Query heads [begin, end) of rows [row_begin, row_end).
  void (*prepare_queries)(const QkvArgs& args, int64_t head_begin, int64_t head_end,
                          int64_t row_begin, int64_t row_end);
  // Keys and values of all rows, KV heads [begin, end). (Rows that share a block share cache
  // lines, so rows are not split.)
  void (*store_kv)(const QkvArgs& args, int64_t begin, int64_t end);
  // The task's rows of all query heads in heads[0, num_heads), which read KV head `kv_head`. With
  // `partials` they are written there, [row][head][stripe - args.stripe_begin][2 + d]; with null
  // the task covers all stripes and its outputs go to args.out. `scratch`: one thread's memory of
  // AttendScratchLayout::size floats (attention.h).
  void (*attend)(const AttentionArgs& args, const AttentionTask& task, const int32_t* heads,
                 int64_t num_heads, int32_t kv_head, float* scratch, float* partials);
  // Units [begin, end) of rows x heads. `scratch`: AttendScratchLayout::
  // MergeScratchFloats floats.
  void (*merge_attention)(const AttentionArgs& args, const float* partials, float* scratch,
                          int64_t begin, int64_t end);
  // Units [begin, end) of `count`; see Kernels::MergePartials. `scratch` as merge_attention's, for
  // num_in operands.
  void (*merge_partials)(const float* partials, int64_t d, int num_in, const MergeProgram* programs,
                         int64_t num_programs, float* scratch, float* out, int64_t begin,
                         int64_t end);
  // Units [begin, end) of rows x leaves.
  void (*log_sum_exp_leaves)(TensorView logits,
                             absl::Span<const std::pair<int64_t, int64_t>> leaves, MaxSum* out,
                             int64_t begin, int64_t end);
  // The best of columns [begin, end) of the row.
  Choice (*gumbel_argmax)(const float* logits, int64_t begin, int64_t end, float temperature,
                          const Cut& cut, const GumbelKey& key);
  // weights[j] = e^(logits[j] / temperature - scaled_max), 1 where the difference is 0: columns
  // [begin, end) of the row.
  void (*softmax_weights)(const float* logits, int64_t begin, int64_t end, float temperature,
                          float scaled_max, float* weights);
  // Rows [begin, end).
  void (*route)(const RouterArgs& args, int64_t begin, int64_t end);
  void (*combine_experts)(const CombineExpertsArgs& args, int64_t begin, int64_t end);
};

// The ops compiled for `path`; kAmx uses those of kAvx512. Precondition: the machine has the path.
const OpTable& Ops(CpuPath path);

void GatherRows(ThreadPool& pool, const OpTable& ops, TensorView table,
                absl::Span<const int32_t> ids, int64_t first_id, TensorView out);
void AddResidual(ThreadPool& pool, const OpTable& ops, TensorView x, TensorView delta,
                 const float* bias);
void RmsNorm(ThreadPool& pool, const OpTable& ops, TensorView x, const float* weight, float eps,
             TensorView out);
void AddResidualRmsNorm(ThreadPool& pool, const OpTable& ops, TensorView x, TensorView delta,
                        const float* bias, const float* weight, float eps, TensorView out);
void SiluMul(ThreadPool& pool, const OpTable& ops, TensorView gate_up, const float* bias, int64_t n,
             TensorView out);
int64_t KvBlockBytes(const KvShape& shape);
void QkvToCache(ThreadPool& pool, const OpTable& ops, const QkvArgs& args);
void CopyBlocks(ThreadPool& pool, const KvView& cache,
                absl::Span<const std::pair<int32_t, int32_t>> blocks);
void Attention(ThreadPool& pool, const OpTable& ops, AttentionScratch& scratch,
               const AttentionArgs& args);
void AttentionPartials(ThreadPool& pool, const OpTable& ops, AttentionScratch& scratch,
                       const AttentionArgs& args, float* partials);
void MergeAttention(ThreadPool& pool, const OpTable& ops, AttentionScratch& scratch,
                    const AttentionArgs& args, const float* partials);
void MergePartials(ThreadPool& pool, const OpTable& ops, const float* partials, int64_t count,
                   int64_t d, int num_in, absl::Span<const std::vector<int>> programs, float* out);
void RouteTopK(ThreadPool& pool, const OpTable& ops, const RouterArgs& args);
void CombineExperts(ThreadPool& pool, const OpTable& ops, const CombineExpertsArgs& args);
void GatherTokens(ThreadPool& pool, TensorView in, absl::Span<const int32_t> rows, TensorView out);
void LogSumExpLeaves(ThreadPool& pool, const OpTable& ops, TensorView logits,
                     absl::Span<const std::pair<int64_t, int64_t>> leaves, absl::Span<MaxSum> out);
void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits);
void ChooseRows(ThreadPool& pool, const OpTable& ops, ChoiceScratch& scratch, TensorView logits,
                absl::Span<const ChoiceRow> rows, Choice* out);

}  // namespace cpu
}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CPU_OPS_H_
