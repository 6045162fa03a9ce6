// The attention half of a layer.
#include <algorithm>
#include <vector>

#include "runtime/model/decoder_impl.h"

namespace phalanx::model {

using kernels::DType;
using kernels::TensorView;

absl::Status Decoder::Impl::Attend(const Layer& layer, int64_t index, const Batch& batch) {
  const int64_t m = rows.count;
  const int64_t d = config.head_dim;
  const int64_t padded_d = kernels::RoundUp(d, kernels::kDotGroup);
  const int64_t width = (num_heads() + 2 * num_kv_heads()) * d;
  const DType act = profile.activations();

  TensorView x;  // [slice rows, padded hidden]
  if (absl::Status status = GatherNormed(&x); !status.ok()) return status;
  // A rank without heads has nothing to say on sp either: its sp peers hold the same none.
  if (num_heads() == 0) return RowParallel({}, nullptr, delta);
  const TensorView qkv = F32(qkv_out, m, width);
  if (!rows.sharded || groups.sp == nullptr) {
    kernels.MatMul(x, *layer.qkv, {&qkv, 1});
  } else {
    // Every stripe needs every row's query, and some rank each key and value.
    const TensorView part = F32(qkv_slice, rows.slice.size(), width);
    if (part.rows > 0) kernels.MatMul(x, *layer.qkv, {&part, 1});
    std::vector<int64_t> bytes(groups.layout.sp);
    for (int s = 0; s < groups.layout.sp; ++s) {
      bytes[s] = parallel::SequenceRows(m, s, groups.layout.sp).size() * width * 4;
    }
    absl::Status status = groups.sp->AllGather(part.data, qkv.data, bytes);
    if (!status.ok()) return status;
  }

  kernels::QkvArgs write;
  write.qkv = qkv;
  write.bias = layer.qkv_bias.as<float>();
  write.q_norm = layer.q_norm.as<float>();
  write.k_norm = layer.k_norm.as<float>();
  write.norm_eps = config.rms_norm_eps;
  write.num_heads = num_heads();
  write.cos = rope.as<float>();
  write.sin = write.cos + m * static_cast<int64_t>(inv_freq.size());
  write.rotary_dim = d;
  write.positions = absl::MakeSpan(rope_indices).subspan(0, m);
  write.slots = batch.slots;
  write.cache = kv_view(layer);
  write.q = View(queries, act, m, num_heads() * padded_d);
  kernels.QkvToCache(write);

  kernels::AttentionArgs attend;
  attend.q = write.q;
  attend.num_heads = num_heads();
  attend.kv_head_of = kv_head_of;
  attend.scale = config.attention_scale();
  attend.window = config.window(index);
  attend.cache = write.cache;
  attend.sequences = batch.sequences;
  attend.num_stripes = profile.sequence_stripes;
  attend.stripe_begin = static_cast<int>(shard.stripes.begin);
  attend.stripe_end = static_cast<int>(shard.stripes.end);
  attend.stripe_program = stripe_program;
  attend.out_column = out_column;
  attend.out = View(attended, act, rows.slice.size(), layer.o->k());
  if (groups.sp == nullptr) {
    kernels.Attention(attend);
  } else if (absl::Status status = AttendAcrossStripes(attend); !status.ok()) {
    return status;
  }
  return RowParallel(attend.out, layer.o.get(), delta);
}

// Own stripes for all rows, then each row's partials to whoever computes the row.
absl::Status Decoder::Impl::AttendAcrossStripes(kernels::AttentionArgs args) {
  const int64_t m = rows.count;
  const int sp = groups.layout.sp;
  const int64_t partial = 2 + config.head_dim;
  const int own_parts = stripe_parts[groups.at.s];
  const int64_t row_floats = num_heads() * own_parts * partial;

  // A few rows at a time: stripes' partials are much larger than those of whole subtrees.
  const absl::Span<const kernels::AttentionSequence> sequences = args.sequences;
  std::vector<kernels::AttentionSequence> clipped;
  for (int64_t begin = 0; begin < m; begin += kPartialRows) {
    const int64_t end = std::min(m, begin + kPartialRows);
    clipped.clear();
    for (const kernels::AttentionSequence& sequence : sequences) {
      const int64_t from = std::max(begin, sequence.row_begin);
      const int64_t to = std::min(end, sequence.row_begin + sequence.row_count);
      if (from >= to) continue;
      clipped.push_back({from - begin, to - from, sequence.start + (from - sequence.row_begin),
                         sequence.block_table});
    }
    kernels::AttentionArgs some = args;
    some.q.data = static_cast<char*>(args.q.data) + begin * args.q.stride * SizeOf(args.q.dtype);
    some.q.rows = end - begin;
    some.sequences = clipped;
    kernels.AttentionPartials(some, stripe_partials.as<float>());
    kernels.MergePartials(stripe_partials.as<float>(), (end - begin) * num_heads(), config.head_dim,
                          static_cast<int>(shard.stripes.size()), own_stripe_program,
                          part_partials.as<float>() + begin * row_floats);
  }

  const int64_t slice = rows.slice.size();
  std::vector<int64_t> send(sp);
  std::vector<int64_t> receive(sp);
  for (int s = 0; s < sp; ++s) {
    const int64_t their_rows = rows.sharded ? parallel::SequenceRows(m, s, sp).size() : m;
    send[s] = their_rows * row_floats * 4;
    receive[s] = slice * num_heads() * stripe_parts[s] * partial * 4;
  }
  absl::Status status =
      rows.sharded
          ? groups.sp->AllToAll(part_partials.data(), send, received_partials.data(), receive)
          : groups.sp->AllGather(part_partials.data(), received_partials.data(), receive);
  if (!status.ok()) return status;

  // [s][row, head][its parts] to [row, head][all parts].
  int total = 0;
  for (const int count : stripe_parts) total += count;
  if (slice == 0) return absl::OkStatus();
  const int64_t units = slice * num_heads();
  float* from = received_partials.as<float>();
  float* to = merged_partials.as<float>();
  for (int s = 0; s < sp; ++s) {
    const int64_t floats = stripe_parts[s] * partial;
    kernels.CopyRows({from, DType::kF32, units, floats, floats},
                     {to, DType::kF32, units, floats, total * partial});
    from += units * floats;
    to += floats;
  }
  args.num_partials = total;
  args.stripe_program = merge_program;
  kernels.MergeAttention(args, merged_partials.as<float>());
  return absl::OkStatus();
}

}  // namespace phalanx::model
