#include "tests/kernels/host_memory_kernels.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/memory.h"

namespace phalanx::kernels {
namespace {

int64_t Bytes(TensorView t) {
  return t.rows == 0 ? 0 : ((t.rows - 1) * t.stride + t.cols) * SizeOf(t.dtype);
}

}  // namespace

class HostMemoryKernels::Op {
 public:
  Op(Kernels& device, Buffer& arena) : device_(device), arena_(arena) {}
  ~Op() {
    device_.Synchronize();
    for (const Copy& copy : copies_) device_.CopyOut(copy.host, copy.device, copy.bytes);
  }
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  void* Put(const void* host, int64_t bytes) {
    if (host == nullptr) return nullptr;
    void* device = Room(bytes);
    device_.CopyIn(device, host, bytes);
    return device;
  }
  const float* Put(const float* host, int64_t floats) {
    return static_cast<const float*>(Put(static_cast<const void*>(host), floats * 4));
  }
  TensorView In(TensorView t) {
    t.data = Put(t.data, Bytes(t));
    return t;
  }
  // What the host holds goes along, so that what the op must not touch comes back as it was.
  void* Out(void* host, int64_t bytes) {
    for (const Copy& copy : copies_) {
      if (copy.host == host && copy.bytes >= bytes) return copy.device;
    }
    void* device = Put(host, bytes);
    copies_.push_back({host, device, bytes});
    return device;
  }
  TensorView Out(TensorView t) {
    t.data = Out(t.data, Bytes(t));
    return t;
  }
  KvView Cache(const KvView& cache, bool written) {
    KvView out = cache;
    const int64_t bytes = cache.num_blocks * device_.KvBlockBytes(cache.shape);
    out.data = written ? Out(cache.data, bytes) : Put(cache.data, bytes);
    return out;
  }

 private:
  struct Copy {
    void* host;
    void* device;
    int64_t bytes;
  };

  void* Room(int64_t bytes) {
    const int64_t rounded = RoundUp(std::max<int64_t>(bytes, 1), 256);
    if (used_ + rounded <= static_cast<int64_t>(arena_.bytes())) {
      char* at = arena_.as<char>() + used_;
      used_ += rounded;
      return at;
    }
    absl::StatusOr<Buffer> buffer = device_.Allocate(bytes);
    PHALANX_CHECK(buffer.ok()) << buffer.status().message();
    own_.push_back(*std::move(buffer));
    return own_.back().data();
  }

