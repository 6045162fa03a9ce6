// Fronts of the ops for mixtures of experts but the matmul: they split rows over the thread pool.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/types/span.h"
#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels::cpu {
namespace {

// Elements worth waking another thread for.
constexpr int64_t kElementsPerChunk = 16384;

int64_t RowsPerChunk(int64_t elements) {
  return std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(elements, 1));
}

}  // namespace

void RouteTopK(ThreadPool& pool, const OpTable& ops, const RouterArgs& args) {
  const int64_t experts = args.logits.cols;
  const int64_t slots = args.logits.rows * args.top_k;
  PHALANX_CHECK(experts > 0 && experts <= kMaxExperts)
      << experts << " experts, at most " << kMaxExperts;
  PHALANX_CHECK(args.top_k > 0 && args.top_k <= experts)
      << "top_k " << args.top_k << " of " << experts << " experts";
  PHALANX_CHECK(static_cast<int64_t>(args.experts.size()) >= slots &&
                static_cast<int64_t>(args.weights.size()) >= slots)
      << "room for " << args.experts.size() << " experts and " << args.weights.size()
      << " weights of " << slots << " slots";
  // A logit costs about sixteen times a copied element, and each choice reads the row again.
  pool.ParallelFor(args.logits.rows, RowsPerChunk((16 + args.top_k) * experts),
                   [&](int64_t begin, int64_t end) { ops.route(args, begin, end); });
}

void CombineExperts(ThreadPool& pool, const OpTable& ops, const CombineExpertsArgs& args) {
  PHALANX_CHECK(args.top_k > 0) << "top_k " << args.top_k;
  PHALANX_CHECK(args.num_parts > 0 && args.num_parts <= kMaxStripes)
      << "num_parts " << args.num_parts << ", at most " << kMaxStripes;
  PHALANX_CHECK(static_cast<int64_t>(args.parts.size()) == args.rows * args.top_k * args.num_parts)
      << args.parts.size() << " parts for " << args.rows << " rows";
  pool.ParallelFor(args.rows, RowsPerChunk(args.top_k * args.num_parts * args.hidden),
                   [&](int64_t begin, int64_t end) { ops.combine_experts(args, begin, end); });
}

void GatherTokens(ThreadPool& pool, TensorView in, absl::Span<const int32_t> rows, TensorView out) {
  PHALANX_CHECK(in.dtype == out.dtype && out.cols <= in.stride)
      << out.cols << " columns of " << Name(out.dtype) << " from rows of " << in.stride << " "
      << Name(in.dtype);
  const int64_t size = SizeOf(in.dtype);
  pool.ParallelFor(static_cast<int64_t>(rows.size()), RowsPerChunk(out.cols),
                   [&](int64_t begin, int64_t end) {
                     const auto* from = static_cast<const uint8_t*>(in.data);
                     auto* to = static_cast<uint8_t*>(out.data);
                     for (int64_t i = begin; i < end; ++i) {
                       uint8_t* row = to + i * out.stride * size;
                       if (rows[i] < 0) {
                         std::memset(row, 0, out.cols * size);
                       } else {
                         std::memcpy(row, from + rows[i] * in.stride * size, out.cols * size);
                       }
                     }
                   });
}

}  // namespace phalanx::kernels::cpu
