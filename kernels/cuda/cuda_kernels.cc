#include "kernels/cuda/cuda_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sampling_ops.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;

constexpr int64_t kStagingHalf = int64_t{4} << 20;

cuda::KvLayout LayoutOf(const KvShape& shape) {
  return cuda::KvLayout(shape.dtype, shape.num_kv_heads, shape.head_dim);
}

}  // namespace

CudaKernels::CudaKernels(const CudaOptions& options)
    : device_(options.device),
      pack_pool_(std::max(1, options.pack_threads)),
      matmul_scratch_(options.device),
      aligned_x_(options.device),
      partials_(options.device),
      results_(options.device),
      host_rows_(options.device) {
  Enter();
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, device_), "asking for its properties");
  num_sms_ = properties.multiProcessorCount;
  max_shared_ = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  name_ = absl::StrCat("cuda ", device_, ": ", properties.name, ", sm_", properties.major,
                       properties.minor, ", ", num_sms_, " multiprocessors");
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  staging_ = std::make_unique<cuda::Staging>(device_, stream_, kStagingHalf);
}

CudaKernels::~CudaKernels() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamSynchronize(stream_);
  for (char* buffer : pack_buffers_) (void)cudaFreeHost(buffer);
  staging_.reset();
  (void)cudaStreamDestroy(stream_);
}

void CudaKernels::Enter() const { CheckCuda(cudaSetDevice(device_), "choosing the device"); }

std::string CudaKernels::Describe() const { return name_; }

absl::StatusOr<Buffer> CudaKernels::Allocate(int64_t bytes) {
  return cuda::AllocateDevice(device_, bytes, stream_);
}

void CudaKernels::CopyIn(void* device, const void* host, int64_t bytes) {
  if (bytes <= 0) return;
  Enter();
  if (bytes <= staging_->half_bytes()) {
    staging_->CopyTo(device, host, bytes);
    return;
  }
  CheckCuda(
      cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
      "copying to the device");
  CheckCuda(cudaStreamSynchronize(stream_), "copying to the device");
}

void CudaKernels::CopyOut(void* host, const void* device, int64_t bytes) {
  if (bytes <= 0) return;
  Enter();
  Fetch(host, device, bytes);
}

void CudaKernels::Fetch(void* host, const void* device, int64_t bytes) {
  CheckCuda(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
      "copying to the host");
  CheckCuda(cudaStreamSynchronize(stream_), "copying to the host");
}

void CudaKernels::Synchronize() {
  Enter();
  CheckCuda(cudaStreamSynchronize(stream_), "synchronizing");
}

const float* CudaKernels::OnDevice(const float* data, int64_t floats) {
  cudaPointerAttributes attributes;
  CheckCuda(cudaPointerGetAttributes(&attributes, data), "asking where logits lie");
  if (attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged) {
    return data;
  }
  void* copy = host_rows_.AtLeast(floats * 4);
  CopyIn(copy, data, floats * 4);
  return static_cast<const float*>(copy);
}

void CudaKernels::GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                             TensorView out) {
  Enter();
  out.rows = static_cast<int64_t>(ids.size());
  CheckCuda(cuda::GatherRows(table, staging_->Put(ids), first_id, out, stream_), "GatherRows");
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
  return LayoutOf(shape).block_bytes;
}

void CudaKernels::QkvToCache(const QkvArgs& args) {
  const int64_t d = args.cache.shape.head_dim;
  PHALANX_CHECK(d > 0 && d <= cuda::kMaxHeadDim)
      << "head_dim " << d << ", at most " << cuda::kMaxHeadDim;
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
  p.positions = staging_->Put(args.positions);
  p.slots = staging_->Put(args.slots);
  p.layout = LayoutOf(args.cache.shape);
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
    CheckCuda(cudaMemcpyAsync(base + destination * bytes, base + source * bytes,
                              static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
              "CopyBlocks");
  }
}

