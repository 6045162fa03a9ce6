#include "launcher/exit_code.h"

#include <iostream>

#include "absl/strings/str_cat.h"

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
  // By one write: ranks that fail at once share a terminal, or mpirun's pipe.
  std::cerr << absl::StrCat("phalanx ", command, ": ", status.message(), "\n");
  return ExitCode(status);
}

}  // namespace phalanx::launcher
