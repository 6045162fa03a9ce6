#include "kernels/cuda/cuda_kernels.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/choosing.h"
#include "kernels/cuda/launch_order.h"
#include "kernels/cuda/moves.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sampling_ops.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;
using cuda::Staged;

static_assert(cuda::kMaxHeadDim == kMaxHeadDim);
// What a decode step stages is a few KiB.
constexpr int64_t kStagingHalf = int64_t{4} << 20;
// Room for results from the start: the log-sum-exps of 256 rows, of 64 leaves each, and more.
constexpr int64_t kResultBytes = int64_t{256} << 10;
// Rows that are cut side by side: room for them is there from the start, for no step need have cuts
// before the scratch is frozen. As many as have logits at once, so that how many there are changes
// no step's kernels.
constexpr int64_t kCutsAtOnce = 256;

bool StartsEarly(const CudaOptions& options) {
  CheckCuda(cudaSetDevice(options.device), "choosing the device");
  bool waits = false;
  CheckCuda(cuda::KernelsWait(&waits), "asking for a kernel's version");
  return options.early_starts && waits;
}

}  // namespace

CudaKernels::CudaKernels(const CudaOptions& options, std::shared_ptr<cuda::DeviceMemory> memory,
                         const cuda::StepGraphsOptions& graphs)
    : device_(options.device),
      use_graphs_(options.graphs),
      numerics_(options.numerics),
      observer_(options.observer),
      memory_(std::move(memory)),
      owned_stream_(options.device),
      stream_(owned_stream_.get()),
      pack_pool_(std::max(1, options.pack_threads)),
      graph_api_(
          stream_, [this] { NoteWork(); }, StartsEarly(options)),
      graphs_(graph_api_, graphs),
      recorder_(stream_),
      staging_(device_, stream_, memory_, kStagingHalf, [this] { Flush(); }),
      matmul_scratch_(memory_, "matmuls"),
      aligned_x_(memory_, "rows that aren't aligned to 16 bytes"),
      f16_terms_(memory_, "rows as sums of two F16"),
      partials_(memory_, "partial softmaxes"),
      choices_(memory_, "choices"),
      cut_work_(memory_, "cuts"),
      slots_(memory_, "slots of experts"),
      results_(memory_, "results on their way to the host") {
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, device_), "asking for its properties");
  num_sms_ = properties.multiProcessorCount;
  max_shared_ = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  // As nvidia-smi -L prints it.
  device_id_ = cuda::UuidText(properties.uuid);
  name_ = absl::StrCat("cuda ", device_, ": ", properties.name, ", sm_", properties.major,
                       properties.minor, ", ", num_sms_, " multiprocessors");
  results_.Grow(kResultBytes);
  cut_work_.Grow(cuda::CutScratchBytes(kCutsAtOnce));
}

CudaKernels::~CudaKernels() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamSynchronize(stream_);
  for (char* buffer : pack_buffers_) (void)cudaFreeHost(buffer);
}

void CudaKernels::Enter() {
  if (recording_) {
    recorder_.Enter();
    return;
  }
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  NoteWork();
}

void CudaKernels::EnterStream() {
  Flush();
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  NoteWork();
}

void CudaKernels::NoteWork() {
  if (observer_ == nullptr || !in_step_ || at_work_) return;
  at_work_ = true;
  observer_->WorkBegins(stream_);
}

void CudaKernels::NoteWorkEnds() {
  if (at_work_) observer_->WorkEnds(stream_);
  at_work_ = false;
}

void CudaKernels::BeginStep(int64_t rows) {
  EndStep();
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  in_step_ = true;
  recording_ = use_graphs_;
  num_plans_ = 0;
  graphs_.BeginStep(rows);
  staging_.BeginStep(recording_);
}

void CudaKernels::EndStep() {
  if (!in_step_) return;
  Flush();
  NoteWorkEnds();
  if (observer_ != nullptr) observer_->StepEnds();
  staging_.EndStep();
  recorder_.Leave();
  in_step_ = recording_ = false;
  num_plans_ = 0;  // outside a step tables may change
}

void CudaKernels::Flush() {
  if (!recording_) return;
  cuda::Segment& segment = recorder_.segment();
  segment.upload = staging_.TakeUpload();
  if (segment.empty()) return;
  CheckCuda(cudaSetDevice(device_), "choosing the device");
  graphs_.Run(segment);
  segment.Clear();
}

