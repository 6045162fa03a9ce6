// StepPlan and StepResult to their proto forms and back. Lossless: every float travels as its bits.
#ifndef PHALANX_RUNTIME_CONTROL_CONVERSIONS_H_
#define PHALANX_RUNTIME_CONTROL_CONVERSIONS_H_

#include "absl/status/statusor.h"
#include "proto/phalanx/v1/control.pb.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::control {

// `out` is overwritten.
void ToProto(const scheduler::StepPlan& plan, v1::StepPlan* out);
void ToProto(const scheduler::StepResult& result, v1::StepResult* out);

// INTERNAL where columns that belong together differ in length.
absl::StatusOr<scheduler::StepPlan> FromProto(const v1::StepPlan& proto);
absl::StatusOr<scheduler::StepResult> FromProto(const v1::StepResult& proto);

}  // namespace phalanx::control

#endif  // PHALANX_RUNTIME_CONTROL_CONVERSIONS_H_
