// The CUDA backend as the rest of the project sees it. These functions exist in every build; one
// without CUDA (PHALANX_CUDA=OFF, or AUTO where no toolkit was found) answers with a status.
#ifndef PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
#define PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

// Whether this build has the CUDA backend.
bool BuiltWithCuda();

// Devices of this machine, at least one. FAILED_PRECONDITION where this build has no CUDA, where
// there is no driver, or where it is too old; NOT_FOUND where there is no device.
absl::StatusOr<int> CudaDeviceCount();

// In which order sums are added.
enum class Numerics {
  // R1 to R5 of the design: a request's bits depend on nothing but itself.
  kExact,
  // Products of many rows by cuBLASLt and attention of many rows without stripes, each in an order
  // of
  // its own: bits may depend on the layout and on who shares a step.
  kFast,
};
// "exact", "fast".
constexpr std::string_view Name(Numerics numerics) {
  return numerics == Numerics::kExact ? "exact" : "fast";
}

// Is told where a device's work in steps begins and ends in the order of its stream, for
// measurements: it may enqueue there what doesn't touch the ops' memory. Called on the thread that
// computes.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // What comes next on `stream` (a cudaStream_t) is a step's first work, or its first after the
  // host has waited for the device in the middle of the step.
  virtual void WorkBegins(void* stream) = 0;
  // Nothing more comes before the step ends, or before the host has waited.
  virtual void WorkEnds(void* stream) = 0;
  // After the last WorkEnds of a step. A step may have had no work.
  virtual void StepEnds() = 0;
};

struct CudaOptions {
  int device = 0;        // as CUDA counts them
  int pack_threads = 4;  // threads of the host that pack weights
  // How much of the device's memory is taken at the start, for all that Allocate gives and for the
  // ops' scratch: in bytes, or as a fraction (above 0, up to 1) of all that the device has, less
  // what is held of it already. One of the two; neither: each allocation is the driver's. What the
  // driver needs itself (code, graphs, other libraries) comes on top.
  int64_t memory_bytes = 0;
  double memory_fraction = 0;
  // Other instances take a fraction of this device, too, before or after this one: so what is held
  // is not taken off, but must leave as much free.
  bool memory_is_shared = false;
  // Steps are replayed as CUDA graphs (step_graphs.h). Without, each kernel is launched by itself,
  // with the same results.
  bool graphs = true;
  // Of the kernels that are enqueued together in a step each is started while the one before it
  // still runs, on sm_90 and newer (cuda/launch_order.cuh). Without (and without graphs), each
  // starts when the one before has ended, with the same results.
  bool early_starts = true;
  Numerics numerics = Numerics::kExact;
  StepObserver* observer = nullptr;  // outlives the instance
};
// Fails as CudaDeviceCount does; INVALID_ARGUMENT where there is no such device, or it is older
// than sm_80; INVALID_ARGUMENT or RESOURCE_EXHAUSTED where it can't give the memory asked for.
// kFast: FAILED_PRECONDITION where there is no cuBLASLt, or one that won't do.
absl::StatusOr<std::unique_ptr<Kernels>> CreateCudaKernels(const CudaOptions& options);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_CUDA_CUDA_DEVICE_H_
