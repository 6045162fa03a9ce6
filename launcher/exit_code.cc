#include "launcher/exit_code.h"

#include <iostream>

namespace phalanx::launcher {

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitDone;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kPermissionDenied:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

int Fail(const char* command, const absl::Status& status) {
  std::cerr << "phalanx " << command << ": " << status.message() << std::endl;
  return ExitCode(status);
}

}  // namespace phalanx::launcher
