#include "kernels/cpu/cpu_kernels.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/memory.h"

namespace phalanx::kernels {

CpuKernels::CpuKernels(const CpuOptions& options)
    : path_(options.path),
      pool_(options.threads),
      ops_(cpu::Ops(options.path)),
      matmul_(cpu::MatMulFor(options.path)) {}

std::string CpuKernels::Describe() const {
  return absl::StrCat("cpu ", std::string(Name(path_)), ", ", pool_.size(),
                      pool_.size() == 1 ? " thread" : " threads");
}

absl::StatusOr<Buffer> CpuKernels::Allocate(int64_t bytes) { return cpu::AllocateHost(bytes); }

void CpuKernels::CopyIn(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void CpuKernels::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

void CpuKernels::Zero(void* memory, int64_t bytes) {
  if (bytes > 0) std::memset(memory, 0, bytes);
}

void CpuKernels::CopyRows(TensorView in, TensorView out) {
  PHALANX_CHECK(in.dtype == out.dtype) << Name(out.dtype) << " from " << Name(in.dtype);
  const int64_t size = SizeOf(in.dtype);
  const auto* from = static_cast<const char*>(in.data);
  auto* to = static_cast<char*>(out.data);
  for (int64_t i = 0; i < out.rows && out.cols > 0; ++i) {
    std::memcpy(to + i * out.stride * size, from + i * in.stride * size, out.cols * size);
  }
}

void CpuKernels::AddParts(absl::Span<const float* const> operands, absl::Span<const int> program,
                          float* out, int64_t count) {
  PHALANX_CHECK(static_cast<int>(operands.size()) <= kMaxAddends)
      << operands.size() << " operands, at most " << kMaxAddends;
  tree_sum_.Run(program, operands, out, count);
}

void CpuKernels::OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  kernels::OrInto(data, other, count);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuKernels::Pack(const WeightSpec& spec) {
  return cpu::PackWeight(pool_, spec);
}

int64_t CpuKernels::PackedBytes(const WeightSpec& spec) const { return cpu::PackedBytes(spec); }

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuKernels::PackInto(const WeightSpec& spec,
                                                                   Buffer memory) {
  return cpu::PackWeightInto(pool_, spec, std::move(memory));
}

std::unique_ptr<PackedWeight> CpuKernels::WrapPacked(const WeightSpec& spec, Buffer memory) const {
  return cpu::WrapPacked(spec, std::move(memory));
}

absl::Status CpuKernels::Back(void* memory, int64_t bytes) const {
  return cpu::BackHost(memory, bytes);
}

void CpuKernels::MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) {
  cpu::MatMul(pool_, matmul_, packed_x_, x, static_cast<const cpu::CpuPackedWeight&>(w), outs);
}

void CpuKernels::GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                            const Choice* chosen, TensorView out) {
  if (chosen != nullptr) {
    ids_.clear();
    for (const int32_t id : ids) ids_.push_back(FedId(id, chosen));
    ids = ids_;
  }
  cpu::GatherRows(pool_, ops_, table, ids, first_id, out);
}

void CpuKernels::AddResidual(TensorView x, TensorView delta, const float* bias) {
  cpu::AddResidual(pool_, ops_, x, delta, bias);
}

void CpuKernels::RmsNorm(TensorView x, const float* weight, float eps, TensorView out) {
  cpu::RmsNorm(pool_, ops_, x, weight, eps, out);
}

void CpuKernels::AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias,
                                    const float* weight, float eps, TensorView out) {
  cpu::AddResidualRmsNorm(pool_, ops_, x, delta, bias, weight, eps, out);
}

void CpuKernels::SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  cpu::SiluMul(pool_, ops_, gate_up, bias, n, out);
}

int64_t CpuKernels::KvBlockBytes(const KvShape& shape) const { return cpu::KvBlockBytes(shape); }

void CpuKernels::QkvToCache(const QkvArgs& args) { cpu::QkvToCache(pool_, ops_, args); }

void CpuKernels::CopyBlocks(const KvView& cache,
                            absl::Span<const std::pair<int32_t, int32_t>> blocks) {
  cpu::CopyBlocks(pool_, cache, blocks);
}

void CpuKernels::Attention(const AttentionArgs& args) {
  cpu::Attention(pool_, ops_, attention_scratch_, args);
}

void CpuKernels::AttentionPartials(const AttentionArgs& args, float* partials) {
  cpu::AttentionPartials(pool_, ops_, attention_scratch_, args, partials);
}

void CpuKernels::MergeAttention(const AttentionArgs& args, const float* partials) {
  cpu::MergeAttention(pool_, ops_, attention_scratch_, args, partials);
}

void CpuKernels::MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                               absl::Span<const std::vector<int>> programs, float* out) {
  cpu::MergePartials(pool_, ops_, partials, count, d, num_in, programs, out);
}

void CpuKernels::RouteTopK(const RouterArgs& args) { cpu::RouteTopK(pool_, ops_, args); }

void CpuKernels::CombineExperts(const CombineExpertsArgs& args) {
  cpu::CombineExperts(pool_, ops_, args);
}

void CpuKernels::GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) {
  cpu::GatherTokens(pool_, in, rows, out);
}

void CpuKernels::GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                               absl::Span<const TensorView> outs) {
  cpu::GroupedMatMul(pool_, matmul_, packed_x_, x, groups, outs);
}

void CpuKernels::LogSumExpLeaves(TensorView logits,
                                 absl::Span<const std::pair<int64_t, int64_t>> leaves,
                                 absl::Span<MaxSum> out) {
  cpu::LogSumExpLeaves(pool_, ops_, logits, leaves, out);
}

void CpuKernels::EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) {
  cpu::EditLogits(logits, edits);
}

void CpuKernels::ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) {
  cpu::ChooseRows(pool_, ops_, choice_scratch_, logits, rows, out);
}

std::string_view Name(CpuPath path) {
  switch (path) {
    case CpuPath::kPortable:
      return "portable";
    case CpuPath::kAvx2:
      return "avx2";
    case CpuPath::kAvx512:
      return "avx512";
    case CpuPath::kAmx:
      return "amx";
  }
  return "unknown";
}

std::vector<CpuPath> AvailableCpuPaths() {
  const cpu::CpuFeatures& features = cpu::DetectCpuFeatures();
  std::vector<CpuPath> paths = {CpuPath::kPortable};
  if (features.avx2) paths.push_back(CpuPath::kAvx2);
  if (features.avx512) paths.push_back(CpuPath::kAvx512);
  if (features.amx) paths.push_back(CpuPath::kAmx);
  return paths;
}

absl::StatusOr<std::unique_ptr<Kernels>> CreateCpuKernels(const CpuOptions& options) {
  constexpr int kMostThreads = 4096;
  if (options.threads < 1 || options.threads > kMostThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, "; it must be from 1 to ", kMostThreads));
  }
  const std::vector<CpuPath> available = AvailableCpuPaths();
  if (std::find(available.begin(), available.end(), options.path) == available.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "this machine has no CPU path \"", std::string(Name(options.path)),
        "\"; it has: ", absl::StrJoin(available, ", ", [](std::string* out, CpuPath path) {
          out->append(Name(path));
        })));
  }
  return std::make_unique<CpuKernels>(options);
}

// Of every device whose copies don't mind where in the host's memory they begin.
absl::StatusOr<Buffer> Kernels::AllocateHost(int64_t bytes) { return cpu::AllocateHost(bytes); }

}  // namespace phalanx::kernels