  Kernels& device_;
  Buffer& arena_;
  int64_t used_ = 0;
  std::vector<Buffer> own_;
  std::vector<Copy> copies_;
};

HostMemoryKernels::HostMemoryKernels(std::unique_ptr<Kernels> device, int64_t arena_bytes)
    : device_(std::move(device)) {
  if (arena_bytes == 0) return;
  absl::StatusOr<Buffer> arena = device_->Allocate(arena_bytes);
  PHALANX_CHECK(arena.ok()) << arena.status().message();
  arena_ = *std::move(arena);
}

absl::StatusOr<Buffer> HostMemoryKernels::Allocate(int64_t bytes) {
  return cpu::AllocateHost(bytes);
}
void HostMemoryKernels::CopyIn(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void HostMemoryKernels::CopyOut(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void HostMemoryKernels::Zero(void* memory, int64_t bytes) {
  Op op(*device_, arena_);
  device_->Zero(op.Out(memory, bytes), bytes);
}
void HostMemoryKernels::CopyRows(TensorView in, TensorView out) {
  Op op(*device_, arena_);
  device_->CopyRows(op.In(in), op.Out(out));
}
void HostMemoryKernels::AddParts(absl::Span<const float* const> operands,
                                 absl::Span<const int> program, float* out, int64_t count) {
  Op op(*device_, arena_);
  std::vector<const float*> on_device;
  auto* to = static_cast<float*>(op.Out(out, count * 4));
  for (const float* operand : operands) {
    on_device.push_back(operand == out ? to : op.Put(operand, count));
  }
  device_->AddParts(on_device, program, to, count);
}
void HostMemoryKernels::OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  Op op(*device_, arena_);
  auto* to = static_cast<uint32_t*>(op.Out(data, count * 4));
  device_->OrInto(
      to, static_cast<const uint32_t*>(op.Put(static_cast<const void*>(other), count * 4)), count);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> HostMemoryKernels::Pack(const WeightSpec& spec) {
  return device_->Pack(spec);
}
absl::StatusOr<std::unique_ptr<PackedWeight>> HostMemoryKernels::PackInto(const WeightSpec& spec,
                                                                          Buffer memory) {
  return device_->PackInto(spec, std::move(memory));
}
std::unique_ptr<PackedWeight> HostMemoryKernels::WrapPacked(const WeightSpec& spec,
                                                            Buffer memory) const {
  return device_->WrapPacked(spec, std::move(memory));
}
absl::Status HostMemoryKernels::Back(void* memory, int64_t bytes) const {
  return device_->Back(memory, bytes);
}

void HostMemoryKernels::MatMul(TensorView x, const PackedWeight& w,
                               absl::Span<const TensorView> outs) {
  Op op(*device_, arena_);
  std::vector<TensorView> to;
  for (const TensorView& out : outs) to.push_back(op.Out(out));
  device_->MatMul(op.In(x), w, to);
}

void HostMemoryKernels::GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                                      absl::Span<const TensorView> outs) {
  Op op(*device_, arena_);
  std::vector<TensorView> to;
  for (const TensorView& out : outs) to.push_back(op.Out(out));
  device_->GroupedMatMul(op.In(x), groups, to);
}

void HostMemoryKernels::GatherRows(TensorView table, absl::Span<const int32_t> ids,
                                   int64_t first_id, const Choice* chosen, TensorView out) {
  Op op(*device_, arena_);
  int32_t most = 0;  // of `chosen`
  for (const int32_t id : ids) most = std::max(most, -id);
  const auto* on_device =
      chosen == nullptr
          ? nullptr
          : static_cast<const Choice*>(op.Put(static_cast<const void*>(chosen),
                                              most * static_cast<int64_t>(sizeof(Choice))));
  device_->GatherRows(op.In(table), ids, first_id, on_device, op.Out(out));
}

void HostMemoryKernels::AddResidual(TensorView x, TensorView delta, const float* bias) {
  Op op(*device_, arena_);
  device_->AddResidual(op.Out(x), op.In(delta), op.Put(bias, x.cols));
}

void HostMemoryKernels::RmsNorm(TensorView x, const float* weight, float eps, TensorView out) {
  Op op(*device_, arena_);
  device_->RmsNorm(op.In(x), op.Put(weight, x.cols), eps, op.Out(out));
}

void HostMemoryKernels::AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias,
                                           const float* weight, float eps, TensorView out) {
  Op op(*device_, arena_);
  device_->AddResidualRmsNorm(op.Out(x), op.In(delta), op.Put(bias, x.cols), op.Put(weight, x.cols),
                              eps, op.Out(out));
}

void HostMemoryKernels::SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  Op op(*device_, arena_);
  device_->SiluMul(op.In(gate_up), op.Put(bias, 2 * n), n, op.Out(out));
}

void HostMemoryKernels::MatMulSiluMul(TensorView x, const PackedWeight& w, TensorView gate_up,
                                      const float* bias, int64_t n, TensorView out) {
  Op op(*device_, arena_);
  device_->MatMulSiluMul(op.In(x), w, op.Out(gate_up), op.Put(bias, 2 * n), n, op.Out(out));
}

void HostMemoryKernels::QkvToCache(const QkvArgs& args) {
  Op op(*device_, arena_);
  const int64_t d = args.cache.shape.head_dim;
  const int64_t heads = args.num_heads + 2 * args.cache.shape.num_kv_heads;
  int64_t positions = 0;
  for (const int32_t position : args.positions) {
    positions = std::max<int64_t>(positions, position + 1);
  }
  const int64_t table = positions * (args.rotary_dim / 2);
  QkvArgs on_device = args;
  on_device.qkv = op.In(args.qkv);
  on_device.bias = op.Put(args.bias, heads * d);
  on_device.q_norm = op.Put(args.q_norm, d);
  on_device.k_norm = op.Put(args.k_norm, d);
  on_device.cos = op.Put(args.cos, table);
  on_device.sin = op.Put(args.sin, table);
  on_device.cache = op.Cache(args.cache, /*written=*/true);
  on_device.q = op.Out(args.q);
  device_->QkvToCache(on_device);
}

void HostMemoryKernels::CopyBlocks(const KvView& cache,
                                   absl::Span<const std::pair<int32_t, int32_t>> blocks) {
  Op op(*device_, arena_);
  device_->CopyBlocks(op.Cache(cache, /*written=*/true), blocks);
}

void HostMemoryKernels::Attention(const AttentionArgs& args) {
  Op op(*device_, arena_);
  AttentionArgs on_device = args;
  on_device.q = op.In(args.q);
  on_device.cache = op.Cache(args.cache, /*written=*/false);
  on_device.out = op.Out(args.out);
  device_->Attention(on_device);
}

