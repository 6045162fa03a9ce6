#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/launch_order.h"

namespace phalanx::kernels::cuda {
namespace {

// The first sm_ whose code has them, as cudaFuncAttributes counts.
constexpr int kFirstVersion = 90;

__global__ void __launch_bounds__(32) WaitingKernel() { BeginInTurn(); }

}  // namespace

cudaError_t KernelsWait(bool* waits) {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(WaitingKernel));
  *waits = error == cudaSuccess && attributes.ptxVersion >= kFirstVersion;
  return error;
}

}  // namespace phalanx::kernels::cuda
