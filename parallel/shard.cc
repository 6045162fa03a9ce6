#include "parallel/shard.h"

#include <cassert>

#include "absl/strings/str_cat.h"

namespace phalanx::parallel {

DecoderShards::DecoderShards(const DecoderShape& shape, int tp, int reduction_leaves)
    : shape_(shape),
      tp_(tp),
      num_leaves_(reduction_leaves),
      heads_(shape.num_heads, 1, reduction_leaves),
      channels_(shape.intermediate_size, kChannelGranule, reduction_leaves),
      vocab_(shape.vocab_size, kChannelGranule, reduction_leaves) {
  assert(Check(tp, reduction_leaves).ok());
  assert(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
}

absl::Status DecoderShards::Check(int tp, int reduction_leaves) {
  if (tp < 1) {
    return absl::InvalidArgumentError(absl::StrCat("layout: tp=", tp, " must be at least 1"));
  }
  if (tp > reduction_leaves) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout: tp=", tp, " needs a profile of at least ", tp,
        " reduction leaves, but this one has ", reduction_leaves, "; use tp=", reduction_leaves,
        " or less, or --reduction-leaves ", tp,
        " (a profile of its own: its bits differ from those of ", reduction_leaves, " leaves)"));
  }
  return absl::OkStatus();
}

TensorShard DecoderShards::shard(int t) const {
  TensorShard shard;
  shard.leaves = LeafRun(t, tp_, num_leaves_);
  shard.heads = heads_.elements(shard.leaves);
  shard.channels = channels_.elements(shard.leaves);
  shard.vocab = vocab_.elements(shard.leaves);
  if (!shard.heads.empty()) {
    shard.kv_heads = {kv_head(shard.heads.begin), kv_head(shard.heads.end - 1) + 1};
  }
  return shard;
}

std::vector<int> DecoderShards::parts_per_member() const {
  std::vector<int> out;
  out.reserve(tp_);
  for (int t = 0; t < tp_; ++t) out.push_back(static_cast<int>(parts(t).size()));
  return out;
}

std::vector<int> DecoderShards::finish_program() const {
  std::vector<Range> all;
  for (int t = 0; t < tp_; ++t) {
    for (const Range& part : parts(t)) all.push_back(part);
  }
  return TreeProgram({0, num_leaves_}, all);
}

}  // namespace phalanx::parallel
