// From flags to the request that `run` and `generate` send.
#ifndef PHALANX_LAUNCHER_REQUEST_BUILDER_H_
#define PHALANX_LAUNCHER_REQUEST_BUILDER_H_

#include "absl/status/statusor.h"
#include "launcher/options.h"
#include "proto/phalanx/v1/inference.pb.h"

namespace phalanx::launcher {

// INVALID_ARGUMENT names the flag whose value fits no field; everything else is checked where the
// request arrives.
absl::StatusOr<v1::GenerateRequest> BuildRequest(const RequestOptions& options,
                                                 const Prompt& prompt);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_REQUEST_BUILDER_H_
