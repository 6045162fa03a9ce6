// What is said where a device can't be used. Free of CUDA, so that the texts are tested everywhere.
#ifndef PHALANX_KERNELS_CUDA_DEVICE_ERRORS_H_
#define PHALANX_KERNELS_CUDA_DEVICE_ERRORS_H_

#include <string>

#include "absl/status/status.h"

namespace phalanx::kernels::cuda {

// What the runtime said when it was asked for the devices. Versions: 1000 major + 10 minor.
struct DeviceQuery {
  bool no_device = false;
  bool no_driver = false;  // none, or older than the runtime
  int driver_version = 0;  // 0: no driver
  int runtime_version = 0;
  std::string error;  // the runtime's text, or empty
};

// OK where there are devices.
absl::Status ExplainDevices(const DeviceQuery& query);
absl::Status CheckDeviceIndex(int device, int count);
absl::Status CheckCapability(int device, int major, int minor);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_DEVICE_ERRORS_H_
