// Attention of CudaKernels.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/moves.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/tiling.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;
using cuda::Staged;

// Partials of an attention call that are in memory at once.
constexpr int64_t kPartialBytes = int64_t{64} << 20;

void CheckArgs(const AttentionArgs& args, int64_t most) {
  const int64_t d = args.cache.shape.head_dim;
  PHALANX_CHECK(d > 0 && d <= most) << "head_dim " << d << ", at most " << most
                                    << " for a cache of " << Name(args.cache.shape.dtype);
  PHALANX_CHECK(args.scale > 0) << "scale " << args.scale;
  PHALANX_CHECK(args.num_stripes > 0 && args.num_stripes <= cuda::kMaxPartials)
      << "num_stripes " << args.num_stripes << ", at most " << cuda::kMaxPartials;
  PHALANX_CHECK(args.num_partials >= 0 && args.num_partials <= cuda::kMaxPartials)
      << "num_partials " << args.num_partials << ", at most " << cuda::kMaxPartials;
}

// Attention plans that a step remembers: one for each run of rows that a call is cut into.
constexpr size_t kMostPlans = 32;

bool SameRows(const AttentionSequence& a, const AttentionSequence& b) {
  return a.row_begin == b.row_begin && a.row_count == b.row_count && a.start == b.start &&
         a.block_table == b.block_table;
}

// Whether head h's columns of the output are those from h * head_dim on.
bool HeadsLieSideBySide(const AttentionArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  for (int64_t head = 0; head < args.num_heads; ++head) {
    if (args.out_column[head] != head * d) return false;
  }
  return true;
}

int64_t Count(const std::vector<cuda::RowTile>& tiles) {
  return static_cast<int64_t>(tiles.size());
}

TensorView Rows(TensorView t, int64_t begin, int64_t end) {
  t.data = static_cast<char*>(t.data) + begin * t.stride * SizeOf(t.dtype);
  t.rows = end - begin;
  return t;
}

}  // namespace

int64_t CudaKernels::max_head_dim(DType cache) const {
  return cache == DType::kBF16 ? cuda::kMaxMmaHeadDim : kMaxHeadDim;
}

cuda::DeviceProgram CudaKernels::PutProgram(absl::Span<const int> program, int num_in) {
  cuda::DeviceProgram out;
  out.depth = cuda::ProgramDepth(program, num_in);
  out.codes = staging_.Put(Staged::kProgram, program);
  out.steps = static_cast<int>(program.size());
  out.tree = cuda::IsTree(program, num_in) ? num_in : 0;
  return out;
}

const int32_t* CudaKernels::PutOutColumns(const AttentionArgs& args) {
  if (HeadsLieSideBySide(args)) return nullptr;
  return staging_.Put(Staged::kColumns, args.out_column);
}

const cuda::HeadGroups& CudaKernels::GroupsOf(const AttentionArgs& args) {
  const int64_t num_kv_heads = args.cache.shape.num_kv_heads;
  if (grouped_kv_heads_ != num_kv_heads ||
      absl::MakeConstSpan(grouped_kv_head_of_) != args.kv_head_of) {
    head_groups_ = cuda::GroupHeads(args.kv_head_of, num_kv_heads);
    grouped_kv_head_of_.assign(args.kv_head_of.begin(), args.kv_head_of.end());
    grouped_kv_heads_ = num_kv_heads;
  }
  return head_groups_;
}

const CudaKernels::StagedPlan& CudaKernels::PlanRows(const AttentionArgs& args, int64_t row_begin,
                                                     int64_t row_end,
                                                     const cuda::HeadGroups& groups) {
  const bool bf16 = args.cache.shape.dtype == DType::kBF16;
  const int64_t few_rows = cuda::FewAttentionRows(cuda::LayoutOf(args.cache.shape), max_shared_);
  const auto wanted = [&](const StagedPlan& plan) {
    return plan.row_begin == row_begin && plan.row_end == row_end &&
           plan.widest_group == groups.widest && plan.bf16 == bf16 && plan.few_rows == few_rows &&
           std::equal(plan.sequences.begin(), plan.sequences.end(), args.sequences.begin(),
                      args.sequences.end(), SameRows);
  };
  const auto known = plans_.begin() + static_cast<int64_t>(num_plans_);
  auto found = std::find_if(plans_.begin(), known, wanted);
  if (found == known) {
    if (num_plans_ == kMostPlans) num_plans_ = 0;
    if (num_plans_ == plans_.size()) plans_.emplace_back();
    found = plans_.begin() + static_cast<int64_t>(num_plans_);
    // Outside a step tables may change from call to call, so nothing is remembered.
    if (in_step_) ++num_plans_;
    found->sequences.assign(args.sequences.begin(), args.sequences.end());
    found->row_begin = row_begin;
    found->row_end = row_end;
    found->widest_group = groups.widest;
    found->bf16 = bf16;
    found->few_rows = few_rows;
    found->plan =
        cuda::PlanAttention(args.sequences, row_begin, row_end, groups.widest, bf16, few_rows);
    found->turn = -1;
    found->window = -1;
  }
  if (found->window != args.window || found->stripes != args.num_stripes) {
    found->window = args.window;
    found->stripes = args.num_stripes;
    found->most_few_blocks = cuda::MostFewBlocks(found->plan, args.window, args.num_stripes);
  }
  // Whatever turns the staging while these are put leaves them good for this op.
  if (found->turn == staging_.turns()) return *found;
  found->turn = staging_.turns();
  const cuda::AttentionPlan& plan = found->plan;
  found->sequence_rows = staging_.Put(Staged::kSequences, absl::MakeConstSpan(plan.sequences));
  found->tables = staging_.Put(Staged::kTables, absl::MakeConstSpan(plan.tables));
  found->few = staging_.Put(Staged::kFewTiles, absl::MakeConstSpan(plan.few));
  found->many = staging_.Put(Staged::kManyTiles, absl::MakeConstSpan(plan.many));
  found->tokens = staging_.Put(Staged::kTokenTiles, absl::MakeConstSpan(plan.tokens));
  return *found;
}

