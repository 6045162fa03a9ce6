// Exit codes of section 6 of the design.
#ifndef PHALANX_LAUNCHER_EXIT_CODE_H_
#define PHALANX_LAUNCHER_EXIT_CODE_H_

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace phalanx::launcher {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;       // failed while running
inline constexpr int kExitUsage = 2;        // wrong usage, configuration or model
inline constexpr int kExitFailedItems = 3;  // all prompts were tried, some failed
inline constexpr int kExitAgain = 75;       // stopped before the end: run it again

// What a status that ends a command means for its exit code.
int ExitCode(const absl::Status& status);
// Prints "phalanx COMMAND: message" to stderr and returns ExitCode(status).
int Fail(const char* command, const absl::Status& status);

// How the prompts of a command ended, in their order; `abandoned`: from some prompt on nobody was
// there to answer. kExitDone where none failed, kExitFailedItems where some have an answer and
// aren't abandoned, else ExitCode() of the first failure, or the last one where they are. Says how
// many failed, and why, on stderr.
int EndOfPrompts(const char* command, absl::Span<const absl::Status> prompts, bool abandoned);

// Of a command that a signal ends before its work is done: "phalanx COMMAND: stopped by signal N"
// on stderr, and kExitAgain without a destructor run.
[[noreturn]] void ExitOnSignal(const char* command, int signal);

// From here on a thread or memory that the system refuses, which the standard library throws and
// nobody catches, ends the process with a line that says so and kExitFailed. Other exceptions are
// faults of the program and end it as ever, with a core dump.
void ExplainRefusedResources();

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_EXIT_CODE_H_
