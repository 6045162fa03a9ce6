// Segments on a CUDA stream: launches and graphs (CUDA Runtime API, "Graph Management"). A kernel
// that comes after another of its segment may be started early (launch_order.cuh).
#ifndef PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_
#define PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <vector>

#include "kernels/cuda/moves.h"
#include "kernels/cuda/step_graphs.h"

namespace phalanx::kernels::cuda {

// The device of `stream` must be the calling thread's at every call.
class CudaGraphApi : public GraphApi {
 public:
  // `before_launch` is called right before a segment's work is enqueued. `early_starts`: kernels
  // are to be started early, and have the waits for it (launch_order.h).
  CudaGraphApi(cudaStream_t stream, std::function<void()> before_launch, bool early_starts);

  // Whether they are. A driver that refuses is asked once.
  bool early_starts() const { return early_starts_; }

  void Launch(const Segment& segment) override;
  Graph Build(const Segment& segment) override;
  bool UpdateUpload(Graph graph, const Segment& segment) override;
  bool UpdateKernel(Graph graph, const Segment& segment, size_t index) override;
  void Launch(Graph graph) override;
  void Destroy(Graph graph) override;

 private:
  struct Chain;

  // One launch with arguments_; `early`: it may be started while the kernel before it runs.
  cudaError_t LaunchKernel(const cudaKernelNodeParams& params, bool early);
  // Fills `chain`, as far as the driver accepts it.
  cudaError_t BuildChain(const Segment& segment, bool early_starts, Chain& chain);
  // Lets `node`'s kernel have its dynamic shared memory and points `arguments_` at its arguments.
  cudaKernelNodeParams ParamsOf(const Segment& segment, const KernelNode& node);
  // The upload's, a kernel like the others (moves.h). Until the next call.
  cudaKernelNodeParams ParamsOf(const Upload& upload);

  const cudaStream_t stream_;
  const std::function<void()> before_launch_;
  bool early_starts_;
  std::vector<void*> arguments_;
  UploadLaunch upload_;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_CUDA_GRAPH_H_
