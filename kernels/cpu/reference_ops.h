// The plain reference of every op but MatMul: scalar loops straight from the text of
// kernels/kernels.h, one output element at a time. Tests compare every CPU path with these by
// memcmp; nothing else calls them.
//
// Arguments mean what they mean in kernels/kernels.h.
#ifndef PHALANX_KERNELS_CPU_REFERENCE_OPS_H_
#define PHALANX_KERNELS_CPU_REFERENCE_OPS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/kernels.h"

namespace phalanx::kernels::reference {

void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id, TensorView out);
void AddResidual(TensorView x, TensorView delta, const float* bias);
void RmsNorm(TensorView x, const float* weight, float eps, TensorView out);
void SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out);
// The cache has the CPU kernels' layout (kernels/cpu/kv_layout.h).
void QkvToCache(const QkvArgs& args);
void CopyBlocks(const KvView& cache, absl::Span<const std::pair<int32_t, int32_t>> blocks);
void Attention(const AttentionArgs& args);
void AttentionPartials(const AttentionArgs& args, float* partials);
void MergeAttention(const AttentionArgs& args, const float* partials);
void MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                   absl::Span<const std::vector<int>> programs, float* out);
void RouteTopK(const RouterArgs& args);
void CombineExperts(const CombineExpertsArgs& args);
void GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out);
void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                     absl::Span<MaxSum> out);
void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits);
Choice ChooseRow(TensorView logits, const ChoiceRow& row);

}  // namespace phalanx::kernels::reference

#endif  // PHALANX_KERNELS_CPU_REFERENCE_OPS_H_
