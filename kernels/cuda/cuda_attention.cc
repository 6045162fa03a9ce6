// Attention of CudaKernels.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/tiling.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;

// Partials of an attention call that are in memory at once.
constexpr int64_t kPartialBytes = int64_t{64} << 20;

void CheckArgs(const AttentionArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  const int64_t most =
      args.cache.shape.dtype == DType::kBF16 ? cuda::kMaxMmaHeadDim : cuda::kMaxHeadDim;
  PHALANX_CHECK(d > 0 && d <= most) << "head_dim " << d << ", at most " << most
                                    << " for a cache of " << Name(args.cache.shape.dtype);
  PHALANX_CHECK(args.num_stripes > 0 && args.num_stripes <= cuda::kMaxPartials)
      << "num_stripes " << args.num_stripes << ", at most " << cuda::kMaxPartials;
  PHALANX_CHECK(args.num_partials >= 0 && args.num_partials <= cuda::kMaxPartials)
      << "num_partials " << args.num_partials << ", at most " << cuda::kMaxPartials;
}

TensorView Rows(TensorView t, int64_t begin, int64_t end) {
  t.data = static_cast<char*>(t.data) + begin * t.stride * SizeOf(t.dtype);
  t.rows = end - begin;
  return t;
}

}  // namespace

cuda::DeviceProgram CudaKernels::PutProgram(absl::Span<const int> program, int num_in) {
  cuda::DeviceProgram out;
  out.depth = cuda::ProgramDepth(program, num_in);
  out.codes = staging_->Put(program);
  out.steps = static_cast<int>(program.size());
  return out;
}

void CudaKernels::PartialsOf(const AttentionArgs& args, const cuda::AttentionPlan& plan,
                             int64_t row_begin, const cuda::HeadGroups& groups, float* partials) {
  cuda::AttentionParams p;
  p.q = Rows(args.q, row_begin, args.q.rows);
  p.num_heads = args.num_heads;
  p.head_dim = args.cache.shape.head_dim;
  p.scale = args.scale;
  p.window = args.window;
  p.layout = cuda::KvLayout(args.cache.shape.dtype, args.cache.shape.num_kv_heads, p.head_dim);
  p.cache = args.cache.data;
  p.sequences = staging_->Put(absl::MakeConstSpan(plan.sequences));
  p.tables = staging_->Put(absl::MakeConstSpan(plan.tables));
  p.groups = staging_->Put(absl::MakeConstSpan(groups.groups));
  p.heads = staging_->Put(absl::MakeConstSpan(groups.heads));
  p.num_groups = static_cast<int>(groups.groups.size());
  p.num_stripes = args.num_stripes;
  p.stripe_begin = args.stripe_begin;
  p.stripe_end = args.stripe_end;
  p.partials = partials;
  const auto put = [&](const std::vector<cuda::RowTile>& tiles) {
    return staging_->Put(absl::MakeConstSpan(tiles));
  };
  const auto count = [](const auto& tiles) { return static_cast<int64_t>(tiles.size()); };
  if (!plan.many.empty()) {
    CheckCuda(cuda::AttendMany(p, put(plan.many), count(plan.many), stream_), "Attention");
  }
  if (!plan.few.empty()) {
    CheckCuda(cuda::AttendFew(p, put(plan.few), count(plan.few), plan.most_few_rows, stream_),
              "Attention");
  }
  if (!plan.tokens.empty()) {
    CheckCuda(cuda::AttendChain(p, put(plan.tokens), count(plan.tokens), stream_), "Attention");
  }
}

void CudaKernels::MergeRows(const AttentionArgs& args, const float* partials, int num_in,
                            int64_t row_begin, int64_t row_end, cuda::DeviceProgram program,
                            const int32_t* out_column) {
  CheckCuda(cuda::MergeAttention(partials, args.num_heads, args.cache.shape.head_dim, num_in,
                                 program, out_column, Rows(args.out, row_begin, row_end), stream_),
            "MergeAttention");
}

void CudaKernels::Attention(const AttentionArgs& given) {
  CheckArgs(given);
  Enter();
  AttentionArgs args = given;
  args.stripe_begin = 0;
  args.stripe_end = args.num_stripes;
  const bool bf16 = args.cache.shape.dtype == DType::kBF16;
  if (bf16) args.q = AlignedRows(args.q);
  CheckCuda(cuda::ZeroMatrix(args.out, stream_), "Attention");
  if (args.num_heads == 0) return;
  const int64_t d = args.cache.shape.head_dim;
  const cuda::HeadGroups groups = cuda::GroupHeads(args.kv_head_of, args.cache.shape.num_kv_heads);
  const int64_t step = cuda::AttentionRows(args.num_heads, args.num_stripes, d, kPartialBytes);
  const int64_t row_floats = args.num_heads * args.num_stripes * (2 + d);
  auto* partials = static_cast<float*>(
      partials_.AtLeast(std::min(step, args.q.rows) * row_floats * SizeOf(DType::kF32)));
  for (int64_t begin = 0; begin < args.q.rows; begin += step) {
    const int64_t end = std::min(args.q.rows, begin + step);
    const cuda::AttentionPlan plan =
        cuda::PlanAttention(args.sequences, begin, end, groups.widest, bf16);
    PartialsOf(args, plan, begin, groups, partials);
    // Staged anew for each run of rows: what is staged lives for an op or two only.
    const cuda::DeviceProgram program = PutProgram(args.stripe_program, args.num_stripes);
    const int32_t* out_column = staging_->Put(args.out_column);
    for (const auto& [from, to] : plan.runs) {
      MergeRows(args, partials + from * row_floats, args.num_stripes, begin + from, begin + to,
                program, out_column);
    }
  }
}

void CudaKernels::AttentionPartials(const AttentionArgs& given, float* partials) {
  CheckArgs(given);
  Enter();
  AttentionArgs args = given;
  const bool bf16 = args.cache.shape.dtype == DType::kBF16;
  if (bf16) args.q = AlignedRows(args.q);
  const cuda::HeadGroups groups = cuda::GroupHeads(args.kv_head_of, args.cache.shape.num_kv_heads);
  const cuda::AttentionPlan plan =
      cuda::PlanAttention(args.sequences, 0, args.q.rows, groups.widest, bf16);
  PartialsOf(args, plan, 0, groups, partials);
}

void CudaKernels::MergeAttention(const AttentionArgs& args, const float* partials) {
  CheckArgs(args);
  Enter();
  CheckCuda(cuda::ZeroMatrix(args.out, stream_), "MergeAttention");
  if (args.num_heads == 0) return;
  const int num_in = args.num_partials > 0 ? args.num_partials : args.num_stripes;
  const cuda::DeviceProgram program = PutProgram(args.stripe_program, num_in);
  MergeRows(args, partials, num_in, 0, args.out.rows, program, staging_->Put(args.out_column));
}

void CudaKernels::MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                                absl::Span<const std::vector<int>> programs, float* out) {
  PHALANX_CHECK(d > 0 && d <= cuda::kMaxHeadDim)
      << "head_dim " << d << ", at most " << cuda::kMaxHeadDim;
  PHALANX_CHECK(num_in > 0 && num_in <= cuda::kMaxPartials)
      << "num_in " << num_in << ", at most " << cuda::kMaxPartials;
  Enter();
  for (size_t i = 0; i < programs.size(); ++i) {
    CheckCuda(
        cuda::MergePartials(partials, count, d, num_in, PutProgram(programs[i], num_in),
                            static_cast<int>(i), static_cast<int>(programs.size()), out, stream_),
        "MergePartials");
  }
}

}  // namespace phalanx::kernels
