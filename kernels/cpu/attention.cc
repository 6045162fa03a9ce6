// Cuts an attention call into tasks and runs them on the thread pool.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels::cpu {
namespace {

// This thread's memory, at least `floats` of it. Kept for the thread's life: a step allocates
// nothing once the largest call has been seen.
float* ThreadScratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

void CheckArgs(const AttentionArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  PHALANX_CHECK(d > 0 && d <= kMaxHeadDim) << "head_dim " << d << ", at most " << kMaxHeadDim;
  PHALANX_CHECK(args.num_stripes > 0 && args.num_stripes <= kMaxStripes)
      << "num_stripes " << args.num_stripes << ", at most " << kMaxStripes;
  PHALANX_CHECK(args.num_partials >= 0 && args.num_partials <= kMaxStripes)
      << "num_partials " << args.num_partials << ", at most " << kMaxStripes;
}

// Fills scratch.groups and scratch.heads: query heads by KV head, both in rising order.
void GroupHeads(const AttentionArgs& args, AttentionScratch& scratch) {
  scratch.groups.clear();
  scratch.heads.clear();
  for (int64_t kv_head = 0; kv_head < args.cache.shape.num_kv_heads; ++kv_head) {
    const int32_t begin = static_cast<int32_t>(scratch.heads.size());
    for (int64_t head = 0; head < args.num_heads; ++head) {
      if (args.kv_head_of[head] == kv_head) scratch.heads.push_back(static_cast<int32_t>(head));
    }
    const int32_t end = static_cast<int32_t>(scratch.heads.size());
    if (end > begin) scratch.groups.push_back({static_cast<int32_t>(kv_head), begin, end});
  }
}

// Fills scratch.tasks with rows x groups x runs of `stripes_per_task` stripes. The last rows see
// the longest context, so they come first.
void MakeTasks(const AttentionArgs& args, int stripe_begin, int stripe_end, int stripes_per_task,
               AttentionScratch& scratch) {
  scratch.tasks.clear();
  for (size_t s = 0; s < args.sequences.size(); ++s) {
    const int64_t rows = args.sequences[s].row_count;
    for (size_t g = 0; g < scratch.groups.size(); ++g) {
      const int64_t step = TaskTokenRows(scratch.groups[g].end - scratch.groups[g].begin);
      for (int64_t block = (rows + step - 1) / step - 1; block >= 0; --block) {
        for (int stripe = stripe_begin; stripe < stripe_end; stripe += stripes_per_task) {
          AttentionTask task;
          task.sequence = static_cast<int32_t>(s);
          task.group = static_cast<int32_t>(g);
          task.row_begin = block * step;
          task.row_end = std::min(rows, (block + 1) * step);
          task.stripe_begin = stripe;
          task.stripe_end = std::min(stripe_end, stripe + stripes_per_task);
          scratch.tasks.push_back(task);
        }
      }
    }
  }
}

// Threads take tasks one at a time: their lengths differ.
void RunTasks(ThreadPool& pool, const OpTable& ops, const AttentionScratch& scratch,
              const AttentionArgs& args, float* partials) {
  const KvLayout layout(args.cache.shape);
  const int64_t count = static_cast<int64_t>(scratch.tasks.size());
  std::atomic<int64_t> next{0};
  pool.ParallelFor(std::min<int64_t>(pool.size(), count), 1, [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      const AttentionTask& task = scratch.tasks[i];
      const HeadGroup& group = scratch.groups[task.group];
      const int64_t heads = group.end - group.begin;
      const AttendScratchLayout parts((task.row_end - task.row_begin) * heads, layout,
                                      args.cache.shape.head_dim, args.num_stripes);
      ops.attend(args, task, scratch.heads.data() + group.begin, heads, group.kv_head,
                 ThreadScratch(parts.size), partials);
    }
  });
}

void ZeroOutput(const AttentionArgs& args) {
  // Columns that belong to no head are +0. Heads overwrite the rest, and the rows are few bytes
  // beside the keys and values, so all are cleared.
  for (int64_t row = 0; row < args.out.rows; ++row) {
    auto* to =
        static_cast<uint8_t*>(args.out.data) + row * args.out.stride * SizeOf(args.out.dtype);
    std::fill_n(to, args.out.cols * SizeOf(args.out.dtype), uint8_t{0});
  }
}