void* CudaKernels::AtLeast(cuda::DeviceScratch& scratch, int64_t bytes) {
  if (bytes == 0) return nullptr;
  if (!scratch.Holds(bytes)) {
    EnterStream();
    scratch.Grow(bytes);
  }
  return scratch.data();
}

std::string CudaKernels::Describe() const { return name_; }

absl::StatusOr<Buffer> CudaKernels::Allocate(int64_t bytes) {
  EnterStream();
  absl::StatusOr<Buffer> buffer = memory_->Allocate(bytes);
  if (buffer.ok() && bytes > 0) {
    CheckCuda(cudaMemsetAsync(buffer->data(), 0, static_cast<size_t>(bytes), stream_),
              "zeroing memory");
  }
  return buffer;
}

void CudaKernels::CopyIn(void* device, const void* host, int64_t bytes) {
  // Through pinned memory piece by piece: nobody waits unless the device is far behind.
  for (int64_t done = 0; done < bytes; done += staging_.most_bytes()) {
    const int64_t size = std::min(bytes - done, staging_.most_bytes());
    const char* from = static_cast<const char*>(host) + done;
    char* to = static_cast<char*>(device) + done;
    Enter();
    if (recording_) {
      CheckCuda(cuda::CopyBytes(staging_.Put(Staged::kCopied, from, size), size,
                                cuda::OneRun(to, size), stream_),
                "CopyIn");
    } else {
      staging_.CopyTo(to, from, size);
    }
  }
}

void CudaKernels::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0) return;
  Fetch(host, device, bytes);
}

void CudaKernels::CopyOutLater(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0) return;
  Enter();
  if (recording_) {
    // Pinned memory is the device's to write, too. A copy engine would have the next step wait.
    cudaPointerAttributes attributes;
    CheckCuda(cudaPointerGetAttributes(&attributes, host), "asking for memory's kind");
    PHALANX_CHECK(attributes.type == cudaMemoryTypeHost)
        << "CopyOutLater to memory that isn't pinned";
    CheckCuda(cuda::CopyBytes(device, bytes, cuda::OneRun(host, bytes), stream_), "CopyOutLater");
    return;
  }
  CheckCuda(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
      "copying to the host");
}

void CudaKernels::Fetch(void* host, const void* device, int64_t bytes) {
  EnterStream();
  CheckCuda(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
      "copying to the host");
  NoteWorkEnds();
  CheckCuda(cudaStreamSynchronize(stream_), "copying to the host");
}

void CudaKernels::Synchronize() {
  EnterStream();
  NoteWorkEnds();
  CheckCuda(cudaStreamSynchronize(stream_), "synchronizing");
}

absl::StatusOr<int64_t> CudaKernels::FreeBytes() const { return memory_->LargestFree(); }

absl::StatusOr<Buffer> CudaKernels::AllocateHost(int64_t bytes) {
  Enter();
  return cuda::AllocatePinned(bytes);
}

std::unique_ptr<Marker> CudaKernels::Mark() {
  Enter();
  Flush();
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CheckCuda(cudaStreamIsCapturing(stream_, &capture), "asking whether a graph is captured");
  if (capture != cudaStreamCaptureStatusNone) return nullptr;
  return std::make_unique<cuda::EventMarker>(device_, stream_);
}

void CudaKernels::Zero(void* memory, int64_t bytes) {
  if (bytes <= 0) return;
  Enter();
  CheckCuda(cuda::ZeroBytes(cuda::OneRun(memory, bytes), stream_), "Zero");
}

void CudaKernels::CopyRows(TensorView in, TensorView out) {
  PHALANX_CHECK(in.dtype == out.dtype) << Name(out.dtype) << " from " << Name(in.dtype);
  Enter();
  in.rows = out.rows;
  in.cols = out.cols;
  CheckCuda(cuda::CopyBytes(in.data, cuda::BytesOf(in).pitch, cuda::BytesOf(out), stream_),
            "CopyRows");
}