void HostMemoryKernels::AttentionPartials(const AttentionArgs& args, float* partials) {
  Op op(*device_, arena_);
  AttentionArgs on_device = args;
  on_device.q = op.In(args.q);
  on_device.cache = op.Cache(args.cache, /*written=*/false);
  const int64_t floats = args.q.rows * args.num_heads * (args.stripe_end - args.stripe_begin) *
                         (2 + args.cache.shape.head_dim);
  device_->AttentionPartials(on_device, static_cast<float*>(op.Out(partials, floats * 4)));
}

void HostMemoryKernels::MergeAttention(const AttentionArgs& args, const float* partials) {
  Op op(*device_, arena_);
  AttentionArgs on_device = args;
  on_device.out = op.Out(args.out);
  const int num_in = args.num_partials > 0 ? args.num_partials : args.num_stripes;
  const int64_t floats = args.out.rows * args.num_heads * num_in * (2 + args.cache.shape.head_dim);
  device_->MergeAttention(on_device, op.Put(partials, floats));
}

void HostMemoryKernels::MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                                      absl::Span<const std::vector<int>> programs, float* out) {
  Op op(*device_, arena_);
  const int64_t width = 2 + d;
  const int64_t floats = count * static_cast<int64_t>(programs.size()) * width;
  device_->MergePartials(op.Put(partials, count * num_in * width), count, d, num_in, programs,
                         static_cast<float*>(op.Out(out, floats * 4)));
}

void HostMemoryKernels::RouteTopK(const RouterArgs& args) {
  Op op(*device_, arena_);
  RouterArgs on_device = args;
  on_device.logits = op.In(args.logits);
  device_->RouteTopK(on_device);
}

void HostMemoryKernels::CombineExperts(const CombineExpertsArgs& args) {
  Op op(*device_, arena_);
  CombineExpertsArgs on_device = args;
  on_device.out = op.Out(args.out);
  // In place where the caller has it so.
  if (args.shared.data == args.out.data) {
    on_device.shared.data = on_device.out.data;
  } else {
    on_device.shared = op.In(args.shared);
  }
  on_device.shared_gate_logit = op.Put(args.shared_gate_logit, args.rows);
  std::vector<const float*> parts;
  for (const float* part : args.parts) parts.push_back(op.Put(part, args.hidden));
  on_device.parts = parts;
  device_->CombineExperts(on_device);
}

void HostMemoryKernels::GatherTokens(TensorView in, absl::Span<const int32_t> rows,
                                     TensorView out) {
  Op op(*device_, arena_);
  // The columns between two rows may come along.
  TensorView wide = in;
  wide.cols = std::max(in.cols, out.cols);
  TensorView on_device = op.In(wide);
  on_device.cols = in.cols;
  device_->GatherTokens(on_device, rows, op.Out(out));
}

void HostMemoryKernels::RunExperts(const ExpertsArgs& args) {
  Op op(*device_, arena_);
  ExpertsArgs on_device = args;
  on_device.logits = op.In(args.logits);
  on_device.x = op.In(args.x);
  on_device.room.x = op.Out(args.room.x);
  on_device.room.gate_up = op.Out(args.room.gate_up);
  on_device.room.activated = op.Out(args.room.activated);
  std::vector<TensorView> parts;
  for (const TensorView& part : args.room.parts) parts.push_back(op.Out(part));
  on_device.room.parts = parts;
  on_device.out = op.Out(args.out);
  if (args.shared.data == args.out.data) {
    on_device.shared.data = on_device.out.data;
  } else {
    on_device.shared = op.In(args.shared);
  }
  on_device.shared_gate_logit = op.Put(args.shared_gate_logit, args.logits.rows);
  on_device.tokens = static_cast<int64_t*>(op.Out(args.tokens, args.logits.cols * 8));
  device_->RunExperts(on_device);
}

void HostMemoryKernels::LogSumExpLeaves(TensorView logits,
                                        absl::Span<const std::pair<int64_t, int64_t>> leaves,
                                        absl::Span<MaxSum> out) {
  Op op(*device_, arena_);
  device_->LogSumExpLeaves(op.In(logits), leaves, out);
}

void HostMemoryKernels::EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) {
  Op op(*device_, arena_);
  device_->EditLogits(op.Out(logits), edits);
}

void HostMemoryKernels::ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows,
                                   Choice* out) {
  Op op(*device_, arena_);
  const auto bytes = static_cast<int64_t>(rows.size() * sizeof(Choice));
  device_->ChooseRows(op.In(logits), rows, static_cast<Choice*>(op.Out(out, bytes)));
}

}  // namespace phalanx::kernels
