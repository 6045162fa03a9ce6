#include "kernels/cuda/cuda_graph.h"

#include <memory>

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

}  // namespace

struct CudaGraphApi::Chain {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaGraphNode_t upload = nullptr;
  std::vector<cudaGraphNode_t> kernels;
};

void CudaGraphApi::Prepare(const Segment& segment, const KernelNode& node) {
  CheckCuda(AllowShared(node.kernel, node.shared_bytes), "asking for shared memory");
  arguments_.clear();
  for (uint32_t i = 0; i < node.num_arguments; ++i) {
    // The driver copies them; its interface has no const.
    arguments_.push_back(const_cast<void*>(segment.argument(node, i)));
  }
}

cudaKernelNodeParams CudaGraphApi::ParamsOf(const Segment& segment, const KernelNode& node) {
  Prepare(segment, node);
  cudaKernelNodeParams params = {};
  params.func = const_cast<void*>(node.kernel);
  params.gridDim = GridOf(node);
  params.blockDim = dim3(node.threads);
  params.sharedMemBytes = node.shared_bytes;
  params.kernelParams = arguments_.data();
  return params;
}

void CudaGraphApi::Launch(const Segment& segment) {
  before_launch_();
  const Upload& upload = segment.upload;
  if (upload.bytes > 0) {
    CheckCuda(cudaMemcpyAsync(upload.to, upload.from, static_cast<size_t>(upload.bytes),
                              cudaMemcpyHostToDevice, stream_),
              "staging a step's arguments");
  }
  for (const KernelNode& node : segment.kernels()) {
    Prepare(segment, node);
    CheckCuda(cudaLaunchKernel(node.kernel, GridOf(node), dim3(node.threads), arguments_.data(),
                               node.shared_bytes, stream_),
              "launching a kernel");
  }
}

GraphApi::Graph CudaGraphApi::Build(const Segment& segment) {
  auto chain = std::make_unique<Chain>();
  CheckCuda(cudaGraphCreate(&chain->graph, 0), "creating a graph");
  const cudaGraphNode_t* before = nullptr;
  size_t num_before = 0;
  const Upload& upload = segment.upload;
  if (upload.bytes > 0) {
    CheckCuda(
        cudaGraphAddMemcpyNode1D(&chain->upload, chain->graph, nullptr, 0, upload.to, upload.from,
                                 static_cast<size_t>(upload.bytes), cudaMemcpyHostToDevice),
        "adding a copy to a graph");
    before = &chain->upload;
    num_before = 1;
  }
  // Pointers into it stay good.
  chain->kernels.reserve(segment.kernels().size());
  for (const KernelNode& node : segment.kernels()) {
    const cudaKernelNodeParams params = ParamsOf(segment, node);
    chain->kernels.push_back(nullptr);
    CheckCuda(
        cudaGraphAddKernelNode(&chain->kernels.back(), chain->graph, before, num_before, &params),
        "adding a kernel to a graph");
    before = &chain->kernels.back();
    num_before = 1;
  }
  const cudaError_t error = cudaGraphInstantiate(&chain->exec, chain->graph, 0);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    CheckCuda(cudaGraphDestroy(chain->graph), "destroying a graph");
    return nullptr;
  }
  CheckCuda(error, "instantiating a graph");
  return chain.release();
}

bool CudaGraphApi::UpdateUpload(Graph graph, const Segment& segment) {
  auto* chain = static_cast<Chain*>(graph);
  const Upload& upload = segment.upload;
  return Updated(cudaGraphExecMemcpyNodeSetParams1D(chain->exec, chain->upload, upload.to,
                                                    upload.from, static_cast<size_t>(upload.bytes),
                                                    cudaMemcpyHostToDevice));
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

void CudaGraphApi::Destroy(Graph graph) {
  auto* chain = static_cast<Chain*>(graph);
  // At a rank's end the context may be lost already; then there is nothing left to destroy.
  (void)cudaGraphExecDestroy(chain->exec);
  (void)cudaGraphDestroy(chain->graph);
  delete chain;
}

}  // namespace phalanx::kernels::cuda
