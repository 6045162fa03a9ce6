// Segments on a CUDA stream: launches and graphs (CUDA Runtime API, "Graph Management").
#ifndef PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_
#define PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/cuda/step_graphs.h"

namespace phalanx::kernels::cuda {

// The device of `stream` must be the calling thread's at every call.
class CudaGraphApi : public GraphApi {
 public:
  // `before_launch` is called right before a segment's work is enqueued.
  CudaGraphApi(cudaStream_t stream, std::function<void()> before_launch)
      : stream_(stream), before_launch_(std::move(before_launch)) {}

  void Launch(const Segment& segment) override;
  Graph Build(const Segment& segment) override;
  bool UpdateUpload(Graph graph, const Segment& segment) override;
  bool UpdateKernel(Graph graph, const Segment& segment, size_t index) override;
  void Launch(Graph graph) override;
  void Destroy(Graph graph) override;

 private:
  struct Chain;

  // Lets `node`'s kernel have its dynamic shared memory and points `arguments_` at its arguments.
  void Prepare(const Segment& segment, const KernelNode& node);
  cudaKernelNodeParams ParamsOf(const Segment& segment, const KernelNode& node);

  const cudaStream_t stream_;
  const std::function<void()> before_launch_;
  std::vector<void*> arguments_;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_