cuda::AttentionParams CudaKernels::ParamsOf(const AttentionArgs& args, const StagedPlan& staged,
                                            const cuda::HeadGroups& groups) {
  cuda::AttentionParams p;
  p.q = Rows(args.q, staged.row_begin, args.q.rows);
  p.num_heads = args.num_heads;
  p.head_dim = args.cache.shape.head_dim;
  p.scale = args.scale;
  p.window = args.window;
  p.layout = cuda::LayoutOf(args.cache.shape);
  p.cache = args.cache.data;
  p.sequences = staged.sequence_rows;
  p.tables = staged.tables;
  p.groups = staging_.Put(Staged::kHeadGroups, absl::MakeConstSpan(groups.groups));
  p.heads = staging_.Put(Staged::kHeads, absl::MakeConstSpan(groups.heads));
  p.num_groups = static_cast<int>(groups.groups.size());
  p.num_stripes = args.num_stripes;
  p.stripe_begin = args.stripe_begin;
  p.stripe_end = args.stripe_end;
  return p;
}

void CudaKernels::PartialsOf(const AttentionArgs& args, const StagedPlan& staged,
                             const cuda::HeadGroups& groups, float* partials) {
  cuda::AttentionParams p = ParamsOf(args, staged, groups);
  p.partials = partials;
  const cuda::AttentionPlan& plan = staged.plan;
  if (!plan.many.empty()) {
    CheckCuda(cuda::AttendMany(p, staged.many, Count(plan.many), stream_), "Attention");
  }
  if (!plan.few.empty()) {
    const int64_t blocks = Count(plan.few) * p.num_groups * (p.stripe_end - p.stripe_begin);
    const int warps = cuda::FewAttentionWarps(p.layout, plan.most_few_rows, staged.most_few_blocks,
                                              blocks, num_sms_, max_shared_);
    CheckCuda(cuda::AttendFew(p, staged.few, Count(plan.few), plan.most_few_rows,
                              staged.most_few_blocks, warps, stream_),
              "Attention");
  }
  if (!plan.tokens.empty()) {
    CheckCuda(cuda::AttendChain(p, staged.tokens, Count(plan.tokens), stream_), "Attention");
  }
}

bool CudaKernels::TakesPrefill(const AttentionArgs& args) const {
  const KvShape& shape = args.cache.shape;
  return numerics_ == Numerics::kFast && shape.dtype == DType::kBF16 &&
         cuda::IsPrefillHeadDim(shape.head_dim) &&
         cuda::PrefillAttentionBytes(cuda::LayoutOf(shape)) <= max_shared_;
}

absl::Span<const AttentionSequence> CudaKernels::AttendPrefill(AttentionArgs args,
                                                               const cuda::HeadGroups& groups,
                                                               float* partials) {
  prefills_.clear();
  rest_.clear();
  for (const AttentionSequence& sequence : args.sequences) {
    (cuda::AreMany(sequence.row_count * groups.widest) ? prefills_ : rest_).push_back(sequence);
  }
  if (prefills_.empty()) return rest_;
  args.sequences = prefills_;
  const StagedPlan& staged = PlanRows(args, 0, args.q.rows, groups);
  const cuda::AttentionPlan& plan = staged.plan;
  cuda::AttentionParams params = ParamsOf(args, staged, groups);
  const int64_t piece_bytes =
      args.num_heads * (2 + args.cache.shape.head_dim) * SizeOf(DType::kF32);  // of a row
  const int pieces = cuda::PrefillPieces(plan, params.num_groups, args.window, num_sms_,
                                         partials_.bytes() / (args.q.rows * piece_bytes));
  params.partials = partials;
  const int32_t* out_column = staging_.Put(Staged::kColumns, args.out_column);
  CheckCuda(cuda::AttendPrefill(params, staged.many, Count(plan.many), pieces, out_column, args.out,
                                stream_),
            "Attention");
  if (pieces == 1) return rest_;
  std::vector<int> program = {0};
  for (int i = 1; i < pieces; ++i) program.insert(program.end(), {i, -1});
  const cuda::DeviceProgram in_turn = PutProgram(program, pieces);
  out_column = PutOutColumns(args);
  for (const auto& [from, to] : plan.runs) {
    MergeRows(args, partials + from * pieces * piece_bytes / SizeOf(DType::kF32), pieces, from, to,
              in_turn, out_column);
  }
  return rest_;
}

