#include "kernels/cuda/cuda_graph.h"

#include <memory>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/shared_memory.h"

namespace phalanx::kernels::cuda {
namespace {

dim3 GridOf(const KernelNode& node) { return dim3(node.grid[0], node.grid[1], node.grid[2]); }

// Whether an update was made. One that the driver refuses costs nothing but the graph.
bool Updated(cudaError_t error) {
  if (error == cudaErrorInvalidValue || error == cudaErrorGraphExecUpdateFailure ||
      error == cudaErrorNotSupported) {
    (void)cudaGetLastError();
    return false;
  }
  CheckCuda(error, "updating a node of a graph");
  return true;
}

// Whether the driver says no to an early start as such.
bool Refused(cudaError_t error) {
  return error == cudaErrorInvalidValue || error == cudaErrorNotSupported ||
         error == cudaErrorCallRequiresNewerDriver;
}

// The toolkits that name a graph's edges: since 12.3, and since 13.0 by the plain name.
constexpr bool kCanStartEarly = CUDART_VERSION >= 12030;

// `after` begins when all blocks of `before` have called LetNextStart() or ended.
cudaError_t AddEarlyEdge([[maybe_unused]] cudaGraph_t graph,
                         [[maybe_unused]] cudaGraphNode_t before,
                         [[maybe_unused]] cudaGraphNode_t after) {
#if CUDART_VERSION >= 12030
  cudaGraphEdgeData edge = {};
  edge.from_port = cudaGraphKernelNodePortProgrammatic;
  edge.type = cudaGraphDependencyTypeProgrammatic;
#if CUDART_VERSION >= 13000
  return cudaGraphAddDependencies(graph, &before, &after, &edge, 1);
#else
  return cudaGraphAddDependencies_v2(graph, &before, &after, &edge, 1);
#endif
#else
  return cudaErrorNotSupported;
#endif
}

}  // namespace

struct CudaGraphApi::Chain {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaGraphNode_t upload = nullptr;
  std::vector<cudaGraphNode_t> kernels;

  Chain() = default;
  Chain(const Chain&) = delete;
  Chain& operator=(const Chain&) = delete;
  // At a rank's end the context may be lost already; then there is nothing left to destroy.
  ~Chain() {
    if (exec != nullptr) (void)cudaGraphExecDestroy(exec);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
  }
};

CudaGraphApi::CudaGraphApi(cudaStream_t stream, std::function<void()> before_launch,
                           bool early_starts)
    : stream_(stream),
      before_launch_(std::move(before_launch)),
      early_starts_(early_starts && kCanStartEarly) {}

cudaKernelNodeParams CudaGraphApi::ParamsOf(const Segment& segment, const KernelNode& node) {
  CheckCuda(AllowShared(node.kernel, node.shared_bytes), "asking for shared memory");
  arguments_.clear();
  for (uint32_t i = 0; i < node.num_arguments; ++i) {
    // The driver copies them; its interface has no const.
    arguments_.push_back(const_cast<void*>(segment.argument(node, i)));
  }
  cudaKernelNodeParams params = {};
  params.func = const_cast<void*>(node.kernel);
  params.gridDim = GridOf(node);
  params.blockDim = dim3(node.threads);
  params.sharedMemBytes = node.shared_bytes;
  params.kernelParams = arguments_.data();
  return params;
}

cudaKernelNodeParams CudaGraphApi::ParamsOf(const Upload& upload) {
  PHALANX_CHECK(upload.bytes % 16 == 0) << "an upload of " << upload.bytes << " bytes";
  upload_ = LaunchOf(upload);
  CheckCuda(AllowShared(upload_.kernel, 0), "asking for shared memory");
  arguments_ = {&upload_.to, &upload_.from, &upload_.words};
  cudaKernelNodeParams params = {};
  params.func = const_cast<void*>(upload_.kernel);
  params.gridDim = upload_.grid;
  params.blockDim = upload_.threads;
  params.kernelParams = arguments_.data();
  return params;
}

void CudaGraphApi::Launch(const Segment& segment) {
  before_launch_();
  bool first = true;
  const auto launch = [&](const cudaKernelNodeParams& params) {
    const bool early = early_starts_ && !first;
    first = false;
    cudaError_t error = LaunchKernel(params, early);
    if (early && Refused(error)) {
      (void)cudaGetLastError();
      early_starts_ = false;
      error = LaunchKernel(params, /*early=*/false);
    }
    CheckCuda(error, "launching a kernel");
  };
  if (segment.upload.bytes > 0) launch(ParamsOf(segment.upload));
  for (const KernelNode& node : segment.kernels()) launch(ParamsOf(segment, node));
}

cudaError_t CudaGraphApi::LaunchKernel(const cudaKernelNodeParams& params, bool early) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = params.gridDim;
  config.blockDim = params.blockDim;
  config.dynamicSmemBytes = params.sharedMemBytes;
  config.stream = stream_;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelExC(&config, params.func, params.kernelParams);
}