void CudaKernels::AddParts(absl::Span<const float* const> operands, absl::Span<const int> program,
                           float* out, int64_t count) {
  static_assert(kMaxAddends == cuda::kMaxKernelAddends);
  PHALANX_CHECK(static_cast<int>(operands.size()) <= kMaxAddends)
      << operands.size() << " operands, at most " << kMaxAddends;
  const int depth = cuda::ProgramDepth(program, static_cast<int>(operands.size()));
  cuda::SumProgram params = {};
  PHALANX_CHECK(program.size() <= std::size(params.codes))
      << "a program of " << program.size() << " steps, at most " << std::size(params.codes);
  std::copy(operands.begin(), operands.end(), params.operands);
  std::copy(program.begin(), program.end(), params.codes);
  params.steps = static_cast<int>(program.size());
  Enter();
  CheckCuda(cuda::AddParts(params, depth, out, count, stream_), "AddParts");
}

void CudaKernels::OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  Enter();
  CheckCuda(cuda::OrInto(data, other, count, stream_), "OrInto");
}

void CudaKernels::GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                             const Choice* chosen, TensorView out) {
  Enter();
  out.rows = static_cast<int64_t>(ids.size());
  CheckCuda(
      cuda::GatherRows(table, staging_.Put(Staged::kIds, ids), first_id, chosen, out, stream_),
      "GatherRows");
}

void CudaKernels::AddResidual(TensorView x, TensorView delta, const float* bias) {
  Enter();
  CheckCuda(cuda::AddResidual(x, delta, bias, stream_), "AddResidual");
}

void CudaKernels::RmsNorm(TensorView x, const float* weight, float eps, TensorView out) {
  Enter();
  CheckCuda(cuda::RmsNorm(x, {}, nullptr, weight, eps, out, stream_), "RmsNorm");
}

void CudaKernels::AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias,
                                     const float* weight, float eps, TensorView out) {
  Enter();
  CheckCuda(cuda::RmsNorm(x, delta, bias, weight, eps, out, stream_), "AddResidualRmsNorm");
}

void CudaKernels::SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  Enter();
  CheckCuda(cuda::SiluMul(gate_up, bias, n, out, stream_), "SiluMul");
}

int64_t CudaKernels::KvBlockBytes(const KvShape& shape) const {
  return cuda::LayoutOf(shape).block_bytes;
}

void CudaKernels::QkvToCache(const QkvArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  PHALANX_CHECK(d > 0 && d <= kMaxHeadDim) << "head_dim " << d << ", at most " << kMaxHeadDim;
  PHALANX_CHECK(args.rotary_dim % 2 == 0 && args.rotary_dim <= d)
      << "rotary_dim " << args.rotary_dim << " of head_dim " << d;
  Enter();
  cuda::QkvParams p;
  p.qkv = args.qkv;
  p.bias = args.bias;
  p.q_norm = args.q_norm;
  p.k_norm = args.k_norm;
  p.norm_eps = args.norm_eps;
  p.num_heads = args.num_heads;
  p.head_dim = d;
  p.cos = args.cos;
  p.sin = args.sin;
  p.rotary_dim = args.rotary_dim;
  // The decoder's table has a row for each of the step's: known here, they needn't be read there
  // before the table is.
  int32_t next = 0;
  const bool by_rows = std::all_of(args.positions.begin(), args.positions.end(),
                                   [&next](int32_t position) { return position == next++; });
  if (!by_rows) p.positions = staging_.Put(Staged::kPositions, args.positions);
  p.slots = staging_.Put(Staged::kSlots, args.slots);
  p.layout = cuda::LayoutOf(args.cache.shape);
  p.cache = args.cache.data;
  p.q = args.q;
  CheckCuda(cuda::QkvToCache(p, stream_), "QkvToCache");
}

void CudaKernels::CopyBlocks(const KvView& cache,
                             absl::Span<const std::pair<int32_t, int32_t>> blocks) {
  Enter();
  const int64_t bytes = KvBlockBytes(cache.shape);
  auto* base = static_cast<char*>(cache.data);
  // In order: a destination may be a later pair's source.
  for (const auto& [source, destination] : blocks) {
    if (source == destination) continue;
    CheckCuda(cuda::CopyBytes(base + source * bytes, bytes,
                              cuda::OneRun(base + destination * bytes, bytes), stream_),
              "CopyBlocks");
  }
}

