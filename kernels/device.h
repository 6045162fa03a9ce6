// Which device a rank computes on.
#ifndef PHALANX_KERNELS_DEVICE_H_
#define PHALANX_KERNELS_DEVICE_H_

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

enum class DeviceKind { kCpu, kCuda };
// "cpu", "cuda".
constexpr std::string_view Name(DeviceKind kind) {
  return kind == DeviceKind::kCpu ? "cpu" : "cuda";
}

struct DeviceOptions {
  DeviceKind kind = DeviceKind::kCpu;
  CpuOptions cpu;    // of kCpu
  CudaOptions cuda;  // of kCuda
};

// Errors as of CreateCpuKernels and CreateCudaKernels.
inline absl::StatusOr<std::unique_ptr<Kernels>> CreateKernels(const DeviceOptions& options) {
  return options.kind == DeviceKind::kCpu ? CreateCpuKernels(options.cpu)
                                          : CreateCudaKernels(options.cuda);
}

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_DEVICE_H_
