// Step traces: which steps each rank worked on, and when.
#ifndef PHALANX_LAUNCHER_STEP_TRACE_H_
#define PHALANX_LAUNCHER_STEP_TRACE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/worker/worker.h"

namespace phalanx::launcher {

// For WorkerOptions::trace: appends one JSON object a line to DIRECTORY/replica-R.rank-N.jsonl,
//   {"epoch": 1, "step": 7, "stage": 0, "event": "begin", "unix_ns": 1790000000000000000}
// "begin": the step's input is here; "end": the rank's part of it is done. Clocks are those of the
// hosts. NOT_FOUND: the directory can't be made. The result may be called from several threads.
absl::StatusOr<std::function<void(const worker::StepEvent&)>> TraceSteps(
    const std::string& directory, int replica, uint64_t epoch);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_STEP_TRACE_H_
