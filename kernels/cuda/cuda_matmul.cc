// Weights and matmuls of CudaKernels.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/f16_terms.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/moves.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/program.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;

// Packed and copied at once; two of them, so that one is packed while the other is copied.
constexpr int64_t kPackBytes = int64_t{16} << 20;
// Rows up to which the kernels that read weights once are taken in `fast`, too.
constexpr int64_t kFewRows = 16;

bool IsAligned(TensorView x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride * SizeOf(x.dtype) % 16 == 0;
}

bool AddsByHalves(const WeightPlan& plan) {
  const auto leaves = static_cast<int>(plan.leaves.size());
  if (plan.num_parts() != 1 || leaves < 1 || leaves > cuda::kHalvedLeaves) return false;
  return cuda::IsTree(plan.programs, leaves);
}

}  // namespace

CudaPackedWeight::CudaPackedWeight(WeightPlan weight_plan, Numerics numerics)
    : plan(std::move(weight_plan)) {
  dtype_ = plan.dtype;
  n_ = plan.n;
  k_ = plan.k;
  num_parts_ = plan.num_parts();
  params.weight_type = plan.dtype;
  // cuBLASLt has no product of FP8 weights and BF16 rows.
  const bool fp8 = IsFp8(plan.format);
  const bool by_rows = numerics == Numerics::kFast && !fp8;
  params.layout = fp8       ? cuda::Fp8LayoutOf(plan.format)
                  : by_rows ? cuda::WeightLayout::kRows
                            : cuda::WeightLayout::kTiles;
  params.n = static_cast<int32_t>(plan.n);
  params.k = static_cast<int32_t>(plan.k);
  params.num_leaves = static_cast<int32_t>(plan.leaves.size());
  params.num_parts = plan.num_parts();
  params.depth = plan.stack_depth;
  int chunks = 0;
  for (int i = 0; i < params.num_leaves; ++i) {
    params.leaf_end[i] = static_cast<int32_t>(plan.leaves[i].end);
    params.first_chunk[i] = static_cast<int16_t>(chunks);
    const int64_t size = plan.leaves[i].end - plan.leaves[i].begin;
    chunks += static_cast<int>((size + cuda::kChunkK - 1) / cuda::kChunkK);
  }
  params.first_chunk[params.num_leaves] = static_cast<int16_t>(chunks);
  params.num_chunks = chunks;
  int named = 0;
  for (size_t i = 0; i < plan.programs.size(); ++i) {
    params.codes[i] = static_cast<int8_t>(plan.programs[i]);
    if (plan.programs[i] >= 0) params.order[named++] = static_cast<uint8_t>(plan.programs[i]);
  }
  params.by_halves = AddsByHalves(plan);
  for (size_t i = 0; i < plan.program_begin.size(); ++i) {
    params.code_begin[i] = static_cast<uint8_t>(plan.program_begin[i]);
  }
  for (int part = 0; by_rows && part < params.num_parts; ++part) {
    const std::optional<PlacedLeaf> run = RunOfPart(plan, part);
    if (!run || run->begin == run->end) {
      part_runs.clear();
      break;
    }
    part_runs.push_back(*run);
  }
}

int64_t CudaPackedWeight::unit_bytes() const { return cuda::UnitBytes(plan); }
int64_t CudaPackedWeight::num_units() const { return cuda::NumUnits(plan); }

