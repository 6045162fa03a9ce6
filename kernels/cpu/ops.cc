// Fronts that split every op but attention over the thread pool, and the choice of table.
#include "kernels/cpu/ops.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/types/span.h"
#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cut.h"
#include "kernels/cpu/fp_environment.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels::cpu {

const OpTable& PortableOps();
#if defined(__x86_64__)
const OpTable& Avx2Ops();
const OpTable& Avx512Ops();
#endif

const OpTable& Ops(CpuPath path) {
#if defined(__x86_64__)
  if (path == CpuPath::kAvx2) return Avx2Ops();
  if (path == CpuPath::kAvx512 || path == CpuPath::kAmx) return Avx512Ops();
#endif
  PHALANX_CHECK(path == CpuPath::kPortable) << "no ops are compiled for " << Name(path);
  return PortableOps();
}

namespace {

// Elements worth waking another thread for.
constexpr int64_t kElementsPerChunk = 16384;
// Columns of one chunk of a choice.
constexpr int64_t kSampleChunk = 8192;

int64_t RowsPerChunk(int64_t cols) {
  return std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(cols, 1));
}

}  // namespace

void GatherRows(ThreadPool& pool, const OpTable& ops, TensorView table,
                absl::Span<const int32_t> ids, int64_t first_id, TensorView out) {
  pool.ParallelFor(ids.size(), RowsPerChunk(out.cols), [&](int64_t begin, int64_t end) {
    ops.gather_rows(table, ids.data(), first_id, out, begin, end);
  });
}

void AddResidual(ThreadPool& pool, const OpTable& ops, TensorView x, TensorView delta,
                 const float* bias) {
  pool.ParallelFor(x.rows, RowsPerChunk(x.cols), [&](int64_t begin, int64_t end) {
    ops.add_residual(x, delta, bias, begin, end);
  });
}

void RmsNorm(ThreadPool& pool, const OpTable& ops, TensorView x, const float* weight, float eps,
             TensorView out) {
  pool.ParallelFor(x.rows, RowsPerChunk(x.cols), [&](int64_t begin, int64_t end) {
    ops.rms_norm(x, weight, eps, out, begin, end);
  });
}

void AddResidualRmsNorm(ThreadPool& pool, const OpTable& ops, TensorView x, TensorView delta,
                        const float* bias, const float* weight, float eps, TensorView out) {
  pool.ParallelFor(x.rows, RowsPerChunk(x.cols), [&](int64_t begin, int64_t end) {
    ops.add_residual_rms_norm(x, delta, bias, weight, eps, out, begin, end);
  });
}

void SiluMul(ThreadPool& pool, const OpTable& ops, TensorView gate_up, const float* bias, int64_t n,
             TensorView out) {
  // A column costs about eight times a copied one.
  pool.ParallelFor(gate_up.rows, RowsPerChunk(8 * n), [&](int64_t begin, int64_t end) {
    ops.silu_mul(gate_up, bias, n, out, begin, end);
  });
}

int64_t KvBlockBytes(const KvShape& shape) { return KvLayout(shape).block_bytes; }

void QkvToCache(ThreadPool& pool, const OpTable& ops, const QkvArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  PHALANX_CHECK(d > 0 && d <= kMaxHeadDim) << "head_dim " << d << ", at most " << kMaxHeadDim;
  PHALANX_CHECK(args.rotary_dim % 2 == 0 && args.rotary_dim <= d)
      << "rotary_dim " << args.rotary_dim << " of head_dim " << d;
  // Keys and values first, by head: rows share cache lines of a block. Then the queries, by row.
  const int64_t rows = args.qkv.rows;
  const int64_t heads_per_chunk =
      std::max<int64_t>(1, RowsPerChunk(8 * d * std::max<int64_t>(rows, 1)));
  pool.ParallelFor(args.cache.shape.num_kv_heads, heads_per_chunk,
                   [&](int64_t begin, int64_t end) { ops.store_kv(args, begin, end); });
  pool.ParallelFor(rows, RowsPerChunk(4 * d * args.num_heads), [&](int64_t begin, int64_t end) {
    ops.prepare_queries(args, 0, args.num_heads, begin, end);
  });
}

void CopyBlocks(ThreadPool& pool, const KvView& cache,
                absl::Span<const std::pair<int32_t, int32_t>> blocks) {
  const int64_t bytes = KvBlockBytes(cache.shape);
  auto* base = static_cast<uint8_t*>(cache.data);
  // In order on one thread: a destination may be a later pair's source.
  pool.ParallelFor(1, 1, [&](int64_t, int64_t) {
    for (const auto& [source, destination] : blocks) {
      if (source == destination) continue;
      std::memcpy(base + destination * bytes, base + source * bytes, bytes);
    }
  });
}

void LogSumExpLeaves(ThreadPool& pool, const OpTable& ops, TensorView logits,
                     absl::Span<const std::pair<int64_t, int64_t>> leaves, absl::Span<MaxSum> out) {
  const int64_t units = logits.rows * static_cast<int64_t>(leaves.size());
  if (units == 0) return;
  const int64_t leaf_cols = logits.cols / static_cast<int64_t>(leaves.size());
  pool.ParallelFor(units, RowsPerChunk(8 * leaf_cols), [&](int64_t begin, int64_t end) {
    ops.log_sum_exp_leaves(logits, leaves, out.data(), begin, end);
  });
}

void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) {
  const ScopedFpEnvironment environment;
  for (const LogitEdit& edit : edits) {
    float& logit = logits.f32()[edit.row * logits.stride + edit.id];
    logit = Edited(logit, edit);
  }
}

namespace {

// The best of one row.
Choice ChooseRow(ThreadPool& pool, const OpTable& ops, std::vector<Choice>& choices,
                 absl::Span<const float> logits, const ChoiceRow& row, const Cut& cut) {
  const int64_t n = static_cast<int64_t>(logits.size());
  const int64_t chunks = (n + kSampleChunk - 1) / kSampleChunk;
  choices.resize(std::max<size_t>(choices.size(), chunks));
  pool.ParallelFor(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      choices[chunk] =
          ops.gumbel_argmax(logits.data(), chunk * kSampleChunk,
                            std::min(n, (chunk + 1) * kSampleChunk), row.temperature, cut, row.key);
    }
  });
  // Chunks in rising ids: "greater" keeps the lower id of a tie.
  Choice best{-1, -std::numeric_limits<float>::infinity()};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (choices[chunk].value > best.value) best = choices[chunk];
  }
  return best;
}

}  // namespace

void ChooseRows(ThreadPool& pool, const OpTable& ops, ChoiceScratch& scratch, TensorView logits,
                absl::Span<const ChoiceRow> rows, Choice* out) {
  Cut cut = kNoCut;
  for (size_t i = 0; i < rows.size(); ++i) {
    const absl::Span<const float> row(logits.f32() + rows[i].row * logits.stride, logits.cols);
    // The samples of one request share their row.
    if (i == 0 || !SameCut(rows[i], rows[i - 1])) {
      cut = HasCut(rows[i]) ? CutRow(pool, ops, scratch.cut, row, rows[i]) : kNoCut;
    }
    out[i] = ChooseRow(pool, ops, scratch.choices, row, rows[i], cut);
  }
}

}  // namespace phalanx::kernels::cpu
