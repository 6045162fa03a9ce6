#include "kernels/cuda/device_errors.h"

#include "absl/strings/str_cat.h"

namespace phalanx::kernels::cuda {
namespace {

std::string Version(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

}  // namespace

absl::Status ExplainDevices(const DeviceQuery& query) {
  if (query.no_driver && query.driver_version == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: this machine has no NVIDIA driver; install one for CUDA ",
                     Version(query.runtime_version), " or newer, or use --device cpu"));
  }
  if (query.no_driver) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: the NVIDIA driver is for CUDA ",
                     Version(query.driver_version), ", this binary needs ",
                     Version(query.runtime_version), "; update the driver, or use --device cpu"));
  }
  if (query.no_device) {
    return absl::NotFoundError(
        "no CUDA device: the driver sees none; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use "
        "--device cpu");
  }
  if (!query.error.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: the CUDA runtime says: ", query.error,
                     "; check nvidia-smi, or use --device cpu"));
  }
  return absl::OkStatus();
}

absl::Status CheckDeviceIndex(int device, int count) {
  if (device >= 0 && device < count) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("no CUDA device ", device, ": this machine has ", count,
                   count == 1 ? " (number 0)" : absl::StrCat(" (numbers 0 to ", count - 1, ")")));
}

absl::Status CheckCapability(int device, int major, int minor) {
  if (major >= 8) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("CUDA device ", device, " has compute capability ", major, ".", minor,
                   "; the kernels need 8.0 (Ampere) or newer: use --device cpu"));
}

}  // namespace phalanx::kernels::cuda
