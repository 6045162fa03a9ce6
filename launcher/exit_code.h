// Exit codes of section 6 of the design.
#ifndef PHALANX_LAUNCHER_EXIT_CODE_H_
#define PHALANX_LAUNCHER_EXIT_CODE_H_

#include "absl/status/status.h"

namespace phalanx::launcher {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;       // failed while running
inline constexpr int kExitUsage = 2;        // wrong usage, configuration or model
inline constexpr int kExitFailedItems = 3;  // a batch finished with failed items
inline constexpr int kExitAgain = 75;       // stopped before the end: run it again

// What a status that ends a command means for its exit code.
int ExitCode(const absl::Status& status);
// Prints "phalanx COMMAND: message" to stderr and returns ExitCode(status).
int Fail(const char* command, const absl::Status& status);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_EXIT_CODE_H_
