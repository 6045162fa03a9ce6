#include "kernels/cuda/attention_plan.h"

#include <algorithm>

#include "kernels/check.h"

namespace phalanx::kernels::cuda {
namespace {

// Up to two tiles of few rows cost less than one of many that is mostly empty.
constexpr int64_t kMostFewRows = 2 * kFewRows;

// AttendFew's maxima, factors and sums, in static shared memory: no more than that.
constexpr int64_t kFewStaticBytes = 2048;

bool IsWide(const KvLayout& layout) { return layout.dk > 128; }
int FewestWarps(const KvLayout& layout) { return IsWide(layout) ? 2 : 4; }

}  // namespace

HeadGroups GroupHeads(absl::Span<const int32_t> kv_head_of, int64_t num_kv_heads) {
  HeadGroups out;
  for (int64_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
    const auto begin = static_cast<int32_t>(out.heads.size());
    for (size_t head = 0; head < kv_head_of.size(); ++head) {
      if (kv_head_of[head] == kv_head) out.heads.push_back(static_cast<int32_t>(head));
    }
    const auto end = static_cast<int32_t>(out.heads.size());
    if (end == begin) continue;
    out.groups.push_back({static_cast<int32_t>(kv_head), begin, end});
    out.widest = std::max<int64_t>(out.widest, end - begin);
  }
  PHALANX_CHECK(out.heads.size() == kv_head_of.size())
      << kv_head_of.size() - out.heads.size() << " query heads read none of the " << num_kv_heads
      << " KV heads";
  return out;
}

bool AreMany(int64_t query_rows) { return query_rows > kMostFewRows; }

AttentionPlan PlanAttention(absl::Span<const AttentionSequence> sequences, int64_t row_begin,
                            int64_t row_end, int64_t widest_group, bool bf16, int64_t few_rows) {
  AttentionPlan plan;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t from = std::max(row_begin, sequence.row_begin);
    const int64_t to = std::min(row_end, sequence.row_begin + sequence.row_count);
    if (from >= to) continue;
    const auto index = static_cast<int32_t>(plan.sequences.size());
    SequenceRows rows;
    rows.row_begin = from - row_begin;
    rows.row_count = static_cast<int32_t>(to - from);
    rows.start = sequence.start + (from - sequence.row_begin);
    rows.table_begin = static_cast<int32_t>(plan.tables.size());
    const int64_t blocks = RoundUp(rows.start + rows.row_count, kBlockTokens) / kBlockTokens;
    plan.tables.insert(plan.tables.end(), sequence.block_table, sequence.block_table + blocks);
    plan.sequences.push_back(rows);

    const int64_t query_rows = rows.row_count * widest_group;
    const auto cut = [&](std::vector<RowTile>& tiles, int64_t count, int64_t step) {
      for (int64_t first = 0; first < count; first += step) {
        tiles.push_back({index, static_cast<int32_t>(first)});
      }
    };
    if (!bf16) {
      cut(plan.tokens, rows.row_count, 1);
    } else if (!AreMany(query_rows)) {
      cut(plan.few, query_rows, few_rows);
      plan.most_few_rows =
          static_cast<int>(std::max<int64_t>(plan.most_few_rows, std::min(query_rows, few_rows)));
    } else {
      cut(plan.many, query_rows, kManyRows);
    }
    plan.runs.emplace_back(from - row_begin, to - row_begin);
  }
  // Neighbouring runs become one.
  std::sort(plan.runs.begin(), plan.runs.end());
  std::vector<std::pair<int64_t, int64_t>> joined;
  for (const auto& run : plan.runs) {
    if (!joined.empty() && joined.back().second == run.first) {
      joined.back().second = run.second;
    } else {
      joined.push_back(run);
    }
  }
  plan.runs = std::move(joined);
  // The last rows see the longest contexts, so they come first.
  std::reverse(plan.many.begin(), plan.many.end());
  return plan;
}

int64_t FewAttentionRows(const KvLayout& layout, int64_t max_shared) {
  const int warps = FewestWarps(layout);
  const int64_t without = FewAttentionBytes(layout, warps, 0);
  const int64_t of_row = FewAttentionBytes(layout, warps, 1) - without;
  // A wide head's queries and products for more of them exceed a thread's registers.
  const int64_t most = IsWide(layout) ? kFewRows / 2 : kFewRows;
  return std::clamp<int64_t>((max_shared - kFewStaticBytes - without) / of_row, 1, most);
}

int FewAttentionWarps(const KvLayout& layout, int most_rows, int64_t most_blocks, int64_t blocks,
                      int num_sms, int64_t max_shared) {
  constexpr int kMost = 8;
  const int fewest = FewestWarps(layout);
  const bool more = fewest == kMost / 2 && most_rows <= kFewRows / 2 && most_blocks > fewest &&
                    blocks <= num_sms &&
                    FewAttentionBytes(layout, kMost, most_rows) + kFewStaticBytes <= max_shared;
  return more ? kMost : fewest;
}

int PrefillPieces(const AttentionPlan& plan, int64_t num_groups, int64_t window, int num_sms,
                  int64_t most) {
  constexpr int64_t kLeastTokens = 4 * kPrefillStepTokens;
  constexpr int64_t kBlocksOfSm = 2;
  constexpr int64_t kMostPieces = 16;
  int64_t tokens = 0;
  for (const RowTile& tile : plan.many) {
    const SequenceRows& rows = plan.sequences[tile.sequence];
    const int64_t seen = rows.start + rows.row_count;
    tokens = std::max(tokens, window > 0 ? std::min(seen, window + kManyRows) : seen);
  }
  const int64_t blocks = std::max<int64_t>(1, static_cast<int64_t>(plan.many.size()) * num_groups);
  const int64_t wanted = std::min(kBlocksOfSm * num_sms / blocks, tokens / kLeastTokens);
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, most), 1, kMostPieces));
}

int64_t MostFewBlocks(const AttentionPlan& plan, int64_t window, int64_t stripes) {
  int64_t most = 0;
  for (const RowTile& tile : plan.few) {
    const SequenceRows& rows = plan.sequences[tile.sequence];
    most = std::max(
        most, MostBlocksOfStripe(rows.start, rows.start + rows.row_count - 1, window, stripes));
  }
  return most;
}

}  // namespace phalanx::kernels::cuda