cudaError_t CudaGraphApi::BuildChain(const Segment& segment, bool early_starts, Chain& chain) {
  CheckCuda(cudaGraphCreate(&chain.graph, 0), "creating a graph");
  cudaGraphNode_t before = nullptr;
  const auto add = [&](const cudaKernelNodeParams& params, cudaGraphNode_t& kernel) {
    const bool early = early_starts && before != nullptr;
    CheckCuda(cudaGraphAddKernelNode(&kernel, chain.graph, &before,
                                     early || before == nullptr ? 0 : 1, &params),
              "adding a kernel to a graph");
    const cudaError_t error = early ? AddEarlyEdge(chain.graph, before, kernel) : cudaSuccess;
    before = kernel;
    return error;
  };
  cudaError_t error = cudaSuccess;
  if (segment.upload.bytes > 0) error = add(ParamsOf(segment.upload), chain.upload);
  for (const KernelNode& node : segment.kernels()) {
    if (error != cudaSuccess) return error;
    error = add(ParamsOf(segment, node), chain.kernels.emplace_back());
  }
  if (error == cudaSuccess) error = cudaGraphInstantiate(&chain.exec, chain.graph, 0);
  // Where the device has no room for it, that shows now and not at its first launch.
  return error != cudaSuccess ? error : cudaGraphUpload(chain.exec, stream_);
}

GraphApi::Graph CudaGraphApi::Build(const Segment& segment) {
  auto chain = std::make_unique<Chain>();
  cudaError_t error = BuildChain(segment, early_starts_, *chain);
  if (early_starts_ && Refused(error)) {
    (void)cudaGetLastError();
    early_starts_ = false;
    chain = std::make_unique<Chain>();
    error = BuildChain(segment, /*early_starts=*/false, *chain);
  }
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  CheckCuda(error, "instantiating a graph");
  return chain.release();
}

bool CudaGraphApi::UpdateUpload(Graph graph, const Segment& segment) {
  auto* chain = static_cast<Chain*>(graph);
  const cudaKernelNodeParams params = ParamsOf(segment.upload);
  return Updated(cudaGraphExecKernelNodeSetParams(chain->exec, chain->upload, &params));
}

bool CudaGraphApi::UpdateKernel(Graph graph, const Segment& segment, size_t index) {
  auto* chain = static_cast<Chain*>(graph);
  const cudaKernelNodeParams params = ParamsOf(segment, segment.kernels()[index]);
  return Updated(cudaGraphExecKernelNodeSetParams(chain->exec, chain->kernels[index], &params));
}

void CudaGraphApi::Launch(Graph graph) {
  before_launch_();
  CheckCuda(cudaGraphLaunch(static_cast<Chain*>(graph)->exec, stream_), "launching a graph");
}

void CudaGraphApi::Destroy(Graph graph) { delete static_cast<Chain*>(graph); }

}  // namespace phalanx::kernels::cuda