void CudaKernels::ClearOutput(const AttentionArgs& args, bool all_rows_are_written) {
  const int64_t d = args.cache.shape.head_dim;
  const bool whole =
      all_rows_are_written && args.num_heads * d == args.out.cols && HeadsLieSideBySide(args);
  if (!whole) CheckCuda(cuda::ZeroBytes(cuda::BytesOf(args.out), stream_), "Attention");
}

void CudaKernels::MergeRows(const AttentionArgs& args, const float* partials, int num_in,
                            int64_t row_begin, int64_t row_end, cuda::DeviceProgram program,
                            const int32_t* out_column) {
  CheckCuda(cuda::MergeAttention(partials, args.num_heads, args.cache.shape.head_dim, num_in,
                                 program, out_column, Rows(args.out, row_begin, row_end), stream_),
            "MergeAttention");
}

void CudaKernels::Attention(const AttentionArgs& given) {
  CheckArgs(given, max_head_dim(given.cache.shape.dtype));
  Enter();
  AttentionArgs args = given;
  args.stripe_begin = 0;
  args.stripe_end = args.num_stripes;
  if (args.cache.shape.dtype == DType::kBF16) args.q = AlignedRows(args.q);
  int64_t attending = 0;
  for (const AttentionSequence& sequence : args.sequences) attending += sequence.row_count;
  ClearOutput(args, attending == args.out.rows);
  if (args.num_heads == 0) return;
  const int64_t d = args.cache.shape.head_dim;
  const cuda::HeadGroups& groups = GroupsOf(args);
  const int64_t row_floats = args.num_heads * args.num_stripes * (2 + d);
  // How many rows are taken at once changes no bit.
  const int64_t step = cuda::AttentionRows(args.num_heads, args.num_stripes, d,
                                           scratch_frozen_ ? partials_.bytes() : kPartialBytes);
  // Also where none are made: the step after which scratch is frozen is a prompt, and decodes
  // follow.
  auto* partials = static_cast<float*>(
      AtLeast(partials_, std::min(step, args.q.rows) * row_floats * SizeOf(DType::kF32)));
  if (TakesPrefill(args)) {
    args.sequences = AttendPrefill(args, groups, partials);
    if (args.sequences.empty()) return;
  }
  for (int64_t begin = 0; begin < args.q.rows; begin += step) {
    const StagedPlan& plan = PlanRows(args, begin, std::min(args.q.rows, begin + step), groups);
    if (plan.plan.sequences.empty()) continue;
    PartialsOf(args, plan, groups, partials);
    // Staged anew for each run of rows: what is staged lives for an op or two only.
    const cuda::DeviceProgram program = PutProgram(args.stripe_program, args.num_stripes);
    const int32_t* out_column = PutOutColumns(args);
    for (const auto& [from, to] : plan.plan.runs) {
      MergeRows(args, partials + from * row_floats, args.num_stripes, begin + from, begin + to,
                program, out_column);
    }
  }
}

void CudaKernels::AttentionPartials(const AttentionArgs& given, float* partials) {
  CheckArgs(given, max_head_dim(given.cache.shape.dtype));
  Enter();
  AttentionArgs args = given;
  if (args.cache.shape.dtype == DType::kBF16) args.q = AlignedRows(args.q);
  const cuda::HeadGroups& groups = GroupsOf(args);
  PartialsOf(args, PlanRows(args, 0, args.q.rows, groups), groups, partials);
}

void CudaKernels::MergeAttention(const AttentionArgs& args, const float* partials) {
  CheckArgs(args, max_head_dim(args.cache.shape.dtype));
  Enter();
  ClearOutput(args, /*all_rows_are_written=*/true);
  if (args.num_heads == 0) return;
  const int num_in = args.num_partials > 0 ? args.num_partials : args.num_stripes;
  const cuda::DeviceProgram program = PutProgram(args.stripe_program, num_in);
  MergeRows(args, partials, num_in, 0, args.out.rows, program, PutOutColumns(args));
}

void CudaKernels::MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                                absl::Span<const std::vector<int>> programs, float* out) {
  PHALANX_CHECK(d > 0 && d <= kMaxHeadDim) << "head_dim " << d << ", at most " << kMaxHeadDim;
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
