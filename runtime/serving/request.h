// From a client's GenerateRequest to the coordinator's. `phalanx run` goes through it, too, so that
// its defaults are the service's.
#ifndef PHALANX_RUNTIME_SERVING_REQUEST_H_
#define PHALANX_RUNTIME_SERVING_REQUEST_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/phalanx/v1/inference.pb.h"
#include "runtime/coordinator/request.h"
#include "runtime/serving/model_info.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::serving {

// Fills in defaults and tokenizes the prompt. What the coordinator checks is left to it. The
// deadline is not set. `tokenizer` may be null: a prompt must then be ids. INVALID_ARGUMENT names
// the field; NOT_FOUND: another model's name.
absl::StatusOr<coordinator::GenerateRequest> ToCoordinatorRequest(
    const v1::GenerateRequest& request, const ModelInfo& model,
    const tokenizer::Tokenizer* tokenizer);
inline absl::StatusOr<coordinator::GenerateRequest> ToCoordinatorRequest(
    const v1::GenerateRequest& request, const ModelInfo& model,
    const tokenizer::Tokenizer& tokenizer) {
  return ToCoordinatorRequest(request, model, &tokenizer);
}

// NOT_FOUND unless `name` is empty or the model's.
absl::Status CheckModelName(absl::string_view name, const ModelInfo& model);

// The coordinator names fields as in its own structures; clients know those of the .proto.
// `from_text`: the prompt came as text.
absl::Status WithPublicFieldName(const absl::Status& status, bool from_text);

// What absent sampling fields stand for.
v1::SamplingParams DefaultSampling(const ModelInfo& model);

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_REQUEST_H_