void CudaKernels::GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) {
  PHALANX_CHECK(in.dtype == out.dtype && out.cols <= in.stride)
      << out.cols << " columns of " << Name(out.dtype) << " from rows of " << in.stride << " "
      << Name(in.dtype);
  Enter();
  out.rows = static_cast<int64_t>(rows.size());
  CheckCuda(cuda::GatherTokens(in, staging_.Put(Staged::kRows, rows), out, stream_),
            "GatherTokens");
}

void CudaKernels::LogSumExpLeaves(TensorView logits,
                                  absl::Span<const std::pair<int64_t, int64_t>> leaves,
                                  absl::Span<MaxSum> out) {
  const auto count = static_cast<int64_t>(leaves.size());
  if (logits.rows == 0 || count == 0) return;
  Enter();
  std::vector<int64_t> bounds;
  for (const auto& [begin, end] : leaves) {
    bounds.push_back(begin);
    bounds.push_back(end);
  }
  auto* results = static_cast<MaxSum*>(
      AtLeast(results_, logits.rows * count * static_cast<int64_t>(sizeof(MaxSum))));
  CheckCuda(
      cuda::LogSumExpLeaves(logits, staging_.Put(Staged::kLeaves, absl::MakeConstSpan(bounds)),
                            count, results, stream_),
      "LogSumExpLeaves");
  Fetch(out.data(), results, logits.rows * count * static_cast<int64_t>(sizeof(MaxSum)));
}

void CudaKernels::EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) {
  // In pieces for which the staging needn't grow: there may be one for each token of a context.
  const auto most = static_cast<size_t>(staging_.most_bytes()) / sizeof(LogitEdit);
  for (size_t begin = 0; begin < edits.size(); begin += most) {
    const absl::Span<const LogitEdit> piece = edits.subspan(begin, most);
    Enter();
    CheckCuda(cuda::EditLogits(logits, staging_.Put(Staged::kLogitEdits, piece),
                               static_cast<int64_t>(piece.size()), stream_),
              "EditLogits");
  }
}

void CudaKernels::ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) {
  if (rows.empty()) return;
  Enter();
  const auto count = static_cast<int64_t>(rows.size());
  // The samples of a request share their row, and its cut.
  cut_rows_.clear();
  cut_of_.clear();
  for (const ChoiceRow& row : rows) {
    if (!HasCut(row)) {
      cut_of_.push_back(-1);
      continue;
    }
    if (cut_rows_.empty() || !SameCut(cut_rows_.back(), row)) cut_rows_.push_back(row);
    cut_of_.push_back(static_cast<int32_t>(cut_rows_.size()) - 1);
  }
  const int64_t pieces = count * cuda::ChoiceScratch(logits.cols);
  auto* choices =
      static_cast<Choice*>(AtLeast(choices_, pieces * static_cast<int64_t>(sizeof(Choice)) +
                                                 count * static_cast<int64_t>(sizeof(Cut))));
  cuda::StagedCuts cuts;
  if (!cut_rows_.empty()) {
    auto* made = reinterpret_cast<Cut*>(choices + pieces);
    cuda::KindsOfCuts kinds;
    for (const ChoiceRow& row : cut_rows_) {
      kinds.top_k = kinds.top_k || row.top_k > 0;
      kinds.top_p = kinds.top_p || row.top_p < 1.0f;
      kinds.min_p = kinds.min_p || row.min_p > 0.0f;
    }
    const ChoiceRow* staged = staging_.Put(Staged::kCutRows, absl::MakeConstSpan(cut_rows_));
    const auto num_cuts = static_cast<int64_t>(cut_rows_.size());
    for (int64_t begin = 0; begin < num_cuts; begin += kCutsAtOnce) {
      CheckCuda(cuda::CutRows(logits, staged + begin, std::min(kCutsAtOnce, num_cuts - begin),
                              kinds, cut_work_.data(), made + begin, stream_),
                "CutRows");
    }
    cuts = {made, staging_.Put(Staged::kCutOf, absl::MakeConstSpan(cut_of_))};
  }
  CheckCuda(cuda::ChooseRows(logits, staging_.Put(Staged::kChoiceRows, rows), count, cuts, choices,
                             out, stream_),
            "ChooseRows");
}

}  // namespace phalanx::kernels