void MergeRows(ThreadPool& pool, const OpTable& ops, const AttentionArgs& args,
               const float* partials) {
  const int64_t d = args.cache.shape.head_dim;
  const int64_t work = NumPartials(args) * (2 + d);
  pool.ParallelFor(
      args.out.rows * args.num_heads, std::max<int64_t>(1, 16384 / work),
      [&](int64_t begin, int64_t end) {
        float* stack = ThreadScratch(AttendScratchLayout::MergeScratchFloats(d, NumPartials(args)));
        ops.merge_attention(args, partials, stack, begin, end);
      });
}

}  // namespace

void Attention(ThreadPool& pool, const OpTable& ops, AttentionScratch& scratch,
               const AttentionArgs& args) {
  CheckArgs(args);
  ZeroOutput(args);
  GroupHeads(args, scratch);
  MakeTasks(args, 0, args.num_stripes, args.num_stripes, scratch);
  const int64_t tasks = static_cast<int64_t>(scratch.tasks.size());
  int64_t longest = 0;
  for (const AttentionSequence& sequence : args.sequences) {
    longest = std::max(longest, sequence.start + sequence.row_count);
  }
  // Too few tasks for the threads and long contexts: stripes become tasks of their own.
  const bool split =
      pool.size() > 1 && tasks < 2 * pool.size() && longest >= 2 * args.num_stripes * kBlockTokens;
  if (!split) {
    RunTasks(pool, ops, scratch, args, nullptr);
    return;
  }
  AttentionArgs all = args;
  all.stripe_begin = 0;
  all.stripe_end = args.num_stripes;
  all.num_partials = 0;
  const size_t floats =
      args.q.rows * args.num_heads * args.num_stripes * (2 + args.cache.shape.head_dim);
  if (scratch.partials.size() < floats) scratch.partials.resize(floats);
  MakeTasks(all, 0, args.num_stripes, 1, scratch);
  RunTasks(pool, ops, scratch, all, scratch.partials.data());
  MergeRows(pool, ops, all, scratch.partials.data());
}

void AttentionPartials(ThreadPool& pool, const OpTable& ops, AttentionScratch& scratch,
                       const AttentionArgs& args, float* partials) {
  CheckArgs(args);
  GroupHeads(args, scratch);
  const int stripes = args.stripe_end - args.stripe_begin;
  MakeTasks(args, args.stripe_begin, args.stripe_end, std::max(stripes, 1), scratch);
  if (static_cast<int64_t>(scratch.tasks.size()) < 2 * pool.size()) {
    MakeTasks(args, args.stripe_begin, args.stripe_end, 1, scratch);
  }
  RunTasks(pool, ops, scratch, args, partials);
}

void MergeAttention(ThreadPool& pool, const OpTable& ops, AttentionScratch& /*scratch*/,
                    const AttentionArgs& args, const float* partials) {
  CheckArgs(args);
  ZeroOutput(args);
  MergeRows(pool, ops, args, partials);
}

void MergePartials(ThreadPool& pool, const OpTable& ops, const float* partials, int64_t count,
                   int64_t d, int num_in, absl::Span<const std::vector<int>> programs, float* out) {
  PHALANX_CHECK(d > 0 && d <= kMaxHeadDim) << "head_dim " << d << ", at most " << kMaxHeadDim;
  PHALANX_CHECK(num_in > 0 && num_in <= kMaxStripes)
      << "num_in " << num_in << ", at most " << kMaxStripes;
  std::vector<MergeProgram> plain;
  plain.reserve(programs.size());
  for (const std::vector<int>& program : programs) {
    plain.push_back({program.data(), static_cast<int64_t>(program.size())});
  }
  const int64_t work = num_in * (2 + d);
  pool.ParallelFor(count, std::max<int64_t>(1, 16384 / work), [&](int64_t begin, int64_t end) {
    float* stack = ThreadScratch(AttendScratchLayout::MergeScratchFloats(d, num_in));
    ops.merge_partials(partials, d, num_in, plain.data(), static_cast<int64_t>(plain.size()), stack,
                       out, begin, end);
  });
}

}  // namespace phalanx::kernels::cpu