int64_t CudaKernels::PackedBytes(const WeightSpec& spec) const {
  const WeightPlan plan = PlanWeight(spec);
  return cuda::NumUnits(plan) * cuda::UnitBytes(plan);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CudaKernels::Pack(const WeightSpec& spec) {
  absl::StatusOr<Buffer> memory = Allocate(PackedBytes(spec));
  if (!memory.ok()) return memory.status();
  return PackInto(spec, *std::move(memory));
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CudaKernels::PackInto(const WeightSpec& spec,
                                                                    Buffer memory) {
  WeightPlan plan = PlanWeight(spec);
  if (absl::Status status = cuda::CheckPackable(plan); !status.ok()) return status;
  auto weight = std::make_unique<CudaPackedWeight>(std::move(plan), numerics_);
  const int64_t bytes = weight->num_units() * weight->unit_bytes();
  PHALANX_CHECK(static_cast<int64_t>(memory.bytes()) == bytes)
      << "memory of " << memory.bytes() << " bytes for a weight of " << bytes;
  weight->data = std::move(memory);
  if (absl::Status status = FillPacked(spec, *weight); !status.ok()) return status;
  return weight;
}

std::unique_ptr<PackedWeight> CudaKernels::WrapPacked(const WeightSpec& spec, Buffer memory) const {
  auto weight = std::make_unique<CudaPackedWeight>(PlanWeight(spec), numerics_);
  weight->data = std::move(memory);
  return weight;
}

void CudaKernels::GrowPackBuffers(int64_t bytes) {
  if (bytes <= pack_buffer_bytes_) return;
  for (char*& buffer : pack_buffers_) {
    CheckCuda(cudaFreeHost(buffer), "freeing pinned host memory");
    void* pinned = nullptr;
    CheckCuda(cudaHostAlloc(&pinned, static_cast<size_t>(bytes), cudaHostAllocDefault),
              "allocating pinned host memory");
    buffer = static_cast<char*>(pinned);
  }
  pack_buffer_bytes_ = bytes;
}

absl::Status CudaKernels::FillPacked(const WeightSpec& spec, CudaPackedWeight& weight) {
  EnterStream();
  const int64_t unit_bytes = weight.unit_bytes();
  const int64_t units = weight.num_units();
  if (unit_bytes == 0) return absl::OkStatus();
  const int64_t at_once = std::clamp<int64_t>(kPackBytes / unit_bytes, 1, units);
  GrowPackBuffers(at_once * unit_bytes);
  cudaEvent_t copied[2];
  for (cudaEvent_t& event : copied) {
    CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  std::atomic<int64_t> first_bad{units};
  int turn = 0;
  for (int64_t begin = 0; begin < units; begin += at_once, turn = 1 - turn) {
    const int64_t count = std::min(at_once, units - begin);
    CheckCuda(cudaEventSynchronize(copied[turn]), "waiting for a copy of weights");
    char* to = pack_buffers_[turn];
    pack_pool_.ParallelFor(count, 1, [&](int64_t from, int64_t end) {
      for (int64_t i = from; i < end; ++i) {
        if (!cuda::PackUnit(spec, weight.plan, weight.params.layout, begin + i,
                            to + i * unit_bytes)) {
          continue;
        }
        int64_t seen = first_bad.load();
        while (begin + i < seen && !first_bad.compare_exchange_weak(seen, begin + i)) {
        }
      }
    });
    CheckCuda(
        cudaMemcpyAsync(weight.data.as<char>() + begin * unit_bytes, to,
                        static_cast<size_t>(count * unit_bytes), cudaMemcpyHostToDevice, stream_),
        "copying weights");
    CheckCuda(cudaEventRecord(copied[turn], stream_), "recording an event");
  }
  CheckCuda(cudaStreamSynchronize(stream_), "copying weights");
  for (cudaEvent_t event : copied) CheckCuda(cudaEventDestroy(event), "destroying an event");
  if (first_bad.load() == units) return absl::OkStatus();
  const cuda::BadValue bad = cuda::FindBadValue(spec, weight.plan, first_bad.load());
  return UnfitWeight(spec, bad.row, bad.column);
}

TensorView CudaKernels::AlignedRows(TensorView x) {
  if (IsAligned(x) || x.rows == 0) return x;
  const int64_t size = SizeOf(x.dtype);
  TensorView copy = x;
  copy.stride = RoundUp(x.cols, 16 / size);
  copy.data = AtLeast(aligned_x_, copy.rows * copy.stride * size);
  CheckCuda(cuda::CopyBytes(x.data, x.stride * size, cuda::BytesOf(copy), stream_),
            "aligning rows");
  return copy;
}

void CudaKernels::MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) {
  if (x.rows == 0) return;
  RunMatMul(x, static_cast<const CudaPackedWeight&>(w), outs, {});
}

void CudaKernels::MatMulSiluMul(TensorView x, const PackedWeight& weight, TensorView gate_up,
                                const float* bias, int64_t n, TensorView out) {
  const auto& w = static_cast<const CudaPackedWeight&>(weight);
  PHALANX_CHECK(w.n() == 2 * n) << "a weight of " << w.n() << " columns for " << n << " gates";
  if (x.rows > 0 && w.dtype() == DType::kBF16) {
    // By the library gate and up come rounded, as most runtimes have them: of a prompt's step they
    // are what is written and read most.
    Enter();
    CheckMatMul(x, w, {&gate_up, 1});
    x = AlignedRows(x);
    TensorView rounded = gate_up;
    rounded.dtype = DType::kBF16;
    rounded.stride = gate_up.stride * 2;
    if (RunGemm(x, w, {&rounded, 1})) {
      SiluMul(rounded, bias, n, out);
      return;
    }
    const auto plan = PlanGated(w, out, x.rows, /*num_runs=*/1);
    if (plan.has_value()) {
      RunGatedTiles(x, w, bias, out, *plan, TilesOf(x.rows, *plan));
      return;
    }
  }
  Kernels::MatMulSiluMul(x, weight, gate_up, bias, n, out);
}

std::optional<cuda::MatMulPlan> CudaKernels::PlanGated(const CudaPackedWeight& w, TensorView out,
                                                       int64_t most_rows, int64_t num_runs) const {
  if (w.dtype() != DType::kBF16 || w.num_parts() != 1 || out.dtype != DType::kBF16 ||
      out.cols % cuda::kTileRows != 0 || w.n() != 2 * out.cols) {
    return std::nullopt;
  }
  const cuda::MatMulShape shape = ShapeOf(w, out.rows, most_rows, num_runs);
  auto plan = cuda::PlanGatedMatMul(shape, num_sms_, max_shared_);
  if (plan.has_value() && !scratch_frozen_) {
    plan->scratch_bytes = cuda::MostScratchBytes(shape, num_sms_, max_shared_);
  }
  return plan;
}

void CudaKernels::RunGatedTiles(TensorView x, const CudaPackedWeight& w, const float* bias,
                                TensorView out, const cuda::MatMulPlan& plan, const Tiles& tiles) {
  cuda::MatMulParams p = ParamsOf(x, w, plan, tiles);
  p.activated = static_cast<uint16_t*>(out.data);
  p.activated_stride = out.stride;
  p.gate_up_bias = bias;
  // As large as RunTiles has it, though this kernel needs none: a step may be the largest of all.
  void* const scratch = AtLeast(matmul_scratch_, plan.scratch_bytes);
  CheckCuda(cuda::MatMulMma(p, plan, scratch, stream_), "MatMulSiluMul");
}

void CudaKernels::GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                                absl::Span<const TensorView> outs) {
  for (const ExpertRows& group : groups) {
    if (group.count == 0) continue;
    RunMatMul(x, static_cast<const CudaPackedWeight&>(*group.w), outs, groups);
    return;
  }
}

absl::Status CudaKernels::UseLibrary(std::shared_ptr<const cuda::cublas::Library> library) {
  PHALANX_CHECK(numerics_ == Numerics::kFast) << "weights aren't packed for a library";
  EnterStream();
  absl::StatusOr<std::unique_ptr<cuda::Gemm>> gemm = cuda::Gemm::Create(std::move(library));
  if (!gemm.ok()) return gemm.status();
  absl::Status workspace = matmul_scratch_.TryGrow(cuda::Gemm::kWorkspaceBytes);
  if (!workspace.ok()) return workspace;
  gemm_ = *std::move(gemm);
  name_ += absl::StrCat(", cuBLASLt ", cuda::cublas::VersionText(gemm_->library().version));
  return absl::OkStatus();
}

bool CudaKernels::RunGemm(TensorView x, const CudaPackedWeight& w,
                          absl::Span<const TensorView> outs) {
  if (gemm_ == nullptr || x.rows <= kFewRows || w.part_runs.empty() || w.n() == 0) return false;
  const bool f16 = w.dtype() == DType::kF16;
  cuda::F16Terms terms;
  if (f16) {
    void* const memory = AtLeast(f16_terms_, cuda::F16TermsBytes(x.rows, x.cols));
    terms = cuda::F16TermsIn(memory, x.rows, x.cols);
  }
  const auto product = [&](size_t part, const void* rows, int64_t stride) {
    const PlacedLeaf& run = w.part_runs[part];
    const int64_t offset = run.begin * SizeOf(w.dtype());
    cuda::Product p;
    p.type = w.dtype();
    p.m = x.rows;
    p.n = w.n();
    p.k = run.end - run.begin;
    p.x = static_cast<const char*>(rows) + offset;
    p.x_stride = stride;
    p.w = w.data.as<const char>() + offset;
    p.w_stride = w.k();
    p.out = outs[part].data;
    p.out_type = outs[part].dtype;
    p.out_stride = outs[part].stride;
    return p;
  };
  gemms_.clear();
  for (size_t part = 0; part < outs.size(); ++part) {
    if (!f16) {
      gemms_.push_back(product(part, x.data, x.stride));
      continue;
    }
    gemms_.push_back(product(part, terms.high, terms.stride));
    gemms_.back().factor = cuda::kHighTermFactor;
    gemms_.push_back(product(part, terms.low, terms.stride));
    gemms_.back().factor = cuda::kLowTermFactor;
    gemms_.back().adds = true;
  }
  // The library looks at the device when it is asked.
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  for (const cuda::Product& p : gemms_) {
    if (!gemm_->CanRun(p)) return false;
  }
  if (f16) CheckCuda(cuda::SplitToF16(x, terms, stream_), "rows as sums of two F16");
  EnterStream();
  for (const cuda::Product& p : gemms_) gemm_->Run(p, matmul_scratch_.data(), stream_);
  if (!f16) return true;
  Enter();
  for (const TensorView& out : outs) {
    CheckCuda(cuda::ScaleRows(out, terms.row_factors, stream_), "scaling rows");
  }
  return true;
}

cuda::MatMulShape CudaKernels::ShapeOf(const CudaPackedWeight& w, int64_t rows, int64_t most_rows,
                                       int64_t num_runs) {
  cuda::MatMulShape shape;
  shape.rows = rows;
  shape.most_rows = most_rows;
  shape.num_runs = num_runs;
  shape.n = w.n();
  shape.num_leaves = w.params.num_leaves;
  shape.num_chunks = w.params.num_chunks;
  shape.depth = w.params.depth;
  shape.group_bytes =
      w.dtype() == DType::kBF16
          ? cuda::TileGroupBytes(w.params.layout)
          : cuda::ChainGroupBytes(w.params.layout, static_cast<int>(SizeOf(w.dtype())));
  return shape;
}

cuda::MatMulPlan CudaKernels::PlanRows(const CudaPackedWeight& w, int64_t rows, int64_t most_rows,
                                       int64_t num_runs) const {
  const cuda::MatMulShape shape = ShapeOf(w, rows, most_rows, num_runs);
  if (w.dtype() != DType::kBF16) return cuda::PlanChain(shape, max_shared_);
  if (scratch_frozen_) {
    return cuda::PlanMatMul(shape, num_sms_, max_shared_, matmul_scratch_.bytes());
  }
  // The first steps, which may be any, ask at once for what all of as many rows can need.
  cuda::MatMulPlan plan = cuda::PlanMatMul(shape, num_sms_, max_shared_);
  plan.scratch_bytes = cuda::MostScratchBytes(shape, num_sms_, max_shared_);
  return plan;
}

void CudaKernels::CheckMatMul(TensorView x, const CudaPackedWeight& w,
                              absl::Span<const TensorView> outs) {
  PHALANX_CHECK(x.dtype == ActivationType(w.dtype()) && x.cols == w.k())
      << "x of " << x.cols << " columns of " << Name(x.dtype) << " for a weight of " << w.k()
      << " columns of " << Name(w.dtype());
  PHALANX_CHECK(static_cast<int>(outs.size()) == w.num_parts())
      << outs.size() << " outputs of " << w.num_parts() << " parts";
}

void CudaKernels::RunMatMul(TensorView x, const CudaPackedWeight& w,
                            absl::Span<const TensorView> outs,
                            absl::Span<const ExpertRows> groups) {
  Enter();
  CheckMatMul(x, w, outs);
  x = AlignedRows(x);
  if (groups.empty()) {
    if (RunGemm(x, w, outs)) return;
    const cuda::MatMulPlan plan = PlanRows(w, x.rows, x.rows, 1);
    RunTiles(x, w, outs, plan, TilesOf(x.rows, plan));
    return;
  }
  int64_t most_rows = 0;
  for (const ExpertRows& group : groups) most_rows = std::max(most_rows, group.count);
  const cuda::MatMulPlan plan = PlanRows(w, x.rows, most_rows, static_cast<int64_t>(groups.size()));
  tiles_.clear();
  for (const ExpertRows& group : groups) {
    const void* weight = static_cast<const CudaPackedWeight*>(group.w)->data.data();
    for (int64_t row = 0; row < group.count; row += plan.tile_rows) {
      tiles_.push_back(
          {weight, group.begin + row,
           static_cast<int32_t>(std::min<int64_t>(plan.tile_rows, group.count - row))});
    }
  }
  RunTiles(x, w, outs, plan,
           {staging_.Put(cuda::Staged::kMatMulTiles, absl::MakeConstSpan(tiles_)),
            static_cast<int64_t>(tiles_.size()), nullptr});
}

CudaKernels::Tiles CudaKernels::TilesOf(int64_t rows, const cuda::MatMulPlan& plan) {
  return {nullptr, (rows + plan.tile_rows - 1) / plan.tile_rows, nullptr};
}

cuda::MatMulParams CudaKernels::ParamsOf(TensorView x, const CudaPackedWeight& w,
                                         const cuda::MatMulPlan& plan, const Tiles& tiles) const {
  cuda::MatMulParams p = w.params;
  p.x = x.data;
  p.x_stride = x.stride;
  p.weight = w.data.data();
  p.rows = x.rows;
  p.tile_rows = plan.tile_rows;
  p.tiles = tiles.list;
  p.num_tiles = tiles.count;
  p.tile_count = tiles.count_on_device;
  return p;
}

void CudaKernels::RunTiles(TensorView x, const CudaPackedWeight& w,
                           absl::Span<const TensorView> outs, const cuda::MatMulPlan& plan,
                           const Tiles& tiles) {
  cuda::MatMulParams p = ParamsOf(x, w, plan, tiles);
  for (size_t i = 0; i < outs.size(); ++i) {
    p.outs[i] = outs[i].f32();
    p.out_strides[i] = outs[i].stride;
  }
  if (w.dtype() == DType::kBF16) {
    void* const scratch = AtLeast(matmul_scratch_, plan.scratch_bytes);
    CheckCuda(cuda::MatMulMma(p, plan, scratch, stream_), "MatMul");
  } else {
    CheckCuda(cuda::MatMulChain(p, plan, stream_), "MatMul");
  }
}

}  // namespace phalanx::kernels