void CudaKernels::RouteTopK(const RouterArgs& args) {
  const int64_t width = args.logits.cols;
  const int64_t slots = args.logits.rows * args.top_k;
  PHALANX_CHECK(width > 0 && width <= kMaxExperts) << width << " experts, at most " << kMaxExperts;
  PHALANX_CHECK(args.top_k > 0 && args.top_k <= width)
      << "top_k " << args.top_k << " of " << width << " experts";
  PHALANX_CHECK(static_cast<int64_t>(args.experts.size()) >= slots &&
                static_cast<int64_t>(args.weights.size()) >= slots)
      << "room for " << args.experts.size() << " experts and " << args.weights.size()
      << " weights of " << slots << " slots";
  static_assert(kMaxExperts == cuda::kMaxRouterWidth);
  if (slots == 0) return;
  Enter();
  auto* experts = static_cast<int32_t*>(results_.AtLeast(slots * 8));
  auto* weights = reinterpret_cast<float*>(experts + slots);
  CheckCuda(cuda::RouteTopK(args.logits, args.top_k, args.normalise, experts, weights, stream_),
            "RouteTopK");
  Fetch(args.experts.data(), experts, slots * 4);
  Fetch(args.weights.data(), weights, slots * 4);
}

void CudaKernels::CombineExperts(const CombineExpertsArgs& args) {
  PHALANX_CHECK(args.top_k > 0) << "top_k " << args.top_k;
  PHALANX_CHECK(args.num_parts > 0 && args.num_parts <= cuda::kMaxPartials)
      << "num_parts " << args.num_parts << ", at most " << cuda::kMaxPartials;
  PHALANX_CHECK(static_cast<int64_t>(args.parts.size()) == args.rows * args.top_k * args.num_parts)
      << args.parts.size() << " parts for " << args.rows << " rows";
  if (args.rows == 0) return;
  Enter();
  const cuda::DeviceProgram program = PutProgram(args.program, args.num_parts);
  cuda::CombineParams p;
  p.rows = args.rows;
  p.hidden = args.hidden;
  p.top_k = args.top_k;
  p.weights =
      staging_->Put(absl::MakeConstSpan(args.weights, static_cast<size_t>(args.rows * args.top_k)));
  p.parts = staging_->Put(args.parts);
  p.num_parts = args.num_parts;
  p.program = program.codes;
  p.steps = program.steps;
  p.depth = program.depth;
  p.shared = args.shared;
  p.shared_gate_logit = args.shared_gate_logit;
  p.out = args.out;
  CheckCuda(cuda::CombineExperts(p, stream_), "CombineExperts");
}

void CudaKernels::GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) {
  PHALANX_CHECK(in.dtype == out.dtype && out.cols <= in.stride)
      << out.cols << " columns of " << Name(out.dtype) << " from rows of " << in.stride << " "
      << Name(in.dtype);
  Enter();
  out.rows = static_cast<int64_t>(rows.size());
  CheckCuda(cuda::GatherTokens(in, staging_->Put(rows), out, stream_), "GatherTokens");
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
  logits.data =
      const_cast<float*>(OnDevice(logits.f32(), (logits.rows - 1) * logits.stride + logits.cols));
  auto* results = static_cast<MaxSum*>(
      results_.AtLeast(logits.rows * count * static_cast<int64_t>(sizeof(MaxSum))));
  CheckCuda(cuda::LogSumExpLeaves(logits, staging_->Put(absl::MakeConstSpan(bounds)), count,
                                  results, stream_),
            "LogSumExpLeaves");
  Fetch(out.data(), results, logits.rows * count * static_cast<int64_t>(sizeof(MaxSum)));
}

Choice CudaKernels::GumbelArgmax(absl::Span<const float> logits, int32_t first_id,
                                 float temperature, float threshold, const GumbelKey& key) {
  Choice choice{-1, -std::numeric_limits<float>::infinity()};
  if (logits.empty()) return choice;
  Enter();
  const auto n = static_cast<int64_t>(logits.size());
  const float* data = OnDevice(logits.data(), n);
  const int64_t scratch = cuda::GumbelScratch(n);
  auto* results =
      static_cast<Choice*>(results_.AtLeast((scratch + 1) * static_cast<int64_t>(sizeof(Choice))));
  CheckCuda(cuda::GumbelArgmax(data, n, first_id, temperature, threshold, key, results + 1, results,
                               stream_),
            "GumbelArgmax");
  Fetch(&choice, results, sizeof choice);
  return choice;
}

}  // namespace phalanx::kernels
