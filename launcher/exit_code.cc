#include "launcher/exit_code.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace phalanx::launcher {
namespace {

void Complain(const char* command, absl::string_view message) {
  // By one write: ranks that fail at once share a terminal, or mpirun's pipe.
  std::cerr << absl::StrCat("phalanx ", command, ": ", message, "\n");
}

[[noreturn]] void OnTerminate() {
  // The first thread that comes here speaks for all: where one is refused, others are.
  static std::atomic_flag taken = ATOMIC_FLAG_INIT;
  while (taken.test_and_set()) pause();
  std::string why = "unknown";
  try {
    if (std::current_exception()) std::rethrow_exception(std::current_exception());
  } catch (const std::bad_array_new_length& error) {
    why = error.what();
  } catch (const std::bad_alloc&) {
    std::cerr << "phalanx: the system gives no more memory; take a machine with more, a larger "
                 "limit of the container or job, or ulimit -v\n";
    _exit(kExitFailed);
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::resource_unavailable_try_again) {
      std::cerr
          << "phalanx: the system gives no more threads; raise the limit (ulimit -u or -v, or the "
             "container's or job's) or take fewer --threads\n";
      _exit(kExitFailed);
    }
    why = error.what();
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
  }
  std::cerr << absl::StrCat("phalanx: a fault of the program: ", why,
                            "; please report it with what came before\n");
  std::abort();
}

}  // namespace

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
  Complain(command, status.message());
  return ExitCode(status);
}

int EndOfPrompts(const char* command, absl::Span<const absl::Status> prompts, bool abandoned) {
  size_t failed = 0;
  absl::Status failure;
  for (const absl::Status& status : prompts) {
    if (status.ok()) continue;
    if (++failed == 1 || abandoned) failure = status;
  }
  if (failed == 0) return kExitDone;
  if (prompts.size() == 1) return Fail(command, failure);
  Complain(command, absl::StrCat(failed, " of ", prompts.size(), " prompts failed, the ",
                                 abandoned ? "last" : "first", " with: ", failure.message()));
  return failed < prompts.size() && !abandoned ? kExitFailedItems : ExitCode(failure);
}

void ExitOnSignal(const char* command, int signal) {
  // What was printed may have left the terminal in the middle of a line.
  std::cerr << absl::StrCat("\nphalanx ", command, ": stopped by signal ", signal, "\n");
  _exit(kExitAgain);
}

void ExplainRefusedResources() { std::set_terminate(OnTerminate); }

}  // namespace phalanx::launcher
